"""Declarations: what a piece says of itself, run against what it does.

An equation is executed beside the update, trait words are tried one by one, and what
is written as elementwise is looked at element by element.  A lie is told with the
numbers; what cannot be run says why.
"""

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.core.flow import Formula, slots
from adamw_jax.core.saying import Saying, saying
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.update import init_part, update_part
from adamw_jax.inspect.contract.compare import Broken
from adamw_jax.inspect.contract.execution import (
    OF_LEAF,
    OF_MATRICES,
    OF_TREE,
    Execution,
    Leaves,
    Unknown,
    names_of,
)
from adamw_jax.inspect.contract.traits import broken_word
from adamw_jax.inspect.contract.trial import Alone, Trial, claims, matrices, stepping
from adamw_jax.pieces.factored_moments import default_blocks

PRECISION = 1e-8  # of what is computed in float64, in units of the largest number


def judged(tx: Any, params: Any, extra: Any, judge: Callable) -> tuple[int, list[str]]:
    """How many pieces keep what they declare, and why others are not judged.

    `judge(path, piece, params, extra)` returns None where nothing is declared."""
    kept, reasons = 0, []
    if not isinstance(tx, Transformation):
        return 0, ["it is no expression of this library."]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for path, piece in claims(tx):
            name = f"{piece.factory.__name__} at {path!r}" if path else piece.factory.__name__
            try:
                kept += _judged(judge, name, piece, params, extra)
            except (Alone, Unknown) as reason:
                reasons.append(f"{name}: {reason}.")
    return kept, reasons


def _judged(judge: Callable, name: str, piece: Transformation, params: Any, extra: Any) -> bool:
    """Whether there was something to judge; on the matrices alone, if it takes nothing else."""
    try:
        return judge(name, piece, params, extra) is not None
    except Alone:
        some = matrices(params)
        if not some or len(some) == len(jax.tree.leaves(params)):
            raise
        return judge(name, piece, some, extra) is not None


# --- equations -------------------------------------------------------------------------------


def equation(name: str, piece: Transformation, params: Any, extra: Any) -> bool | None:
    """Runs the equation of a piece beside its update."""
    said = saying(piece)
    if said is None:
        return None
    of_matrix = names_of(said) & OF_MATRICES
    if of_matrix:
        params = matrices(params)
        if not params or piece.arguments.get("views") is not None:
            raise Unknown("its equation is that of a matrix, and no leaf is known to be one")
    _expect_functions(said, slots(piece))
    trial = Trial(piece, params, extra, moving=True)
    parts = {slot: _Part(part, params, extra) for slot, part in slots(piece).items()}
    execution = Execution(said, piece.arguments, parts | _block_means(piece, trial))
    for i, update in enumerate(trial.updates):
        received, theta = trial.grads[i], trial.thetas[i]
        known = dict(received) if isinstance(received, dict) else {"u": received}
        if of_matrix:
            for axis, word in enumerate(("fan_in", "fan_out")):
                known[word] = Leaves(np.float64(x.shape[axis]) for x in theta)
        for part in parts.values():
            part.theta = theta
        _compare(name, trial, i + 1, execution.step(i + 1, theta=theta, **known), update)
    return True


def _expect_functions(said: Saying, parts: Mapping[str, Any]) -> None:
    """Raises where a function is called that nobody knows, before anything is run."""
    nodes = (n for part in (*said.statements, said.result) for n in ast.walk(part))
    for node in nodes:
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name and not {name} & {*OF_LEAF, *OF_TREE, *parts}:
            raise Unknown(f"the function {name!r} is not known here")


class _Part:
    """A part of a piece as a function; its state goes on when it is called."""

    def __init__(self, tx: Transformation, params: Any, extra: Callable):
        params = jax.tree.map(lambda p: jnp.asarray(p, float), params)
        self.treedef = jax.tree.structure(params)
        self.state, self.theta = init_part(tx, params), Leaves()
        update = lambda u, state, params, **extra: update_part(tx, u, state, params, extra)
        self.step = stepping(update, extra, params)

    def __call__(self, u: Leaves, t: Any = None, **keywords: Any) -> Leaves:
        tree = lambda leaves: self.treedef.unflatten(map(jnp.asarray, leaves))
        out, self.state = self.step(tree(u), self.state, tree(self.theta), **keywords)
        return Leaves(map(np.asarray, jax.tree.leaves(out)))


def _block_means(piece: Transformation, trial: Trial) -> dict[str, Callable]:
    """The means over the blocks that an argument of the piece chooses."""
    if "blocks" not in piece.arguments:
        return {}
    chosen = piece.arguments["blocks"] or default_blocks

    def means(x):
        axes = map(chosen, trial.paths, x)
        return Leaves(np.mean(v, k, keepdims=True) for v, k in zip(x, axes, strict=True))

    return {"block_means": means}


def _compare(name: str, trial: Trial, t: int, out: Any, update: Leaves) -> None:
    if isinstance(out, dict):
        raise Unknown("it returns several values")
    for i, (path, is_) in enumerate(zip(trial.paths, update, strict=True)):
        says = np.broadcast_to(out[i] if isinstance(out, Leaves) else out, is_.shape)
        with np.errstate(all="ignore"):
            gap = np.where((says == is_) | (np.isnan(says) & np.isnan(is_)), 0, abs(says - is_))
        size = np.max(np.abs(is_), initial=0, where=np.isfinite(is_))
        bad = ~(gap <= PRECISION * max(size, 1e-30))
        if np.any(bad):
            at = tuple(map(int, np.argwhere(bad)[0]))
            raise Broken(
                f"the equation of {name} gives {says[at]:.6g} where update {t} of {path!r} is "
                f"{is_[at]:.6g}."
            )


# --- words -----------------------------------------------------------------------------------


def traits(name: str, piece: Transformation, params: Any, extra: Any) -> bool | None:
    """Tries every word that a piece declares."""
    words = piece.factory.declared["traits"]
    run = functools.cache(lambda tx=piece, **stream: Trial(tx, params, extra, **stream))
    for word in words:
        why = broken_word(piece, word, run)
        if why:
            raise Broken(f"{name} is declared {word!r}, and {why}.")
    return True if words else None


# --- element by element ----------------------------------------------------------------------


def elementwise(name: str, piece: Transformation, params: Any, extra: Any) -> bool | None:
    """Looks at the elements of a formula one by one, and in another order."""
    if not isinstance(piece.body, Formula):
        return None
    if any(np.ndim(x) for x in jax.tree.leaves(piece)):
        raise Unknown("its hyperparameters are arrays")
    plain = Trial(piece, params, extra, signed=False)
    turned = Trial(piece, _reversed(params), extra, signed=False, turn=True)
    other = Trial(piece, params, extra, signed=False, first=2.0)
    for t in range(len(plain.updates)):
        rows = zip(plain.paths, plain.updates[t], turned.updates[t], other.updates[t], strict=True)
        for path, x, y, z in rows:
            for what, left, right in (
                ("in another order of the elements", x, np.ravel(y)[::-1].reshape(y.shape)),
                ("when another element grows", np.ravel(x)[1:], np.ravel(z)[1:]),
            ):
                gap = np.max(np.abs(left - right), initial=0)
                if not gap <= PRECISION * max(np.max(np.abs(left), initial=0), 1e-30):
                    raise Broken(
                        f"{name} is written as elementwise, and update {t + 1} of {path!r} differs "
                        f"by {gap:.2g} {what}."
                    )
    return True


def _reversed(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ravel(jnp.asarray(p))[::-1].reshape(jnp.shape(p)), params)
