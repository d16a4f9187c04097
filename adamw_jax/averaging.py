"""Averaging: training at one point, evaluating at another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax import trees
from adamw_jax.combine import expect_parts
from adamw_jax.domains import Finite, LearningRate, OpenFraction
from adamw_jax.moments import Counter, count_up
from adamw_jax.routing import assign, masked, routed
from adamw_jax.slots import expect_state
from adamw_jax.transform import (
    Transformation,
    foreign,
    init_part,
    lift,
    opened,
    slots,
    transformation,
    update_part,
)
from adamw_jax.trees import cast


class ScheduleFreeState(NamedTuple):
    count: Counter
    z: optax.Params
    weight_sum: jax.Array
    largest_rate: jax.Array
    tx: Any


def _average_point(arguments, state, params):
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
x = (1 - w / w_sum) * x + w / w_sum * z
b1 * x + (1 - b1) * z - theta
"""


@transformation(equation=_EQUATION, eval_params=_average_point, traits=("wrapper",))
def schedule_free(
    tx: optax.GradientTransformation,
    learning_rate: LearningRate,
    b1: OpenFraction = 0.9,
    *,
    power: Finite = 0.0,
    weight_power: Finite = 2.0,
):
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


def state_of(state: Any, name: str) -> Any:
    """The state of the part in slot `name`, from the state of what holds it."""
    if isinstance(state, dict):
        return state[name]
    return state[int(name)] if name.isdigit() else getattr(state, name)


def eval_params(tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
    """The parameters to evaluate: those that are trained, unless a part averages.

    One function for all optimizers; it finds the part that knows better.

    Args:
      tx: the optimizer.
      state: its state.
      params: the parameters it trains.

    Raises:
      ValueError: a part that averages is inside a transformation of Optax's.

    Example:
      >>> from adamw_jax import adamw, eval_params
      >>> tx = adamw(1e-3)
      >>> eval_params(tx, tx.init(0.5), 0.5)
      0.5
    """
    tx = opened(lift(tx, "eval_params"))
    own = tx.factory.declared["eval_params"]
    if own:
        return own(tx.arguments, state, params)
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    if tx.factory is foreign and _unreached(state):
        raise ValueError(
            "eval_params: schedule_free is inside a transformation of another library, which "
            "cannot be looked into. Use chain, masked, route or skip_nonfinite of adamw_jax "
            "around it, or call eval_params on it with its own state."
        )
    if tx.factory in (masked, routed):
        return _eval_routes(tx, state, params)
    for name, inner in slots(tx).items():
        if _averages(inner):
            params = eval_params(inner, state_of(state, name), params)
    return params


def _unreached(state: Any) -> bool:
    averages = lambda x: isinstance(x, ScheduleFreeState | optax.contrib.ScheduleFreeState)
    return any(map(averages, jax.tree.leaves(state, is_leaf=averages)))


def _averages(tx: Transformation) -> bool:
    """Whether any part says where to evaluate, or is another library's and may know."""
    tx = opened(tx)
    knows = tx.factory is foreign or bool(tx.factory.declared["eval_params"])
    return knows or any(map(_averages, slots(tx).values()))


def _eval_routes(tx, state, params):
    """`eval_params` where each part holds some of the leaves."""
    branches = slots(tx)
    if tx.factory is masked:
        flags = trees.mask_flags("eval_params", tx.arguments["mask"], params)
        owners = ["tx" if flag else "" for flag in flags]
    else:
        owners = assign(tx.arguments["matchers"], tuple(branches), params)
    for name, branch in branches.items():
        flags = [owner == name for owner in owners]
        chosen = eval_params(branch, state[name], trees.select(params, flags))
        params = trees.put_back(chosen, params, flags)
    return params
