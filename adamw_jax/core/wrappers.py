"""Timing: parts that begin late or run now and then, and hyperparameters that change."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import numerics
from adamw_jax.core.domains import Count
from adamw_jax.core.numerics import Counter, count_up, zeros
from adamw_jax.core.slots import part, parts, replace
from adamw_jax.core.transformation import Transformation, expect_parts, transformation
from adamw_jax.core.trees import cast
from adamw_jax.core.update import expect_state, holds_python, init_part, is_traced, update_part


class TimedState(NamedTuple):
    count: Counter
    tx: Any


@transformation(leafwise=True, equation="tx(u, t=t - steps) if t > steps else 0")
def delay(tx: optax.GradientTransformation, steps: Count = 1) -> optax.GradientTransformation:
    """u -> 0 for the first `steps` updates, then tx(u), which has seen nothing before.

    Args:
      tx: what begins late.
      steps: how many updates it misses.

    State: `count`, the number of updates so far; `tx`.

    Example:
      >>> from adamw_jax import delay, identity
      >>> tx = delay(identity())
      >>> update, state = tx.update(3.0, tx.init(0.0))
      >>> update.item(), tx.update(3.0, state)[0].item()
      (0.0, 3.0)
    """
    expect_parts("delay", {"tx": tx})

    def init(params: Any) -> TimedState:
        return TimedState(jnp.zeros((), jnp.int32), init_part(tx, params))

    def update(
        updates: Any, state: TimedState, params: Any = None, **extra: Any
    ) -> tuple[Any, TimedState]:
        expect_state("delay", TimedState, state)
        begun = state.count >= steps
        out, new = update_part(tx, updates, state.tx, params, extra)
        choose = lambda x, y: jnp.where(begun, x, y)
        out = jax.tree.map(lambda u: choose(u, 0), out)
        return out, TimedState(count_up(state.count), jax.tree.map(choose, new, state.tx))

    return optax.GradientTransformationExtraArgs(init, update)


class AccumulateState(NamedTuple):
    count: Counter
    mean: Any
    tx: Any


_MEAN = """
u_mean = u_mean + (u - u_mean) / ((t - 1) % every + 1)
tx(u_mean, t=t / every) if t % every == 0 else 0
"""


@transformation(equation=_MEAN, traits=("wrapper",))
def accumulate(tx: optax.GradientTransformation, every: Count) -> optax.GradientTransformation:
    """tx(mean of the last `every` updates) at every `every`-th call, 0 at the others.

    mean <- mean + (u - mean) / n,  n = 1 ... every;  then tx(mean), and again from 0

    The step of a batch that is `every` times as large, for a loss that is a mean. `tx`
    runs once in `every` calls, and knows of no others: a schedule in it counts updates,
    not calls.  Put it around all of an optimizer; what stands outside of it, such as a
    weight decay, acts at every call.  Parameters and extra arguments are those of the
    last call.  Under `vmap` over `count` a conditional is a select, and `tx` runs always.

    Args:
      tx: the optimizer.
      every: calls for one update, at least 1.

    State: `count`, the calls since the last update; `mean`, of what they were given, like
    the parameters and in at least float32; `tx`.

    Example:
      >>> from adamw_jax import accumulate, sgd
      >>> tx = accumulate(sgd(0.5), 2)
      >>> update, state = tx.update(3.0, tx.init(0.0))
      >>> update.item(), tx.update(1.0, state)[0].item()
      (0.0, -1.0)

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.
    """
    expect_parts("accumulate", {"tx": tx})

    def init(params: Any) -> AccumulateState:
        return AccumulateState(jnp.zeros((), jnp.int32), zeros(params), init_part(tx, params))

    def update(
        updates: Any, state: AccumulateState, params: Any = None, **extra: Any
    ) -> tuple[Any, AccumulateState]:
        expect_state("accumulate", AccumulateState, state)
        count = count_up(state.count)
        parts(tx)  # builds every body here, lest the conditional keeps one for itself
        step = lambda u, m: m + (u - m) / cast(count, jnp.real(m))
        mean, kept = numerics.accumulate("accumulate", step, updates, state.mean)

        def now(mean: Any, kept: Any, own: Any) -> tuple[Any, AccumulateState]:
            out, new = update_part(tx, mean, own, params, extra)
            out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
            blank = jax.tree.map(jnp.zeros_like, kept)
            return out, AccumulateState(jnp.zeros_like(count), blank, new)

        def later(mean: Any, kept: Any, own: Any) -> tuple[Any, AccumulateState]:
            return jax.tree.map(jnp.zeros_like, updates), AccumulateState(count, kept, own)

        given = mean, kept, state.tx
        if holds_python(tx, extra) and not is_traced((updates, state, params, extra)):
            choose = lambda x, y: jnp.where(count >= every, x, y)
            chosen: tuple[Any, AccumulateState] = jax.tree.map(choose, now(*given), later(*given))
        else:
            chosen = jax.lax.cond(count >= every, now, later, *given)
        return chosen

    return optax.GradientTransformationExtraArgs(init, update)


def _now(arguments: Mapping[str, Any], value: Callable[..., Any]) -> dict[str, Transformation]:
    """The part of `scheduled` with its hyperparameters as they are at an update."""
    given = {k: value(k, x) for k, x in arguments.items() if k not in ("tx", "path")}
    return {"tx": replace(arguments["tx"], arguments["path"], **given)}


@transformation(equation="tx(u)", now=_now)
def scheduled(
    tx: optax.GradientTransformation, path: str = "", /, **schedules: Callable[..., Any]
) -> optax.GradientTransformation:
    """Lets hyperparameters of any part follow a schedule.

    An expression is data, so this is no more than `replace(tx, path,
    name=schedule(t - 1))` at every update.

    Args:
      tx: the transformation.
      path: the part whose hyperparameters change; "" for `tx` itself.
      **schedules: functions of the number of earlier updates, by the name of
        the hyperparameter.

    State: `count`, the number of updates so far; `tx`.

    Raises:
      KeyError: there is no such part.
      TypeError: the part has no such hyperparameter.

    Example:
      >>> from adamw_jax import linear_warmup, scale, scheduled
      >>> tx = scheduled(scale(1.0), factor=linear_warmup(1.0, 2))
      >>> update, state = tx.update(4.0, tx.init(0.0))
      >>> update.item(), tx.update(4.0, state)[0].item()
      (0.0, 2.0)
    """
    expect_parts("scheduled", {"tx": tx})
    known = part(tx, path)
    numbers = {k: x for k, x in known.arguments.items() if not isinstance(x, Transformation)}
    for name, function in schedules.items():
        if name not in numbers or not callable(function):
            raise TypeError(
                f"scheduled: {known.factory.__name__} has no {name!r} that {function!r} could set. "
                f"Give a schedule for one of: {', '.join(numbers) or 'the parts inside it'}."
            )
    # What stands around the part may not outlive the change: now, not at the first step.
    replace(tx, path, **{name: numbers[name] for name in schedules})

    def init(params: Any) -> TimedState:
        return TimedState(jnp.zeros((), jnp.int32), init_part(tx, params))

    def update(
        updates: Any, state: TimedState, params: Any = None, **extra: Any
    ) -> tuple[Any, TimedState]:
        expect_state("scheduled", TimedState, state)
        now = _now({"tx": tx, "path": path, **schedules}, lambda name, at: at(state.count))
        out, new = update_part(now["tx"], updates, state.tx, params, extra)
        return out, TimedState(count_up(state.count), new)

    return optax.GradientTransformationExtraArgs(init, update)
