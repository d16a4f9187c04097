"""Coming from PyTorch: the state of its Adam, AdamW and SGD, as arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core.combinators import chain
from adamw_jax.core.routing import masked
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.trees import path_text
from adamw_jax.optimizers.adam import adamw
from adamw_jax.optimizers.adam_variants import amsgrad
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.scaling import identity, scale_by_learning_rate
from adamw_jax.state.layout import Held, state
from adamw_jax.state.transplant import Transplant, transplant

Origin = int | str | tuple[int | str, Callable[[np.ndarray], Any] | None] | None


# Their names for what ours call: an average, one of squares, its maximum.
_ADAM = {"momentum": "exp_avg", "second_moment": "exp_avg_sq", "maximum": "max_exp_avg_sq"}


_SGD = {"momentum": "momentum_buffer"}


_UNSAID = object()


def from_torch(
    state_dict: Mapping[str, Any],
    tx: optax.GradientTransformation,
    params: Any,
    names: Mapping[str, Origin],
    *,
    step: int | None = None,
) -> Transplant:
    """The state of a PyTorch optimizer, as the state of `tx`.

    What `torch.optim.AdamW`, `Adam` (also with `amsgrad`) and `SGD` keep is
    taken for the state of `adamw`, `amsgrad` and `heavy_ball`, and transplanted
    to `tx`, which may therefore be any optimizer: what means the same is kept,
    and the report says what is not.  Nothing of PyTorch is imported.

    Args:
      state_dict: `optimizer.state_dict()` with arrays in place of tensors, for
        example `jax.tree.map(numpy.asarray, optimizer.state_dict())`.
      tx: the optimizer to go on with.
      params: the parameters to go on with.
      names: for the path of every parameter ("layer/kernel") its index in
        PyTorch, or its name if the groups have `param_names`; or a pair of that
        and a function that puts its elements in order, such as
        `numpy.transpose` for the kernel of a linear layer, None for as it is;
        or None, if it is to begin again.
      step: the number of updates so far; needed for SGD, which does not count.

    Returns:
      What `transplant` returns, state and report.

    Raises:
      ValueError: the state is of another optimizer; an entry, a parameter or
        `step` is missing; shapes differ; the parameters have seen different
        numbers of updates; or a square matrix comes without saying whether it
        is to be transposed.

    Example:
      >>> import numpy as np
      >>> from adamw_jax import adamw, from_torch
      >>> group = {"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}
      >>> entry = {"step": 7.0, "exp_avg": np.ones((2, 3)), "exp_avg_sq": np.ones((2, 3))}
      >>> kept = {"state": {0: entry}, "param_groups": [group]}
      >>> params = {"kernel": np.ones((3, 2), np.float32)}
      >>> state = from_torch(kept, adamw(0.1), params, {"kernel": (0, np.transpose)}).state
      >>> state["direction"]["numerator"][1].count.item()
      7
    """
    paths = [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if set(paths) != set(names):
        path = sorted(set(paths) ^ set(names))[0]
        said = "says nothing of" if path in paths else "names no parameter:"
        raise _error(f"names {said} '{path}'", "Give one entry for every parameter's path")
    missing = [word for word in ("state", "param_groups") if word not in state_dict]
    if missing or not state_dict["param_groups"]:
        raise _error(
            f"state_dict has no {(missing or ['param_groups'])[0]!r}",
            "Pass the state_dict() of the optimizer, not of the model",
        )
    groups = list(state_dict["param_groups"])
    old_tx, words = _counterpart(groups)
    asked = {path: _pair(origin) for path, origin in names.items() if origin is not None}
    found = {
        path: _entry(state_dict["state"], groups, path, key) for path, (key, _) in asked.items()
    }
    if len(found) < len(paths):
        flags = [path in found for path in paths]
        old_tx = masked(old_tx, jax.tree.unflatten(jax.tree.structure(params), flags))
    numbers = {"count": _step(found, step), "learning_rate": _rate(groups)}
    fresh, treedef = jax.tree.flatten(old_tx.init(params))

    def filled(held: Held, like: jax.Array) -> jax.Array:
        if held.name in numbers:
            return jnp.asarray(numbers[held.name], like.dtype)
        path = paths[held.leaf or 0]
        return _array(found[path], words[held.name], path, asked[path][1], like)

    leaves = map(filled, state(old_tx, params), fresh)
    return transplant(treedef.unflatten(leaves), old_tx, tx, params)


def _pair(origin: Any) -> tuple:
    return origin if isinstance(origin, tuple) else (origin, _UNSAID)


def _rate(groups: list[Mapping[str, Any]]) -> float:
    """The learning rate last applied; 0, that of the beginning, if there are several."""
    rates = {float(group["lr"]) for group in groups}
    return rates.pop() if len(rates) == 1 else 0.0


def _error(what: str, cure: str) -> ValueError:
    return ValueError(f"from_torch: {what}. {cure}.")


def _counterpart(groups: list[Mapping[str, Any]]) -> tuple[Transformation, dict[str, str]]:
    """The optimizer of ours whose state means what PyTorch's does, and their names for it."""
    group, rate = groups[0], _rate(groups)
    adam, sgd = ("betas", "amsgrad"), ("momentum", "dampening")
    asked = next((names for names in (adam, sgd) if set(names) <= set(group)), None)
    if asked is None:
        raise _error("param_groups are not those of Adam, AdamW or SGD", "Pass one of these")
    for name in (*asked, "maximize"):
        if len({str(group.get(name)) for group in groups}) > 1:
            raise _error(f"the groups differ in {name!r}", "Import them one at a time")
    if group.get("maximize"):
        raise _error("maximize is set, so that averages are of -g", "Turn their signs and unset it")
    if asked is adam:
        return (amsgrad if group["amsgrad"] else adamw)(rate, *map(float, group["betas"])), _ADAM
    decay, gain = float(group["momentum"]), 1 - float(group["dampening"])
    if decay and not gain:
        raise _error("dampening is 1, so that momentum is of the first gradient", "Begin again")
    buffer = scale_by_momentum(decay, gain=gain) if decay else identity()
    return chain(direction=buffer, learning_rate=scale_by_learning_rate(rate)), _SGD


def _entry(state: Mapping, groups: list[Mapping], path: str, key: int | str) -> Mapping[str, Any]:
    """What PyTorch keeps for one parameter, by index or name."""
    known: dict[Any, int] = {}
    for group in groups:
        indices = _items(group["params"])
        known |= {index: index for index in indices}
        known |= dict(zip(_items(group.get("param_names", ())), indices, strict=False))
    if key not in known:
        raise _error(
            f"there is no parameter {key!r} for '{path}'",
            f"Choose one of: {', '.join(map(repr, known))}",
        )
    entry = state.get(known[key], {})
    strange = set(entry) - {*_ADAM.values(), *_SGD.values(), "step"}
    if strange:
        raise _error(f"{key!r} has {sorted(strange)[0]!r}", "Only Adam, AdamW and SGD can be read")
    return entry


def _items(names: Any) -> list[Any]:
    """Indices or names, which may be arrays like all else."""
    return [np.asarray(name).item() for name in names]


def _step(entries: Mapping[str, Mapping[str, Any]], step: int | None) -> int:
    """The number of updates that all parameters have seen."""
    steps = {path: int(entry["step"]) for path, entry in entries.items() if "step" in entry}
    if not steps and step is None:
        raise _error(
            "no parameter asked for says how many updates it has seen (SGD never does)",
            "Give their number as step=",
        )
    if step is not None and not (step >= 0 and step == int(step)):
        raise _error(f"step is {step!r}", "Give the number of updates so far")
    seen = {*steps.values(), *([] if step is None else [int(step)])}
    if len(seen) > 1:
        raise _error(
            f"the numbers of updates differ: {steps}, step={step}",
            "Give None for the parameters that should begin again",
        )
    return seen.pop()


def _array(entry: Mapping[str, Any], word: str, path: str, order: Any, like: Any) -> jax.Array:
    """One array of theirs in the order of ours; `order` is a function, None, or not given."""
    x = entry.get(word)
    if x is None:
        raise _error(
            f"there is no {word!r} for '{path}', which was never updated",
            f"Give None for '{path}' to let it begin again",
        )
    x = np.asarray(x)
    sizes = [size for size in like.shape if size > 1]
    if order is _UNSAID and len(set(sizes)) < len(sizes):
        raise _error(
            f"'{path}' has the shape {like.shape} in any order of its axes",
            "Give a pair: (index, numpy.transpose) for a linear layer, (index, None) as it is",
        )
    x = order(x) if callable(order) else x
    if x.shape != like.shape:
        raise _error(
            f"'{path}' has the shape {like.shape}, and {word!r} {x.shape}",
            "Give a pair (index, function) that puts the axes in order, such as numpy.transpose",
        )
    return jnp.asarray(x, like.dtype)
