"""Slots: the parts of an expression and their states, found, swapped and replaced by name."""

import contextlib
from typing import Any

import jax
import optax

from adamw_jax.core import trees
from adamw_jax.core.expression import call_with, is_node
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.transformation import Transformation, lift


def parts(tx: Transformation) -> dict[str, Transformation]:
    """Every part of an expression by its dotted path, outermost first.

    Example:
      >>> from adamw_jax import adamw, parts
      >>> list(parts(adamw(1e-3)))[:3]
      ['direction', 'direction.numerator', 'direction.numerator.0']
    """
    found: dict[str, Transformation] = {}
    for name, piece in slots(lift(tx, "parts")).items():
        found[name] = piece
        found.update({f"{name}.{path}": inner for path, inner in parts(piece).items()})
    return found


def part(tx: Transformation, path: str) -> Transformation:
    """The part of `tx` at a dotted path; the empty path is `tx` itself.

    Raises:
      KeyError: there is no such part; the message lists those there are.

    Example:
      >>> from adamw_jax import adamw, part
      >>> part(adamw(1e-3), "direction.denominator.correction")
      bias_correction(0.999)
    """
    return _find("part", tx, path)


def _find(function: str, tx: Transformation, path: str) -> Transformation:
    found = {"": lift(tx, function)} | parts(tx)
    if path not in found:
        raise KeyError(
            f"{function}: there is no {path!r} in {tx!r}. "
            f"Choose one of: {', '.join(filter(None, found))}."
        )
    return found[path]


def swap(tx: Transformation, path: str, piece: optax.GradientTransformation) -> Transformation:
    """The same expression with another piece in one slot.

    Args:
      tx: the optimizer or transformation; it is not changed.
      path: dotted names of slots, as `parts(tx)` lists them.
      piece: what to put there.

    Raises:
      KeyError: there is no such slot; the message lists those there are.
      TypeError: `piece` is not a gradient transformation.

    Example:
      >>> from adamw_jax import adam, identity, swap
      >>> swap(adam(1e-3), "direction.denominator.correction", identity()) == adam(1e-3)
      False
    """
    if not isinstance(piece, optax.GradientTransformation):
        raise TypeError(
            f"swap: {piece!r} is not a gradient transformation. Pass a piece such as identity()."
        )
    _find("swap", tx, path)  # raises the KeyError that lists the parts
    return _swap(lift(tx, "swap"), path, lift(piece, "swap"))


def _swap(tx: Transformation, path: str, piece: Transformation) -> Transformation:
    if not path:
        return piece
    if tx.composite:
        return _swap(tx.body, path, piece)
    name = next(n for n in slots(tx) if path == n or path.startswith(n + "."))
    inner = _swap(slots(tx)[name], path[len(name) + 1 :], piece)
    argument, *_ = name.split(".")

    def replaced(where: tuple[Any, ...], leaf: Any) -> Any:
        here = ".".join((argument, *trees.path_names(where)))
        return inner if here == name else leaf

    value = jax.tree_util.tree_map_with_path(replaced, tx.arguments[argument], is_leaf=is_node)
    new = Transformation(tx.factory, {**tx.arguments, argument: value})
    new.body  # noqa: B018  what no longer fits together fails here, not at the first step
    return new


def replace(tx: Transformation, path: str, **hyperparameters: Any) -> Transformation:
    """The same expression with other hyperparameters in one part.

    Args:
      tx: the optimizer or transformation; it is not changed.
      path: the part whose arguments change; "" for the outermost.
      **hyperparameters: the new values, checked as if that part were called again.

    Raises:
      KeyError: there is no such part.
      TypeError: the part takes no such argument.

    Example:
      >>> from adamw_jax import adamw, replace
      >>> replace(adamw(1e-3), "", learning_rate=3e-4)
      adamw(0.0003)
    """
    old = _find("replace", tx, path)
    new = call_with(old.factory, old.factory.signature, {**old.arguments, **hyperparameters})
    return _swap(lift(tx, "replace"), path, new)


def expand(tx: Transformation) -> Transformation:
    """The expression written out in pieces and combinators alone.

    Example:
      >>> from adamw_jax import expand, sgd
      >>> expand(sgd(0.1))
      chain(direction=identity(), learning_rate=scale_by_learning_rate(0.1))
    """
    tx = opened(lift(tx, "expand"))
    for name, piece in slots(tx).items():
        with contextlib.suppress(TypeError):  # what `scheduled` names an argument of stays a call
            tx = _swap(tx, name, expand(piece))
    return tx


def state_of(state: Any, name: str) -> Any:
    """The state of the part in slot `name`, from the state of what holds it."""
    if isinstance(state, dict):
        return state[name]
    return state[int(name)] if name.isdigit() else getattr(state, name)
