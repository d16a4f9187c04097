"""State by name: what it knows, read; and one part of it, reset."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.transformation import lift
from adamw_jax.core.trees import path_names, path_text
from adamw_jax.core.wrappers import AccumulateState
from adamw_jax.pieces.eigenbasis import EigenbasisState
from adamw_jax.pieces.hessian import EstimatorState
from adamw_jax.pieces.prodigy import ByDistanceState
from adamw_jax.pieces.schedule_free import ScheduleFreeState
from adamw_jax.telemetry.metrics import learning_rates, metrics

# What is worth knowing of other states, and is one number: its name, and its field.
_NUMBERS = {
    AccumulateState: ("mini_step", "count"),
    ByDistanceState: ("distance", "distance"),
    optax.MultiStepsState: ("mini_step", "mini_step"),
}


def read(state: Any) -> dict[str, jax.Array]:
    """What a state knows that is one number: the step, the learning rate, all `metrics`.

    * `step`: the number of updates so far, that is of those that were not skipped and,
      where gradients are accumulated, of whole ones;
    * `learning_rate`: the one last applied (0 at first), where there is one.
      Several go by the shortest paths that tell them apart, those of routes:
      "muon/learning_rate", "adamw/learning_rate";
    * `distance` of Prodigy, which multiplies its learning rate; `mini_step`, the calls
      since the last update, of `accumulate` and `optax.MultiSteps`;
    * what `metrics` finds.

    A part that was reset counts less than the others; `step` is the largest.

    Args:
      state: of any optimizer, of Optax's too; or what holds one as `opt_state`,
        such as a `TrainState` or an `nnx.Optimizer`.

    Example:
      >>> from adamw_jax import muon, read
      >>> {name: float(value) for name, value in read(muon(0.02).init(0.5)).items()}
      {'step': 0.0, 'adamw/learning_rate': 0.0, 'muon/learning_rate': 0.0}
    """
    inner = getattr(state, "opt_state", state)
    rates = learning_rates(inner)
    counts = [count for _, count, _ in rates] or _fields(inner, ("gradient_step", "count"))
    counts = counts or [getattr(state, "step", None)]
    found = [leaf for count in counts for leaf in jax.tree.leaves(count)]
    out = {"step": functools.reduce(jnp.maximum, map(jnp.asarray, found))} if found else {}
    groups = _shortest([path_names(path)[:-1] for path, _, _ in rates])
    for group, (_, _, rate) in zip(groups, rates, strict=True):
        out[f"{group}/learning_rate".lstrip("/")] = jax.tree.leaves(rate)[0]
    for kind, (name, field) in _NUMBERS.items():
        held = [x for node in _nodes(inner, kind) for x in jax.tree.leaves(getattr(node, field))]
        out |= {name: held[0]} if len(held) == 1 else {}
    return metrics(inner) | out


def _nodes(tree: Any, kind: type) -> list[Any]:
    is_kind = lambda x: isinstance(x, kind)
    return [x for x in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(x)]


def _fields(tree: Any, names: tuple[str, ...]) -> list[Any]:
    """The fields of named tuples that have the first of these names that any has.

    The count of `accumulate` is one of calls, and that of updates is inside."""
    for name in names:
        kind = lambda x, name=name: (
            name in getattr(x, "_fields", ()) and not isinstance(x, AccumulateState)
        )
        nodes = filter(kind, jax.tree.leaves(tree, is_leaf=kind))
        if found := [getattr(node, name) for node in nodes]:
            return found
    return []


def _shortest(paths: list[tuple[str, ...]]) -> list[str]:
    """For every path the least that tells it from the others, dots between the names."""
    if len(paths) < 2:
        return [""] * len(paths)
    start = next(n for n, names in enumerate(zip(*paths, strict=False)) if len({*names}) > 1)
    out = []
    for path in paths:
        others = [other for other in paths if other != path]
        ends = range(start + 1, len(path) + 1)
        end = next((n for n in ends if all(o[:n] != path[:n] for o in others)), len(path))
        out.append(".".join(path[start:end]))
    return out


# States that do not begin at 0.
_OTHERWISE = (
    ByDistanceState,
    EigenbasisState,
    EstimatorState,
    ScheduleFreeState,
)


def reset(
    state: Any,
    path: str = "",
    *,
    tx: optax.GradientTransformation | None = None,
    params: Any = None,
) -> Any:
    """The state with one part as it was in the beginning.

    Args:
      state: of an optimizer.
      path: dotted names, those of slots ("direction.numerator", the name of a
        route) or of what a part keeps; "" for all of it.  A moment and the
        correction of its bias belong together: reset what holds both.
      tx, params: the optimizer and the parameters.  They are needed where the
        beginning is not 0: starting points, random keys, rotations, the initial
        value of `sum_of_squares`, and whatever this library has not made.

    Returns:
      A state of the same structure, shapes and dtypes.

    Raises:
      KeyError: there is nothing at that path.
      ValueError: the beginning is not known, or `tx` does not make such a state.
      TypeError: only one of `tx` and `params` is given.

    Example:
      >>> from adamw_jax import adamw, reset
      >>> tx = adamw(0.1)
      >>> update, state = tx.update(1.0, tx.init(0.5), 0.5)
      >>> state = reset(state, "direction.numerator")
      >>> state["direction"]["numerator"][1].count.item(), state["learning_rate"].count.item()
      (0, 1)
    """
    names = tuple(path.split(".")) if path else ()
    if (tx is None) != (params is None):
        raise TypeError("reset: got only one of tx and params. Give both or none.")
    if tx is None:
        return _replaced(state, names, _zeroed)
    begun, beginning = lift(tx, "reset").init(params), []
    _replaced(begun, names, lambda node, owner, where: beginning.append(node))
    fresh = jax.tree.leaves(beginning)

    def begin(node, owner, where):
        aval = lambda x: (jnp.shape(x), x.dtype)
        if list(map(aval, jax.tree.leaves(node))) != list(map(aval, fresh)):
            raise ValueError(
                f"reset: {tx!r} makes another state at {path!r} than this one. "
                "Pass the optimizer and parameters that the state is of."
            )
        return jax.tree.unflatten(jax.tree.structure(node), fresh)

    return _replaced(state, names, begin)


def _children(node: Any) -> tuple[dict[str, Any], Any]:
    """What a node of a tree holds, by name, and how to make the node of it."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return {path_text(path): child for path, child in pairs}, treedef


def _replaced(node: Any, names: tuple, change: Callable, owner: Any = None, where: str = "") -> Any:
    """A tree with `change(part, class of the state around it, path)` for its part at a path."""
    owner = type(node) if hasattr(node, "_fields") else owner
    if not names:
        return change(node, owner, where)
    children, treedef = _children(node)
    first, *rest = names
    if first not in children:
        raise KeyError(
            f"reset: there is no {first!r} at {where!r} of the state. "
            f"Choose one of: {', '.join(children) or '(nothing)'}."
        )
    inside = f"{where}.{first}" if where else first
    children[first] = _replaced(children[first], tuple(rest), change, owner, inside)
    return treedef.unflatten(children.values())


def _zeroed(node: Any, owner: Any, where: str) -> Any:
    """Zeros in place of all that is known to begin at 0."""
    owner = type(node) if hasattr(node, "_fields") else owner
    if not jax.tree_util.all_leaves([node]):
        children, treedef = _children(node)
        inside = f"{where}." if where else ""
        return treedef.unflatten(_zeroed(x, owner, inside + name) for name, x in children.items())
    ours = owner is not None and owner.__module__.startswith("adamw_jax.")
    starts = (getattr(x, "start", x) for x in getattr(owner, "starts", ()))  # of the tree, too
    at_zero = all(start == 0 for start in starts)
    if not (ours or hasattr(owner, "starts")) or owner in _OTHERWISE or not at_zero:
        raise ValueError(
            f"reset: {where!r} may begin at something else than 0. "
            "Call reset(state, path, tx=tx, params=params), which begins as tx.init(params) does."
        )
    return jnp.zeros_like(node)
