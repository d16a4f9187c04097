"""Averaging: training at one point, evaluating at another."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.domains import Finite, LearningRate, OpenFraction
from adamw_jax.core.numerics import Counter, count_up
from adamw_jax.core.transformation import expect_parts, transformation
from adamw_jax.core.trees import cast
from adamw_jax.core.update import expect_state, init_part, update_part


class ScheduleFreeState(NamedTuple):
    count: Counter
    z: optax.Params
    weight_sum: jax.Array
    largest_rate: jax.Array
    tx: Any


def _average_point(arguments: Mapping[str, Any], state: Any, params: Any) -> Any:
    expect_state("eval_params", ScheduleFreeState, state)

    def leaf(y, z):
        b1 = cast(arguments["b1"], z)
        return ((y.astype(z.dtype) - (1 - b1) * z) / b1).astype(y.dtype)

    return jax.tree.map(leaf, params, state.z)


_EQUATION = """
if t == 1:
    z = theta
    x = theta
z = z + tx(u)
eta_max = maximum(eta_max, learning_rate)
w = t**power * eta_max**weight_power
w_sum = w_sum + w
c = w / w_sum if w_sum > 0 else 0
x = (1 - c) * x + c * z
b1 * x + (1 - b1) * z - theta
"""


@transformation(leafwise=True, equation=_EQUATION, eval_params=_average_point, traits=("wrapper",))
def schedule_free(
    tx: optax.GradientTransformation,
    learning_rate: LearningRate,
    b1: OpenFraction = 0.9,
    *,
    power: Finite = 0.0,
    weight_power: Finite = 2.0,
) -> optax.GradientTransformation:
    """Trains at y = b1 x + (1 - b1) z, where z takes the steps and x is their average.

    z <- z + tx(g);  x <- (1 - c) x + c z,  c = w / Σw,  w = t^power · max(lr)^weight_power

    The parameters that are trained are y; evaluate at x, which `eval_params`
    gives.  Only z is stored.

    Args:
      tx: the step of z, learning rate included.
      learning_rate: the one in `tx`, which weighs the average.
      b1: how close y is to the average, in (0, 1).  It may not follow a schedule:
        x is found from y and z by it.
      power: 0 weighs all steps alike, larger values the late ones more.
      weight_power: exponent of the largest learning rate so far.

    State: `z`, like the parameters; `weight_sum`; `largest_rate`; `count`; `tx`.

    Example:
      >>> from adamw_jax import eval_params, schedule_free, sgd
      >>> tx = schedule_free(sgd(0.5), 0.5)
      >>> update, state = tx.update(2.0, tx.init(1.0), 1.0)
      >>> eval_params(tx, state, 1.0 + update).item()
      0.0

    Reference: Defazio et al., "The Road Less Scheduled", 2024, algorithm 1.
    """
    expect_parts("schedule_free", {"tx": tx})

    def init(params):
        # Copies and zeros of their own: parameters and state may be donated.
        z, zero = trees.copies(params), lambda: jnp.zeros((), float)
        count = jnp.zeros((), jnp.int32)
        return ScheduleFreeState(count, z, zero(), zero(), init_part(tx, params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("schedule_free: got no parameters. Call update(grads, state, params).")
        expect_state("schedule_free", ScheduleFreeState, state)
        step, inner = update_part(tx, updates, state.tx, params, extra)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count, total = count_up(state.count), state.weight_sum
        largest = jnp.maximum(state.largest_rate, cast(rate, total))
        weight = count.astype(total.dtype) ** cast(power, total)
        weight = weight * largest ** cast(weight_power, total)
        total = total + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        def move(y, z, u):  # what the three equations above leave for y, with the new z
            c, b = cast(share, u), cast(b1, u)
            return c * (z.astype(u.dtype) - y.astype(u.dtype)) + (1 - b) * (1 - c) * u

        z = jax.tree.map(lambda z, u: z + u.astype(z.dtype), state.z, step)
        moved = jax.tree.map(move, params, z, step)
        return moved, ScheduleFreeState(count, z, total, largest, inner)

    return optax.GradientTransformationExtraArgs(init, update)
