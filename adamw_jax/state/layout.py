"""Leaves: which part of an expression sees which parameter, and what it holds for it."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.combinators import chain
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.routing import assign, masked, routed, routes
from adamw_jax.core.slots import part, parts, swap
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.wrappers import scheduled


class Reach(NamedTuple):
    """A part written out, and the parameters that it sees.

    Attributes:
      path: dotted path of the part.
      piece: the piece or combinator there.
      leaves: indices of the parameters.
      stage: whether all of the update passes through it, as a stage of the
        outermost chain or of a route.
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
    piece = opened(tx)
    yield Reach(path, piece, leaves, stage)
    wraps = {masked, routed, scheduled, chain}
    stage = stage and (piece.factory in wraps or "wrapper" in piece.factory.declared["traits"])
    for name, inner in slots(piece).items():
        flags = _flags(piece, name, params)
        chosen = tuple(leaf for leaf, flag in zip(leaves, flags, strict=True) if flag)
        here = f"{path}.{name}" if path else name
        yield from _reaches(inner, here, trees.select(params, flags), chosen, stage)


def _flags(piece: Transformation, name: str, params: Any) -> list[bool]:
    """Which of the parameters the part of a combinator in slot `name` sees."""
    if piece.factory is routed:
        owners = assign(piece.arguments["matchers"], tuple(slots(piece)), params)
        return [owner == name for owner in owners]
    if piece.factory is masked:
        return trees.mask_flags("masked", piece.arguments["mask"], params)
    return [True] * len(jax.tree.leaves(params))


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


def lenient(tx: Transformation) -> Transformation:
    """The same expression with every route allowed to get no parameter."""
    for path in ("", *parts(tx)):
        piece = opened(part(tx, path))
        if piece.factory is routed:
            arguments = {**piece.arguments, "optional": tuple(slots(piece))}
            tx = swap(tx, path, Transformation(routed, arguments))
    return tx


def state(tx: Transformation, params: Any) -> list[Held]:
    """All state of an optimizer, from its structure alone.

    State belongs to a parameter where it stands in a subtree that has the
    structure of the parameters; the rest (counts, keys) belongs to none."""
    treedef, known = jax.tree.structure(params), {"", *parts(tx)}
    found = []
    for names, (kind, depth), leaf, x in _held(
        jax.eval_shape(tx.init, params), treedef, (), NOBODY
    ):
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
