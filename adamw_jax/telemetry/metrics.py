"""Telemetry: what an optimizer does, kept in its own state.

`probe` is a piece that measures what passes through it, `observe` (in
`adamw_jax.observe`) wraps an optimizer, `metrics` collects what both have
measured from any state tree.

Everything measured is a scalar in the state, there from `init` on, so it goes
wherever the state goes: through `scan`, `vmap`, donation and checkpoints.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Count
from adamw_jax.core.numerics import Counter, abs_squared, count_up, safe_sqrt
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import path_text
from adamw_jax.pieces.skip_nonfinite import SkipNonfiniteState


class Statistics(NamedTuple):
    rms: jax.Array
    largest: jax.Array
    nonfinite: jax.Array


class ProbeState(NamedTuple):
    count: Counter
    statistics: dict[str, Statistics]


class Readings(NamedTuple):
    grad_rms: jax.Array
    update_rms: jax.Array
    param_rms: jax.Array
    update_to_param: jax.Array
    cosine: jax.Array
    grad_nonfinite: jax.Array
    update_nonfinite: jax.Array
    learning_rate: jax.Array | None  # None where there is no such thing
    clip_factor: jax.Array | None
    clip_fraction: jax.Array | None


class ObserveState(NamedTuple):
    count: Counter
    overall: Readings
    routes: dict[str, Readings]
    tx: Any


def zero() -> jax.Array:
    return jnp.zeros((), float)


def scalar(x: jax.Array) -> jax.Array:
    return x.astype(float)


def _statistics(tree: Any) -> Statistics:
    leaves = jax.tree.leaves(tree)
    size = max(sum(x.size for x in leaves), 1)
    squares = [scalar(jnp.sum(abs_squared(x))) for x in leaves]
    total = functools.reduce(jnp.add, squares, zero())
    largest = (scalar(jnp.max(jnp.abs(x), initial=0)) for x in leaves)
    bad = (scalar(~jnp.isfinite(x)) for x in squares)
    return Statistics(
        rms=safe_sqrt(total / size),
        # Of a sharded array a maximum may lose a NaN, a sum never does.
        largest=jnp.where(jnp.isnan(total), total, functools.reduce(jnp.maximum, largest, zero())),
        nonfinite=functools.reduce(jnp.add, bad, zero()),
    )


def is_always(every: Any) -> bool:
    """Whether every update is measured; a number that is traced may be any."""
    return isinstance(every, int) and every == 1


def when_due(due: jax.Array, every: int, measure: Any, old: Any, *operands: Any) -> Any:
    """`measure(*operands)` when it is due, else `old`; without a conditional if it always is."""
    if is_always(every):
        return measure(*operands)
    return jax.lax.cond(due, lambda old, *xs: measure(*xs), lambda old, *xs: old, old, *operands)


@transformation(equation="u", traits=("linear",))
def probe(name: str, every: Count = 1) -> optax.GradientTransformation:
    """u -> u, and keeps statistics of u: RMS, largest magnitude, number of non-finite arrays.

    Read them with `metrics(state)`, as "<name>/rms", "<name>/largest" and
    "<name>/nonfinite" (an element is not finite, or too large to be squared).
    Between two measurements it costs nothing where u is
    an array anyway (a gradient); in the midst of arithmetic that XLA fuses, u
    has to be written to memory for it.

    Args:
      name: what to call the statistics.
      every: k: measures at updates 1, 1 + k, 1 + 2k, ...

    State: `statistics`, scalars that are 0 at first, in a dict by name;
    `count`, the number of updates so far.

    Example:
      >>> from adamw_jax import chain, metrics, probe, scale
      >>> tx = chain(scale(2.0), probe("doubled"))
      >>> update, state = tx.update(3.0, tx.init(0.0))
      >>> metrics(state)["doubled/rms"].item()
      6.0
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"probe: name is {name!r}. It must be a string that is not empty.")

    def init(params):
        statistics = Statistics(*(zero() for _ in Statistics._fields))
        return ProbeState(jnp.zeros((), jnp.int32), {name: statistics})

    def update(updates, state, params=None):
        due, old = state.count % every == 0, state.statistics[name]
        new = when_due(due, every, _statistics, old, updates)
        return updates, ProbeState(count_up(state.count), {name: new})

    return optax.GradientTransformation(init, update)


_KINDS = (ProbeState, ObserveState, SkipNonfiniteState)


def _own(node: Any) -> dict[str, Any]:
    """What one state has measured."""
    if isinstance(node, SkipNonfiniteState):
        return {"skipped": node.skipped, "skipped_in_a_row": node.in_a_row}
    if isinstance(node, ProbeState):
        groups: dict = node.statistics
    else:
        groups = {"": node.overall, **node.routes}
    return {
        f"{group}/{field}".lstrip("/"): value
        for group, readings in groups.items()
        for field, value in readings._asdict().items()
    }


def _found(state: Any, path: tuple = ()) -> Iterator[tuple[tuple, dict[str, Any]]]:
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, _KINDS))
    for where, node in nodes:
        if isinstance(node, _KINDS):
            yield (*path, *where), _own(node)
            if not isinstance(node, ProbeState):
                inner = (*path, *where, jax.tree_util.GetAttrKey("tx"))
                yield from _found(node.tx, inner)


def learning_rates(state: Any) -> list[tuple[tuple, Any, Any]]:
    """Path, count and last value of every learning rate that a state knows of."""
    injected = lambda x: "learning_rate" in getattr(x, "hyperparams", ())  # by Optax
    own = lambda x: {"count", "learning_rate"} <= set(getattr(x, "_fields", ()))
    known = lambda x: own(x) or injected(x)
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=known):
        if known(x):
            rate = x.hyperparams["learning_rate"] if injected(x) else x.learning_rate
            found.append((path, x.count, rate))
    return found


def metrics(state: Any) -> dict[str, jax.Array]:
    """What every `probe`, `observe` and `skip_nonfinite` in a state has measured, by name.

    Finds them anywhere in any tree: in the state of `optax.chain` or
    `optax.MultiSteps`, in `TrainState.opt_state`, in `nnx.Optimizer.opt_state`.
    The values stay on their device until they are read; stacked states (from
    `vmap` or `scan`) give stacked values.

    Args:
      state: a tree.

    Returns:
      A flat dict of scalars.  Where two measurements share a name, each goes
      by its path in the tree and that name.

    Example:
      >>> from adamw_jax import adamw, metrics, observe
      >>> tx = observe(adamw(1e-3))
      >>> update, state = tx.update(2.0, tx.init(1.0), 1.0)
      >>> {k: round(v.item(), 4) for k, v in metrics(state).items() if k.endswith("rms")}
      {'grad_rms': 2.0, 'update_rms': 0.001, 'param_rms': 1.0}
    """
    found = [
        (path, name, leaf)
        for path, own in _found(state)
        for name, value in own.items()
        for leaf in jax.tree.leaves(value)  # none of None, the array of a flax Variable
    ]
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else f"{path_text(path)}/{name}": leaf
        for path, name, leaf in found
    }
