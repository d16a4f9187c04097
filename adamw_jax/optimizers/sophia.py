"""Sophia: momentum divided by curvature, clipped."""

from typing import Any

import optax

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Count, Decay, LearningRate, NonNegative
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.clipping import clip
from adamw_jax.pieces.hessian import curvature, gauss_newton_bartlett, hutchinson
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.scaling import floor, scale
from adamw_jax.pieces.weight_decay import descend


@transformation
def sophia_h(
    learning_rate: LearningRate,
    b1: Decay = 0.96,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 1e-1,
    mask: Any = None,
    *,
    gamma: NonNegative = 0.01,
    every: Count = 10,
    estimator: optax.GradientTransformation | None = None,
) -> Transformation:
    """θ <- θ - lr (clip(m / max(γ h, eps), 1) + λθ), h the average of curvature.

    `update` takes the loss: `tx.update(grads, state, params, obj_fn=loss)`,
    where `loss(params)` is the scalar loss on the current batch.

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      b1: decay of m, the average of g, which is not bias-corrected.
      b2: decay of h.
      eps: least value of γ h.
      weight_decay: decoupled λ [1/θ], not clipped.
      mask: True where to decay; None decays every leaf.
      gamma: γ; the smaller, the more coordinates take the clipped step.
      every: updates from one estimate to the next.
      estimator: a transformation that returns diagonal curvature; None for
        `hutchinson()`.

    Example:
      >>> from adamw_jax import sophia_h
      >>> tx = sophia_h(0.1, weight_decay=0.0)
      >>> loss = lambda theta: 0.2 * theta**2
      >>> round(tx.update(0.2, tx.init(0.5), 0.5, obj_fn=loss)[0].item(), 6)
      -0.1

    Reference: Liu et al., "Sophia", 2023, algorithm 3 with algorithm 1.
    """
    denominator = chain(
        moment=curvature(estimator or hutchinson(), b2, every=every),
        scale=scale(gamma),
        floor=floor(eps),
    )
    direction = precondition(scale_by_momentum(b1), denominator)
    return descend(direction, learning_rate, weight_decay, mask, after=clip(1.0))


@transformation
def sophia_g(
    learning_rate: LearningRate,
    b1: Decay = 0.96,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 1e-1,
    mask: Any = None,
    *,
    gamma: NonNegative = 0.05,
    every: Count = 10,
    estimator: optax.GradientTransformation | None = None,
) -> Transformation:
    """`sophia_h` with the Gauss-Newton-Bartlett estimator, for losses on classes.

    `update` takes the logits: `tx.update(grads, state, params,
    logits_fn=logits)`, where `logits(params)` are [..., classes] on the current
    batch.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask, gamma, every: as in `sophia_h`.
      estimator: None for `gauss_newton_bartlett()`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import sophia_g
      >>> tx = sophia_g(0.1, weight_decay=0.0)
      >>> logits = lambda theta: theta * jnp.array([[1.0, -1.0]])
      >>> round(tx.update(0.2, tx.init(0.5), 0.5, logits_fn=logits)[0].item(), 6)
      -0.1

    Reference: Liu et al., "Sophia", 2023, algorithm 3 with algorithm 2.
    """
    return sophia_h(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        gamma=gamma,
        every=every,
        estimator=estimator or gauss_newton_bartlett(),
    )
