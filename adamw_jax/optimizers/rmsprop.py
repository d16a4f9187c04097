"""Adaptive rates without momentum: AdaGrad and RMSProp."""

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Decay, LearningRate, NonNegative
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.moments import second_moment, sum_of_squares
from adamw_jax.pieces.scaling import identity, root, scale_by_learning_rate


@transformation
def adagrad(
    learning_rate: LearningRate,
    eps: NonNegative = 1e-8,
    *,
    initial_accumulator: NonNegative = 0.0,
) -> Transformation:
    """s <- s + g²;  θ <- θ - lr g / √(s + eps).

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      eps: added inside the root [L²/θ²].
      initial_accumulator: s before the first update [L²/θ²].

    Example:
      >>> from adamw_jax import adagrad
      >>> tx = adagrad(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online
    Learning and Stochastic Optimization", 2011, diagonal form (eps outside there).
    """
    return chain(
        direction=precondition(
            identity(),
            chain(moment=sum_of_squares(initial_accumulator), root=root(eps_root=eps)),
        ),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


@transformation
def rmsprop(
    learning_rate: LearningRate, decay: Decay = 0.9, eps: NonNegative = 1e-8
) -> Transformation:
    """v <- decay v + (1 - decay) g²;  θ <- θ - lr g / √(v + eps).

    v is not bias-corrected: the first step has the size lr / √(1 - decay).

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      decay: decay of v, in [0, 1).
      eps: added inside the root [L²/θ²].

    Example:
      >>> from adamw_jax import rmsprop
      >>> tx = rmsprop(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.316227

    Reference: Hinton, Srivastava & Swersky, lecture 6e, 2012.
    """
    return chain(
        direction=precondition(
            identity(), chain(moment=second_moment(decay), root=root(eps_root=eps))
        ),
        learning_rate=scale_by_learning_rate(learning_rate),
    )
