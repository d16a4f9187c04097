"""The periodic table: every optimizer of the package by the parts it is made of.

Nothing here is written by hand: the columns are slots of the expressions, the
bytes are counted on an abstract matrix.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax import optimizers
from adamw_jax.core.combinators import chain, fork, interpolate, join, merge, pick, precondition
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.slots import parts
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.wrappers import delay


class Row(NamedTuple):
    """One optimizer: the pieces in each column, and its state in bytes a parameter."""

    optimizer: str
    before: str
    numerator: str
    denominator: str
    basis: str
    after: str
    decay: str
    bytes: float


def factories() -> dict[str, Callable]:
    """Every optimizer of the package by name: the factories whose first argument is the rate."""
    found = {}
    for module in pkgutil.iter_modules(optimizers.__path__):
        loaded = importlib.import_module(f"{optimizers.__name__}.{module.name}")
        for name, factory in vars(loaded).items():
            signature = getattr(factory, "signature", inspect.Signature())
            own = getattr(factory, "__module__", "") == loaded.__name__
            if own and next(iter(signature.parameters), "") == "learning_rate":
                found[name] = factory
    return dict(sorted(found.items()))


def sketch(tx: Transformation) -> str:
    """An expression in few signs: sequences with arrows, sums with plus, no numbers.

    Example:
      >>> from adamw_jax import part, adamw
      >>> sketch(part(adamw(1e-3), "direction.numerator"))
      'momentum → corrected'
    """
    tx = opened(tx)
    inner = [sketch(piece) for piece in slots(tx).values()]
    if tx.factory is chain:
        return " → ".join(text for text in inner if text != "g") or "g"
    if tx.factory is join:
        return " + ".join(f"({text})" if "→" in text else text for text in inner)
    if tx.factory is interpolate:
        return f"{inner[0]} + g"
    if tx.factory is fork:
        return "fork(" + ", ".join(inner) + ")"
    if tx.factory is precondition:
        return f"({inner[0]}) / ({inner[1]})"
    if tx.factory is pick:
        return tx.arguments["name"].replace("_", " ")
    if tx.factory is merge:
        return tx.arguments["op"].__name__
    if tx.factory is delay:
        return inner[0]
    return sketch_name(tx)


def sketch_name(tx: Transformation) -> str:
    """What the table calls a piece."""
    return _WORDS.get(tx.factory.__name__, tx.factory.__name__.replace("_", " "))


_WORDS = {  # where the piece has a shorter name in a table than in code
    "identity": "g",
    "scale_by_momentum": "momentum",
    "bias_correction": "corrected",
    "root_bias_correction": "corrected",
    "add_decoupled_weight_decay": "decoupled",
    "add_l2_gradient": "L2",
    "proximal_decay": "proximal",
    "shrink_after": "after the step",
    "scale_by_shape": "scale by shape",
}


def _row(name: str, factory: Callable) -> Row:
    tx = factory(1.0)
    wrapper, found = "", {"": tx} | parts(tx)
    if "muon" in found:  # the row tells of its matrices
        found = {path[5:]: piece for path, piece in found.items() if path.startswith("muon")}
    elif "tx" in found:  # something wrapped around an ordinary step
        wrapper = sketch_name(tx.body)
        found = {path[3:]: piece for path, piece in found.items() if path.startswith("tx")}
    quotient = next((path for path, piece in found.items() if _is_quotient(piece)), "direction")
    at = lambda slot: sketch(found[slot]) if slot in found else ""
    numerator = at(f"{quotient}.numerator") or at("direction")
    before, after = _around(quotient, list(found))
    shown = lambda path: path.split(".")[-1] not in _ELSEWHERE and at(path) != "g"
    rest = lambda paths: [at(path) for path in paths if shown(path)]
    decay = next((at(path) for path in found if path.split(".")[-1] == "weight_decay"), "")
    return Row(
        optimizer=name,
        before=" → ".join(rest(before)),
        numerator=numerator,
        denominator=at(f"{quotient}.denominator"),
        basis=at(f"{quotient}.basis"),
        after=" → ".join(filter(None, [*rest(after), wrapper])),
        decay=decay,
        bytes=state_bytes(tx),
    )


def _around(path: str, paths: list[str]) -> tuple[list[str], list[str]]:
    """The slots before and after one, beside it or beside what holds it, in order."""
    before: list[str] = []
    after: list[str] = []
    while path:
        holder = path.rpartition(".")[0]
        beside = [other for other in paths if other and other.rpartition(".")[0] == holder]
        place = beside.index(path)
        before, after = beside[:place] + before, after + beside[place + 1 :]
        path = holder
    return before, after


_ELSEWHERE = ("weight_decay", "learning_rate", "start")  # slots with a column of their own, or none


def _is_quotient(tx: Transformation) -> bool:
    tx = opened(tx)
    return tx.factory is precondition


def state_bytes(tx: Transformation, shape: tuple[int, ...] = (1024, 1024)) -> float:
    """Bytes of state for each float32 parameter of a hidden matrix.

    Example:
      >>> from adamw_jax import adamw
      >>> round(state_bytes(adamw(1e-3)), 1)
      8.0
    """
    params = {"hidden": jax.ShapeDtypeStruct(shape, jnp.float32)}
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / math.prod(shape)


def table() -> list[Row]:
    """A row for every optimizer of the package."""
    return [_row(name, factory) for name, factory in factories().items()]


def markdown() -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(Row._fields) + " |", "|" + "---|" * len(Row._fields)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table()]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """The text of each column."""
    return [f"{value:.1f}" if isinstance(value, float) else value for value in row]
