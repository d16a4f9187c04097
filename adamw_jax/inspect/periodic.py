"""The periodic table: every optimizer of the package by the parts it is made of.

Nothing here is written by hand: the columns are slots of the expressions, the
bytes are counted on an abstract matrix.
"""

import ast
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax import optimizers
from adamw_jax.core.expression import made_by
from adamw_jax.core.flow import Reading, Value, interpret, slots
from adamw_jax.core.saying import saying
from adamw_jax.core.slots import parts
from adamw_jax.core.symbols import Branching, formula_of, variable
from adamw_jax.core.transformation import Transformation


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
        for name, made in vars(loaded).items():
            signature = getattr(made, "signature", inspect.Signature())
            own = getattr(made, "__module__", "") == loaded.__name__
            if own and next(iter(signature.parameters), "") == "learning_rate":
                found[name] = made
    return dict(sorted(found.items()))


def sketch(tx: Transformation) -> str:
    """An expression in few signs: sequences with arrows, sums with plus, no numbers.

    Example:
      >>> from adamw_jax import part, adamw
      >>> sketch(part(adamw(1e-3), "direction.numerator"))
      'momentum → corrected'
    """
    return _text(interpret(tx, _Text(), _Sketch()))


class _Text(Value):
    """What has happened to g so far, in few signs; or a branch of the fork that enters."""

    def __init__(self, text: str = "g", branch: bool = False):
        self.text, self.branch = text, branch

    def __getitem__(self, name):
        return _Text(name.replace("_", " "), branch=True)

    def each(self, op, values):
        texts = [_text(x) for x in values]
        names = [f"x{i}" for i in range(len(texts))]
        return _Text(_operation(op, dict(zip(names, texts, strict=True)), _is_entering(values)))


def _is_entering(values: tuple) -> bool:
    return all(isinstance(x, _Text) and x.branch for x in values)


def _text(value: Any) -> str:
    """The text of what a reading returns."""
    if isinstance(value, dict):
        return f"fork({', '.join(map(_text, value.values()))})"
    return value.text


class _Sketch(Reading):
    """The reading by words: every part in its own, from what enters it."""

    def piece(self, tx, u, path):
        inside = _passed_through(tx)
        return interpret(inside, _Text(), self) if inside else _Text(sketch_name(tx))

    def part(self, run, slot, u):
        inner = interpret(run.parts[slot], _Text(), self)
        steps = [_text(x) for x in (u, inner)]
        if isinstance(inner, dict) and steps[0] == "g":
            return inner
        return _Text(" → ".join(step for step in steps if step != "g") or "g")

    def split(self, run, u, owners):
        inner = [_text(interpret(part, _Text(), self)) for part in run.parts.values()]
        return _Text(f"{run.name}({', '.join(inner)})")


def _passed_through(tx: Transformation) -> Transformation | None:
    """The part of a piece that says it returns what that part returns, or 0 before it begins."""
    try:
        said = saying(tx)
    except (Branching, ValueError):
        return None
    if said is None or said.statements:
        return None
    result = said.result
    if isinstance(result, ast.IfExp) and ast.unparse(result.orelse) == "0":
        result = result.body
    name = getattr(result.func, "id", "") if isinstance(result, ast.Call) else ""
    return slots(tx).get(name)


def _operation(op: Callable, texts: dict[str, str], entering: bool) -> str:
    """An operation on values: a sum or a quotient where its formula is one, else by its name."""
    try:
        formula = formula_of(op(*map(variable, texts)))
    except Exception:  # it needs arrays
        formula = ast.Constant(None)
    over = formula if isinstance(formula, ast.BinOp) and isinstance(formula.op, ast.Div) else None
    above, below = (_terms(x, texts) for x in (over.left, over.right)) if over else ([], [])
    if above and below:
        return f"({_sum(above)}) / ({_sum(below)})"
    terms = _terms(formula, texts)
    if terms:
        return _sum(terms)
    name = getattr(op, "__name__", type(op).__name__).replace("_", " ")
    # Of the branches that enter a name is enough, as it is for a piece.
    return name if entering else f"{name}({', '.join(texts.values())})"


def _sum(terms: list[str]) -> str:
    return " + ".join(f"({x})" if "→" in x and len(terms) > 1 else x for x in terms)


def _terms(node: ast.expr, texts: dict[str, str]) -> list[str]:
    """The texts of a sum of values, each perhaps times a number; none if it is no such sum."""
    if isinstance(node, ast.Name) and node.id in texts:
        return [texts[node.id]]
    if not isinstance(node, ast.BinOp):
        return []
    number = lambda x: not any(isinstance(n, ast.Name) and n.id in texts for n in ast.walk(x))
    left, right = (_terms(x, texts) for x in (node.left, node.right))
    if isinstance(node.op, ast.Add):
        return left + right if left and right else []
    if isinstance(node.op, ast.Mult) and number(node.left):
        return right
    return left if isinstance(node.op, ast.Mult | ast.Div) and number(node.right) else []


def sketch_name(tx: Transformation) -> str:
    """What the table calls a piece."""
    name = made_by(tx.arguments["transform"]) if tx.is_foreign else tx.factory.__name__
    return _WORDS.get(name, name.replace("_", " "))


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
    return {"numerator", "denominator"} <= set(slots(tx))


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
    return [_row(name, make) for name, make in factories().items()]


def markdown() -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(Row._fields) + " |", "|" + "---|" * len(Row._fields)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table()]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """The text of each column."""
    return [f"{value:.1f}" if isinstance(value, float) else value for value in row]
