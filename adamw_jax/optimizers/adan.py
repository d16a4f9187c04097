"""Optimizers that use the change of the gradient, or its past: Adan, ADOPT, MARS."""

from typing import Any

from adamw_jax.core.combinators import chain, fork, join, pick, precondition
from adamw_jax.core.domains import Decay, Finite, LearningRate, NonNegative
from adamw_jax.core.numerics import add
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.core.wrappers import delay
from adamw_jax.optimizers.adam import scale_by_adam
from adamw_jax.pieces.clipping import clip_by_age, clip_by_leaf_norm
from adamw_jax.pieces.moments import (
    difference,
    previous_second_moment,
    scale_by_momentum,
    variance_reduction,
)
from adamw_jax.pieces.rms import average, rms
from adamw_jax.pieces.scaling import floor, identity, root, scale, scale_by_learning_rate
from adamw_jax.pieces.weight_decay import add_decoupled_weight_decay, proximal_decay


@transformation
def adan(
    learning_rate: LearningRate,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """(m̂ + b2 ŵ) / (√n̂ + eps), w the average of d = g - g_previous, n that of (g + b2 d)².

    The decay is proximal: θ <- (θ - lr u) / (1 + lr λ).  For the decoupled one
    swap `weight_decay` for `identity()` and chain as in `adamw`.

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      b1, b2, b3: decays of the averages of g, d and squares; 1 minus the paper's.
      eps: added outside the root [L/θ].
      weight_decay: λ [1/θ].
      mask: True where to decay; None decays every leaf.

    Example:
      >>> from adamw_jax import adan
      >>> tx = adan(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Xie et al., "Adan", 2022, algorithm 1, as the authors' code runs it.
    """
    change = chain(pick("difference"), scale(b2))
    numerator = join(
        add,
        gradient=chain(pick("gradient"), average(b1)),
        difference=chain(pick("difference"), average(b2), scale(b2)),
    )
    ahead = join(add, gradient=pick("gradient"), difference=change)
    return chain(
        fork=fork(gradient=identity(), difference=difference()),
        direction=precondition(numerator, chain(ahead=ahead, rms=rms(b3, eps))),
        learning_rate=scale_by_learning_rate(learning_rate),
        weight_decay=proximal_decay(weight_decay, learning_rate, mask),
    )


@transformation
def adopt(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """Divides g by the root of the v that has not seen it, clips, then averages.

    The first update only sets v = g²: parameters stay, decay included.

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      b1: decay of m, the average of the clipped quotient.
      b2: decay of v.
      eps: least value of √v [L/θ].
      weight_decay: decoupled λ [1/θ].
      mask: True where to decay; None decays every leaf.

    Example:
      >>> from adamw_jax import adopt
      >>> tx = adopt(0.1)
      >>> abs(tx.update(0.2, tx.init(0.5), 0.5)[0].item())
      0.0

    Reference: Taniguchi et al., "ADOPT", 2024, algorithm 2.
    """
    denominator = chain(moment=previous_second_moment(b2), root=root(), floor=floor(eps))
    return chain(
        direction=precondition(identity(), denominator),
        clip=clip_by_age(0.25),
        after=scale_by_momentum(b1),
        weight_decay=add_decoupled_weight_decay(weight_decay, mask),
        learning_rate=scale_by_learning_rate(learning_rate),
        start=delay(identity()),
    )


@transformation
def mars(
    learning_rate: LearningRate,
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    gamma: Finite = 0.025,
) -> Transformation:
    """AdamW on g + γ b1 / (1 - b1) (g - g_previous), each leaf clipped to norm 1.

    Every leaf is treated alike.  The authors' code sends leaves without two
    axes to AdamW: `route([(lambda path, leaf: leaf.ndim == 2, mars(3e-3))],
    adamw(3e-3, 0.9, 0.95, weight_decay=0.1))`.

    Args:
      learning_rate: lr [θ]; the authors' is 3e-3.
      b1, b2, eps, weight_decay, mask: as in `adamw`.
      gamma: γ, the strength of the correction; 0 leaves the clipping.

    Example:
      >>> from adamw_jax import mars
      >>> tx = mars(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Yuan et al., "MARS", 2024, algorithm 2 (approximate form).
    """
    return chain(
        before=chain(correct=variance_reduction(b1, gamma), clip=clip_by_leaf_norm(1.0)),
        direction=scale_by_adam(b1, b2, eps),
        weight_decay=add_decoupled_weight_decay(weight_decay, mask),
        learning_rate=scale_by_learning_rate(learning_rate),
    )
