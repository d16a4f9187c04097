"""Rescaling: pieces that change the length of the update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.combine import chain, precondition
from adamw_jax.corrections import bias_correction
from adamw_jax.domains import Decay, LearningRate, NonNegative, Positive
from adamw_jax.maps import abs_squared, identity, root, safe_sqrt
from adamw_jax.moments import Counter, count_up, scale_by_momentum, second_moment
from adamw_jax.transform import transformation
from adamw_jax.trees import cast, widest


class ScaleByLearningRateState(NamedTuple):
    count: Counter
    learning_rate: jax.Array


@transformation
def average(decay: Decay):
    """m̂: the bias-corrected average of g.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import average
      >>> tx = average(0.5)
      >>> first, state = tx.update(3.0, tx.init(0.0))
      >>> second, state = tx.update(6.0, state)
      >>> first.item(), second.item()
      (3.0, 5.0)

    Reference: Kingma & Ba, "Adam", 2015, algorithm 1.
    """
    return chain(scale_by_momentum(decay), bias_correction(decay))


@transformation
def rms(decay: Decay, eps: NonNegative = 1e-8):
    """√v̂ + eps: the root of the bias-corrected average of g².

    Args:
      decay: in [0, 1).
      eps: added outside the root [L/θ].

    Example:
      >>> from adamw_jax import rms
      >>> tx = rms(0.75, eps=1.0)
      >>> round(tx.update(-3.0, tx.init(0.0))[0].item(), 4)
      4.0

    Reference: Kingma & Ba, "Adam", 2015, algorithm 1.
    """
    return chain(moment=second_moment(decay), correction=bias_correction(decay), root=root(eps))


@transformation
def scale_by_rms(
    decay: Decay,
    eps: NonNegative = 1e-8,
    *,
    numerator: optax.GradientTransformation | None = None,
    correction: optax.GradientTransformation | None = None,
):
    """g -> numerator(g) / (√correction(v) + eps), v the average of g².

    Bare it is RMSProp with eps outside the root; with an average for numerator
    and both averages corrected it is Adam's direction.

    Args:
      decay: decay of v, in [0, 1).
      eps: added outside the root [L/θ].
      numerator: what is divided; None for g itself.
      correction: applied to v under the root; None for nothing.

    State: {"numerator": ..., "denominator": {"moment", "correction", "root"}}.

    Example:
      >>> from adamw_jax import scale_by_rms
      >>> tx = scale_by_rms(0.75, eps=0.0)
      >>> tx.update(-4.0, tx.init(0.0))[0].item()
      -2.0

    Reference: Hinton, Srivastava & Swersky, lecture 6e, 2012; Kingma & Ba,
    "Adam", 2015, algorithm 1.
    """
    return precondition(
        numerator or identity(),
        chain(
            moment=second_moment(decay),
            correction=correction or identity(),
            root=root(eps),
        ),
    )


@transformation(leafwise=True, equation="-learning_rate * u", traits=("learning_rate", "negative"))
def scale_by_learning_rate(learning_rate: LearningRate):
    """u -> -learning_rate * u: from a direction of ascent to a step down.

    Args:
      learning_rate: a number, an array, or a schedule from the number of
        updates before this one (0 at first) to a number.

    State: `count`, the number of updates so far; `learning_rate`, the one last
    applied (0 at first).

    Example:
      >>> from adamw_jax import scale_by_learning_rate
      >>> tx = scale_by_learning_rate(0.5)
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      -2.0
    """

    def init(params):
        return ScaleByLearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), float))

    def update(updates, state, params=None):
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        applied = cast(rate, state.learning_rate)
        new = ScaleByLearningRateState(count_up(state.count), applied)
        return jax.tree.map(lambda u: -cast(rate, u) * u, updates), new

    return optax.GradientTransformation(init, update)


@transformation(equation="u * minimum(1, max_norm / global_norm(u))", traits=("clip", "global"))
def clip_by_global_norm(max_norm: Positive):
    """u -> u * min(1, max_norm / ‖u‖), the norm taken over the whole tree.

    One scalar factor for all leaves: a short update passes unchanged, to the bit.

    Args:
      max_norm: the largest norm that passes, in the unit of u.

    Example:
      >>> from adamw_jax import clip_by_global_norm
      >>> tx = clip_by_global_norm(1.0)
      >>> tx.update({"w": 4.0}, tx.init({"w": 0.0}))[0]["w"].item()
      1.0

    Reference: Pascanu et al., "On the difficulty of training recurrent neural
    networks", 2013, algorithm 1.
    """

    def update(updates, params):
        squares = [jnp.sum(abs_squared(u)) for u in jax.tree.leaves(updates)]
        if not squares:
            return updates
        finest = widest(*(s.dtype for s in squares))
        norm = safe_sqrt(sum(s.astype(finest) for s in squares))
        limit = cast(max_norm, norm)
        factor = limit / jnp.maximum(norm, limit)
        return jax.tree.map(lambda u: cast(factor, u) * u, updates)

    return optax.stateless(update)
