"""Sayings: what a piece does, as data.

An elementwise piece says it by its formula, run on symbols; any other piece by the
equation that it declares.  Either way it is a few lines of Python, which the readings
read: `equations` prints them, lint propagates units and signs through them, `check`
runs them against the update.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from adamw_jax.core.flow import Formula, PerTree
from adamw_jax.core.symbols import Branching, Symbol, formula_of, variable


class Saying(NamedTuple):
    """What a piece does: assignments, each to one name, and the value passed on.

    In it `u` is what the piece receives (or the names of the branches, if that is a
    fork), `theta` the parameter, `t` = 1, 2, ... the number of the update; other names
    are hyperparameters, or state once they are assigned."""

    statements: list[ast.stmt]
    result: ast.expr


# What fields are called in papers; all others are called what they are.
LETTERS = {
    "momentum": "m",
    "second_moment": "v",
    "sum_of_squares": "s",
    "maximum": "u_max",
    "previous": "u_prev",
    "product": "P",
}


def named(name: str, value: Any) -> Any:
    """The value itself; where it is printed, it stands on a line of its own by this name.

    `u_hat` is named after what the piece receives, as `m_hat` is after m."""
    if isinstance(value, Symbol):
        value.formula.called = name  # type: ignore[attr-defined]
    return value


def saying(tx: Any) -> Saying | None:
    """What a piece says of itself, None where it says nothing; kept with the expression.

    Raises:
      Branching: its formula branches on values.
      ValueError: it declares what is no equation.
    """
    if "saying" not in tx.__dict__:
        declared = tx.factory.declared.get("equation")
        text = declared(tx.arguments) if callable(declared) else declared
        if text is not None:
            tx.__dict__["saying"] = parsed(tx.factory.__name__, text)
        else:
            by_formula = isinstance(tx.body, Formula)
            tx.__dict__["saying"] = _by_formula(tx) if by_formula else None
    known: Saying | None = tx.__dict__["saying"]
    return known


def understood(tx: Any) -> Saying | None:
    """What a piece says of itself; None also where it says what no reading understands."""
    try:
        return saying(tx)
    except (Branching, ValueError):
        return None


# --- from a formula ----------------------------------------------------------------------


def _by_formula(tx: Any) -> Saying | None:
    """A formula run on symbols; None where it needs more than arithmetic."""
    body = tx.body
    letter = {field: LETTERS.get(field, field) for field in body.starts}
    known = {name: variable(letter.get(name, name)) for name in body.reads}
    try:
        formula = body.rebuilt({k: _symbol(k, v) for k, v in body.arguments.items()})
        out = formula(variable("u"), **known)
    except Branching as error:
        raise Branching(f"{tx.factory.__name__}: {error}") from None
    except Exception:
        return None
    out, new = out if isinstance(out, tuple) else (out, {})
    # What is kept but not read, and is one of the arguments, is no state to print.
    fields = {letter[k]: x for k, x in new.items() if k not in body.arguments}
    if not all(isinstance(x, float | int) for x in (out, *fields.values())):
        return None
    statements, result = _Ordered({k: formula_of(x) for k, x in fields.items()}).of(formula_of(out))
    return Saying([*_starts(body.starts, letter), *statements], result)


def _symbol(name: str, value: Any) -> Any:
    """A hyperparameter by its name; what is no number stays as it is."""
    if isinstance(value, float):
        return Symbol(value, ast.Name(name))
    number = hasattr(value, "dtype") or (callable(value) and not isinstance(value, type))
    return variable(name) if number else value


def _starts(starts: Mapping[str, Any], letter: Mapping[str, str]) -> Iterator[ast.stmt]:
    """State that does not start at 0."""
    numbers = {k: v.start if isinstance(v, PerTree) else v for k, v in starts.items()}
    lines = [
        _assign(letter[k], ast.Name(v) if isinstance(v, str) else ast.Constant(v))
        for k, v in numbers.items()
        if isinstance(v, str) or v != 0
    ]
    if lines:
        yield ast.If(ast.Compare(ast.Name("t"), [ast.Eq()], [ast.Constant(1)]), lines, [])


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value, lineno=0)


class _Ordered:
    """Puts named values and state into lines, each after what it needs.

    A value is known by its identity: wherever it stands in another, its name is
    written.  State that is needed as it was before is kept under `<name>_old`."""

    def __init__(self, fields: Mapping[str, ast.expr]):
        self.fields = fields
        self.lines: list[ast.stmt] = []
        self.names: dict[int, str] = {}  # of the values that have been assigned
        self.old: dict[str, str] = {}  # how state is called that has been assigned

    def of(self, result: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
        values: dict[int, tuple[str, Any]]
        values = {id(x): (name, x) for name, x in self.fields.items() if _is_formula(x)}
        for node in (n for x in (result, *self.fields.values()) for n in ast.walk(x)):
            if hasattr(node, "called"):
                values.setdefault(id(node), (node.called, node))
        order = self._sorted(values, result)
        for i, (name, value) in enumerate(order):
            later = [*(x for _, x in order[i + 1 :]), result]
            kept = name in self.fields and any(self._reads(x, name, value) for x in later)
            if kept:
                self.lines.append(_assign(f"{name}_old", ast.Name(name)))
            self.lines.append(_assign(name, self._written(value)))
            if kept:
                self.old[name] = f"{name}_old"
            if _is_formula(value):
                self.names[id(value)] = name
        return self.lines, self._written(result)

    def _sorted(
        self, values: dict[int, tuple[str, ast.expr]], result: ast.expr
    ) -> list[tuple[str, ast.expr]]:
        """Inner values before outer ones, and what needs no new state before the state."""
        order: list[tuple[str, ast.expr]] = []
        plain = [item for item in self.fields.items() if not _is_formula(item[1])]

        def place(node: ast.AST) -> None:
            for child in ast.iter_child_nodes(node):
                place(child)
            if id(node) in values and values[id(node)] not in order:
                order.append(values[id(node)])

        new = {id(x) for x in self.fields.values()}
        early = [x for _, x in values.values() if not any(id(n) in new for n in ast.walk(x))]
        for node in (*early, *(x for x in self.fields.values() if _is_formula(x)), result):
            place(node)
        return [*order, *plain]

    def _reads(self, node: ast.AST, name: str, value: ast.expr) -> bool:
        """Whether a node reads state as it was, outside of what has a name by then."""
        if node is value or id(node) in self.names:
            return False
        if isinstance(node, ast.Name):
            return node.id == name
        return any(self._reads(child, name, value) for child in ast.iter_child_nodes(node))

    def _written(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._written(x) for x in node]
        if not isinstance(node, ast.AST):
            return node
        if id(node) in self.names:
            return ast.Name(self.names[id(node)])
        if isinstance(node, ast.Name):
            return ast.Name(self.old.get(node.id, node.id))
        return type(node)(**{k: self._written(v) for k, v in ast.iter_fields(node)})


def _is_formula(node: ast.AST) -> bool:
    """Whether a value can be known by its identity: a name or a number is shared."""
    return not isinstance(node, ast.Name | ast.Constant)


# --- from a text -------------------------------------------------------------------------


def parsed(name: str, text: str) -> Saying:
    """A declared equation."""
    try:
        *body, last = ast.parse(text).body
        if all(map(_is_plain, body)) and isinstance(last, ast.Expr):
            return Saying(body, last.value)
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"equations: the equation of {name} is {text!r}. Write assignments, each to one name of "
        "your own and at most below an if, then the value passed on, such as "
        '"m = decay * m + u; m".'
    )


def assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    """The name that a statement of a saying gives a value, and the value."""
    assert isinstance(statement, ast.Assign)  # `_is_plain` and `_assign` let nothing else through
    (target,) = statement.targets
    assert isinstance(target, ast.Name)
    return target.id, statement.value


def _is_plain(statement: ast.stmt) -> bool:
    """Whether a statement gives one name a value, or does so under a condition."""
    if isinstance(statement, ast.If):
        assigned = all(isinstance(s, ast.Assign) and _is_plain(s) for s in statement.body)
        return assigned and not statement.orelse
    names = statement.targets if isinstance(statement, ast.Assign) else []
    own = (isinstance(x, ast.Name) and x.id not in ("u", "t", "theta") for x in names)
    return len(names) == 1 and all(own)
