"""Distance: learning the step size from how far the parameters have come."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.domains import Decay, LearningRate, NonNegative, Positive
from adamw_jax.core.numerics import Counter, count_up, safe_sqrt, zeros
from adamw_jax.core.transformation import expect_parts, transformation
from adamw_jax.core.trees import cast
from adamw_jax.core.update import expect_state, init_part, update_part


class ByDistanceState(NamedTuple):
    count: Counter
    initial: optax.Params
    gradient_sum: optax.Updates
    correlation: jax.Array
    distance: jax.Array
    tx: Any


_EQUATION = """
if t == 1:
    d = d0
    theta_0 = theta
r = b3 * r + d**2 / d0 * learning_rate * dot(u, theta_0 - theta)
s = b3 * s + d**2 / d0 * learning_rate * u
d_old = d
if norm_1(s) > 0: d = maximum(d, growth * r / norm_1(s))
d_old * tx(d_old * u, distance=d)
"""


@transformation(equation=_EQUATION, traits=("wrapper",))
def by_distance(
    tx: optax.GradientTransformation,
    learning_rate: LearningRate,
    b3: Decay,
    *,
    d0: Positive = 1e-6,
    growth: Positive = 1.0,
) -> optax.GradientTransformation:
    """u -> d · tx(d · u), where d estimates the distance from the start to the solution.

    r <- b3 r + (d²/d0) lr ⟨g, θ₀ - θ⟩;  s <- b3 s + (d²/d0) lr g
    d <- max(d, growth · r / ‖s‖₁)

    Sums run over the whole tree.  `tx` learns the new d as the extra argument
    `distance`; the step is scaled by the old one.

    Args:
      tx: the step, learning rate included.
      learning_rate: the one in `tx`.
      b3: decay of r and s, in [0, 1).
      d0: the first estimate [θ].
      growth: multiplies every new estimate.

    State: `distance`; `initial`, the parameters at the start; `gradient_sum`
    (s), like the parameters; `correlation` (r); `count`; `tx`.

    Example:
      >>> from adamw_jax import by_distance, sgd
      >>> tx = by_distance(sgd(1.0), 1.0, 0.9, d0=0.5)
      >>> update, state = tx.update(2.0, tx.init(1.0), 1.0)
      >>> update.item(), state.distance.item()
      (-0.5, 0.5)

    Reference: Mishchenko & Defazio, "Prodigy", 2023, algorithm 4 (Adam version).
    """
    expect_parts("by_distance", {"tx": tx})

    def init(params):
        start = trees.copies(params)  # since parameters may be donated
        zero, count = jnp.zeros((), float), jnp.zeros((), jnp.int32)
        distance = jnp.asarray(d0, zero.dtype)
        return ByDistanceState(count, start, zeros(params), zero, distance, init_part(tx, params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("by_distance: got no parameters. Call update(grads, state, params).")
        expect_state("by_distance", ByDistanceState, state)
        d, decay = state.distance, cast(b3, state.distance)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        weight = d / cast(d0, d) * d * cast(rate, d)
        inner = lambda g, start, p: jnp.sum(jnp.real(jnp.conj(g) * (start - p)))
        travelled = _total(jax.tree.map(inner, updates, state.initial, params), d)
        correlation = decay * state.correlation + weight * travelled
        average = lambda s, g: cast(decay, s) * s + cast(weight, s) * g
        gradient_sum = jax.tree.map(average, state.gradient_sum, updates)
        norm = _total(jax.tree.map(lambda s: jnp.sum(jnp.abs(s)), gradient_sum), d)
        estimate = cast(growth, d) * correlation / jnp.where(norm > 0, norm, 1)
        distance = jnp.where(norm > 0, jnp.maximum(d, estimate), d)
        scaled = jax.tree.map(lambda g: cast(d, g) * g, updates)
        step, own = update_part(tx, scaled, state.tx, params, {**extra, "distance": distance})
        step = jax.tree.map(lambda u: cast(d, u) * u, step)
        count = count_up(state.count)
        new = ByDistanceState(count, state.initial, gradient_sum, correlation, distance, own)
        return step, new

    return optax.GradientTransformationExtraArgs(init, update)


def _total(tree: Any, like: jax.Array) -> jax.Array:
    return functools.reduce(
        jnp.add, (cast(x, like) for x in jax.tree.leaves(tree)), jnp.zeros((), like.dtype)
    )


@transformation(equation="sqrt(u) + distance * eps", traits=("root",))
def distance_root(eps: NonNegative = 1e-8) -> optax.GradientTransformation:
    """v -> √v + d·eps, with d from `by_distance`, whose gradients are d times larger.

    Args:
      eps: added outside the root, times d [L/θ].

    Raises:
      ValueError: it does not stand inside `by_distance`.

    Example:
      >>> from adamw_jax import part, prodigy
      >>> part(prodigy(1.0), "tx.direction.denominator")
      chain(moment=second_moment(0.999), root=distance_root())
    """

    def update(updates, state, params=None, *, distance=None, **extra):
        if distance is None:
            raise ValueError("distance_root: got no distance. Put it inside by_distance(...).")
        leaf = lambda v: safe_sqrt(v) + cast(distance, v) * cast(eps, v)
        return jax.tree.map(leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
