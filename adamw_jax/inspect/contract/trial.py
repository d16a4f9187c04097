"""Trials: one piece run alone on random streams, in float64, for what it declares.

A stream is a few gradients of size about 1, every other one positive, so that roots
have something to say.  A piece that consumes a fork is given one for each branch that
its equation names.
"""

import ast
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.core.flow import slots
from adamw_jax.core.saying import saying
from adamw_jax.core.slots import parts
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.trees import path_text
from adamw_jax.inspect.contract.execution import OF_LEAF, OF_TREE, Leaves, names_of

STEPS = 4


class Alone(Exception):
    """A part cannot be run by itself, or is not told what it receives."""


def claims(tx: Transformation) -> Iterator[tuple[str, Transformation]]:
    """Every piece of an expression, by its path, and every composite: once each."""
    seen: set[Transformation] = set()
    for path, piece in ({"": tx} | parts(tx)).items():
        while True:
            if piece not in seen:
                seen.add(piece)
                yield path, piece
            if not piece.composite:
                break
            piece = piece.body


class Trial:
    """One piece, what it is run on, and what came out, in arrays of NumPy.

    Attributes:
      branches: the names of those that it receives, if that is a fork.
      grads, thetas, updates: one `Leaves` an update; of a fork, a dict of them.
      paths: of the leaves.
      whole: whether what it returns has one array for each parameter.
    """

    def __init__(
        self,
        piece: Transformation,
        params: Any,
        extra: Callable[[Any], dict],
        *,
        moving: bool = False,
        **stream: Any,
    ):
        """`moving`: whether parameters move by the updates, as they do in training; `stream`:
        as in `_gradient`."""
        self.piece, self.moving = piece, moving
        self.branches = _branches(piece)
        wide = lambda p: jnp.asarray(np.real(p), float) * stream.get("theta", 1.0)
        params = jax.tree.map(wide, params)
        self.paths = [path_text(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        self.grads: list[Leaves | dict[str, Leaves]] = []
        self.thetas: list[Leaves] = []
        self.updates: list[Leaves] = []
        try:
            self._run(params, extra, stream)
        except Exception as error:
            raise Alone(f"run by itself it raises {type(error).__name__}") from error

    def _run(self, params: Any, extra: Any, stream: dict) -> None:
        treedef, state = jax.tree.structure(params), self.piece.init(params)
        step = stepping(self.piece.update, extra, params)
        for i in range(STEPS):
            flat = Leaves(map(np.asarray, jax.tree.leaves(params)))
            draw = lambda j, i=i, flat=flat: _gradient(flat, i, j, **stream)
            received = {name: draw(j) for j, name in enumerate(self.branches)} or draw(0)
            tree = lambda x: treedef.unflatten(map(jnp.asarray, x))
            fork = received if isinstance(received, dict) else {}
            given = {k: tree(x) for k, x in fork.items()} or tree(received)
            out, state = step(given, state, params)
            update = Leaves(map(np.asarray, jax.tree.leaves(out)))
            self.grads.append(received)
            self.thetas.append(flat)
            self.updates.append(update)
            alike = jax.tree.structure(out) == treedef
            self.whole = alike and all(map(_fits, update, flat))
            if self.moving and self.whole and all(np.all(np.isfinite(x)) for x in update):
                params = jax.tree.map(jnp.add, params, tree(update))


def stepping(update: Callable, extra: Callable[[Any], dict], params: Any) -> Callable:
    """(updates, state, params) -> the same of an update with its extra arguments.

    Compiled where these hold functions, which would be traced again at every step."""
    step = lambda u, state, params, **more: update(u, state, params, **extra(params), **more)
    return jax.jit(step) if any(map(callable, extra(params).values())) else step


def _fits(x: np.ndarray, like: np.ndarray) -> bool:
    """Whether an array has a shape, or is one number for it."""
    return x.shape in (like.shape, ())


def matrices(params: Any) -> dict[str, Any]:
    """The parameters that are matrices, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_text(path): x for path, x in leaves if jnp.ndim(x) == 2}


def _branches(piece: Transformation) -> tuple[str, ...]:
    """The branches of the fork that a piece consumes: what its equation reads and has not."""
    if piece.consumes != "fork":
        return ()
    said = saying(piece)
    if said is None:
        raise Alone("it consumes a fork, and no equation names the branches")
    own = names_of(said, ast.Store)
    known = {*own, *OF_LEAF, *OF_TREE, *piece.arguments, *slots(piece), "t", "theta"}
    nodes = (n for part in (*said.statements, said.result) for n in ast.walk(part))
    names = [n for n in nodes if isinstance(n, ast.Name) and n.id not in known]
    names.sort(key=lambda n: (n.lineno, n.col_offset))  # the first one is named first
    return tuple(dict.fromkeys(n.id for n in names))


def _gradient(
    params: Leaves,
    step: int,
    branch: int,
    *,
    scale: float = 1.0,
    powers: tuple[int, ...] = (1, 1),
    still: bool = False,
    signed: bool = True,
    turn: bool = False,
    leaf: float = 1.0,
    first: float = 1.0,
    theta: float = 1.0,
) -> Leaves:
    """One gradient of a stream.

    Args:
      scale: multiplies the stream; a branch by the power of it in `powers`.
      still: the same gradient at every update.
      signed: whether it has negative numbers, too.
      turn: whether the elements come in the opposite order.
      leaf: multiplies the first leaf; first: the first element of every leaf.
      theta: multiplies the parameters.
    """
    step = 0 if still else step
    factor = scale ** powers[min(branch, len(powers) - 1)]
    found = []
    for i, p in enumerate(params):
        g = np.asarray(np.random.default_rng((step, branch, i)).normal(size=p.shape))
        g = g if signed and (still or step % 2) else np.abs(g)
        g = g * factor * (leaf if i == 0 else 1.0)
        g.flat[:1] *= first
        found.append(np.ravel(g)[::-1].reshape(g.shape) if turn else g)
    return Leaves(found)
