"""Layout: which part of an expression sees which parameter, and what it holds for it."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees, update
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.routing import routes, ways
from adamw_jax.core.slots import parts
from adamw_jax.core.transformation import Transformation


class Reach(NamedTuple):
    """A part written out, and the parameters that it sees.

    Attributes:
      path: dotted path of the part.
      piece: the piece or combinator there.
      leaves: indices of the parameters.
      stage: whether all of their update passes through it, as through a stage of
        the outermost chain or of a route.
    """

    path: str
    piece: Transformation
    leaves: tuple[int, ...]
    stage: bool

    @property
    def traits(self) -> tuple[str, ...]:
        return self.piece.factory.declared["traits"]


class Held(NamedTuple):
    """One array of state: where, and for which parameter (None for no particular one).

    Attributes:
      path: dotted path of the part that keeps it.
      field: its dotted name in the state of that part.
      leaf: index of the parameter.
      shape, dtype: its own.
      kind: class of the innermost named tuple that holds it, None if none does.
      name: its dotted name in that tuple.
    """

    path: str
    field: str
    leaf: int | None
    shape: tuple[int, ...]
    dtype: Any
    kind: type | None
    name: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def reaches(tx: Transformation, params: Any) -> list[Reach]:
    """Every part with the parameters that it sees, outermost first."""
    return list(_reaches(tx, "", params, tuple(range(len(jax.tree.leaves(params)))), True))


def _reaches(tx, path, params, leaves, stage) -> Iterator[Reach]:
    yield Reach(path, opened(tx), leaves, stage)
    found = ways(tx, params)
    for name, inner in slots(tx).items():
        way = found[name]
        chosen = tuple(leaf for leaf, flag in zip(leaves, way.flags, strict=True) if flag)
        few = trees.select(params, way.flags) if way.split else params
        here = f"{path}.{name}" if path else name
        yield from _reaches(inner, here, few, chosen, stage and way.whole)


def undecided(tx: Transformation, params: Any) -> dict[int, str]:
    """The parameters for which a rule cannot decide, each with what it says."""
    try:
        routes(tx, params)
        return {}
    except ValueError:
        pass
    found, count = {}, len(jax.tree.leaves(params))
    for i in range(count):
        try:
            routes(tx, trees.select(params, [i == j for j in range(count)]))
        except ValueError as error:
            found[i] = str(error)
    return found


def state(tx: Transformation, params: Any, *, lenient: bool = False) -> list[Held]:
    """All state of an optimizer, from its structure alone.

    State belongs to a parameter where it stands in a subtree that has the
    structure of the parameters; the rest (counts, keys) belongs to none.
    `lenient` allows routes that get no parameter."""
    with update.lenient() if lenient else contextlib.nullcontext():
        shapes = jax.eval_shape(tx.init, params)
    treedef, known = jax.tree.structure(params), {"", *parts(tx)}
    found = []
    for names, (kind, depth), leaf, x in _held(shapes, treedef, (), NOBODY):
        leaf = None if leaf is not None and _scalar(x, params) else leaf
        cut = next(n for n in range(len(names), -1, -1) if ".".join(names[:n]) in known)
        path, field, name = (".".join(x) for x in (names[:cut], names[cut:], names[depth:]))
        found.append(Held(path, field, leaf, tuple(x.shape), x.dtype, kind, name))
    return found


NOBODY = (None, 0)


def _held(node: Any, treedef: Any, names: tuple[str, ...], owner: tuple) -> Iterator[tuple]:
    """Names, the class that holds it and how deep that stands, parameter, and array."""
    columns = _columns(node, treedef)
    if columns is not None:
        for i, column in enumerate(columns):
            yield from ((names, owner, i, x) for x in jax.tree.leaves(column))
    elif jax.tree_util.all_leaves([node]):
        yield names, owner, None, node
    else:
        owner = (type(node), len(names)) if hasattr(node, "_fields") else owner
        children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        for path, child in children:
            yield from _held(child, treedef, names + trees.path_names(path), owner)


def _columns(node: Any, treedef: Any) -> list[Any] | None:
    """What a tree shaped like the parameters holds for each of them; None if it is another."""
    try:
        columns = treedef.flatten_up_to(node)
    except (ValueError, TypeError):
        return None
    is_state = lambda x: hasattr(x, "_fields") and not isinstance(x, optax.MaskedNode)
    holds_state = any(map(is_state, jax.tree.leaves(columns, is_leaf=is_state)))
    return None if not columns or holds_state else columns


def _scalar(x: Any, params: Any) -> bool:
    """Whether state that seems to belong to a lone parameter, which any tree is shaped
    like, is a count or the like."""
    number = not x.shape and all(jnp.shape(p) for p in jax.tree.leaves(params))
    return number or not jnp.issubdtype(x.dtype, jnp.inexact)
