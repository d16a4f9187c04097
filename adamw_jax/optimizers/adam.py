"""Adam and its two weight decays.

AdamW is a fraction, minus a decay: m̂ / (√v̂ + ε) + λθ, times -lr.
"""

from typing import Any

from adamw_jax.core.combinators import chain
from adamw_jax.core.domains import Decay, LearningRate, NonNegative
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.bias_correction import bias_correction
from adamw_jax.pieces.rms import average, scale_by_rms
from adamw_jax.pieces.scaling import scale_by_learning_rate
from adamw_jax.pieces.weight_decay import add_decoupled_weight_decay, add_l2_gradient, shrink
from adamw_jax.schedules import relative


@transformation
def scale_by_adam(b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8) -> Transformation:
    """g -> m̂ / (√v̂ + eps): Adam's direction.

    Args:
      b1: decay of m, the average of g.
      b2: decay of v, the average of g².
      eps: added outside the root [L/θ].

    Example:
      >>> from adamw_jax import scale_by_adam
      >>> tx = scale_by_adam()
      >>> round(tx.update(-3.0, tx.init(0.0))[0].item(), 4)
      -1.0

    Reference: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015,
    algorithm 1.
    """
    return scale_by_rms(
        b2,
        eps,
        numerator=average(b1),  # m̂
        correction=bias_correction(b2),  # v̂, under the root
    )


@transformation
def adam(
    learning_rate: LearningRate, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8
) -> Transformation:
    """θ <- θ - lr m̂ / (√v̂ + eps).

    m <- b1 m + (1 - b1) g,   m̂ = m / (1 - b1^t)
    v <- b2 v + (1 - b2) g²,  v̂ = v / (1 - b2^t)

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      b1: decay of m, in [0, 1).
      b2: decay of v, in [0, 1).
      eps: added outside the root [L/θ].

    Example:
      >>> from adamw_jax import adam
      >>> tx = adam(0.1)
      >>> round(tx.update(0.2, tx.init(0.5))[0].item(), 6)
      -0.1

    Reference: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015,
    algorithm 1.
    """
    return chain(
        direction=scale_by_adam(b1, b2, eps),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


@transformation
def adam_l2(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    mask: Any = None,
) -> Transformation:
    """Adam on g + λθ: the penalty enters both moments.

    Args:
      learning_rate, b1, b2, eps: as in `adam`.
      weight_decay: λ of the penalty λ/2 ‖θ‖² [L/θ²].
      mask: True where to decay: a tree of bools, or a function from parameters
        to one; None decays every leaf.

    Example:
      >>> from adamw_jax import adam_l2
      >>> tx = adam_l2(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization",
    2019, algorithm 2 (the coupled line).
    """
    return chain(
        weight_decay=add_l2_gradient(weight_decay, mask),
        direction=scale_by_adam(b1, b2, eps),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


@transformation
def adamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    mask: Any = None,
    *,
    coupling: str = "lr",
) -> Transformation:
    """θ <- θ - lr (m̂ / (√v̂ + eps) + λθ), or with s λθ in place of lr λθ.

    Args:
      learning_rate, b1, b2, eps: as in `adam`.
      weight_decay: λ [1/θ with coupling "lr", no unit with "independent"].
      mask: True where to decay: a tree of bools, or a function from parameters
        to one; None decays every leaf.
      coupling: "lr" shrinks θ by lr·λ a step, as most libraries do;
        "independent" by s·λ, where s = lr / its peak (1 for a constant lr), as
        the paper does.

    Raises:
      ValueError: a hyperparameter is out of range, or coupling is
        "independent" and the schedule does not know its peak.

    Example:
      >>> from adamw_jax import adamw
      >>> tx = adamw(0.1, weight_decay=0.1)
      >>> update, state = tx.update(0.2, tx.init(0.5), 0.5)
      >>> round(0.5 + update.item(), 6)
      0.395

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization",
    2019, algorithm 2.
    """
    if coupling not in ("lr", "independent"):
        raise ValueError(f'adamw: coupling is {coupling!r}. It must be "lr" or "independent".')
    direction = scale_by_adam(b1, b2, eps)
    rate = scale_by_learning_rate(learning_rate)
    if coupling == "lr":
        decay = add_decoupled_weight_decay(weight_decay, mask)
        return chain(direction=direction, weight_decay=decay, learning_rate=rate)
    shape = relative(learning_rate) if callable(learning_rate) else None
    decay = shrink(weight_decay, shape, mask)
    return chain(direction=direction, learning_rate=rate, weight_decay=decay)
