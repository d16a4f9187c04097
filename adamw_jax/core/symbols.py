"""Symbols: numbers that remember the formula they came from.

The readings that do not compute run a formula on symbols.  A `Symbol` stands for a
hyperparameter: it is a float, so any factory accepts it, and what it computes from
it (`1 - decay`) is a symbol.  A `Variable` stands for what is only known when the
update runs: the update itself, the parameter, the state, the number of the update.
Its comparisons are formulas too, and Python cannot branch on it.
"""

import ast
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, Self, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Symbol(float):
    """A float with the formula it came from, as a Python expression tree."""

    formula: ast.expr

    def __new__(cls, value: float, formula: ast.expr) -> Self:
        self = super().__new__(cls, value)
        self.formula = formula
        return self


class Branching(TypeError):
    """Python was asked to decide by a value that is only known when the update runs."""


class Variable(Symbol):
    """A symbol without a value."""

    def __new__(cls, formula: ast.expr) -> Self:
        return super().__new__(cls, float("nan"), formula)

    def __bool__(self) -> bool:
        raise Branching(
            f"a formula branches on the value of {ast.unparse(self.formula)}, which is only known "
            "when the update runs. Use where(condition, a, b) of adamw_jax.core.numerics."
        )

    __hash__ = float.__hash__


def variable(name: str) -> Variable:
    """The variable of that name."""
    return Variable(ast.Name(name))


def formula_of(value: Any) -> ast.expr:
    """The formula of a symbol; a plain number is its own."""
    return value.formula if isinstance(value, Symbol) else ast.Constant(value)


def _made(value: float, formula: ast.expr, *parents: Any) -> Symbol:
    unknown = any(isinstance(x, Variable) for x in parents)
    return Variable(formula) if unknown else Symbol(value, formula)


def _binary(function: Callable[..., Any], sign: ast.operator, left: Any, right: Any) -> Any:
    if not (isinstance(left, float | int) and isinstance(right, float | int)):
        return NotImplemented
    try:
        value = float(function(float(left), float(right)))
    except (ArithmeticError, TypeError):  # 1 / 0; a root of a negative number
        value = float("nan")
    formula = ast.BinOp(formula_of(left), sign, formula_of(right))
    return _made(value, formula, left, right)


def _give(name: str, sign: ast.operator) -> None:
    function = getattr(operator, name)
    setattr(Symbol, f"__{name}__", lambda self, other: _binary(function, sign, self, other))
    setattr(Symbol, f"__r{name}__", lambda self, other: _binary(function, sign, other, self))


for _name, _sign in {
    "add": ast.Add(),
    "sub": ast.Sub(),
    "mul": ast.Mult(),
    "truediv": ast.Div(),
    "pow": ast.Pow(),
    "mod": ast.Mod(),
}.items():
    _give(_name, _sign)


def _compare(sign: ast.cmpop) -> Callable[..., Any]:
    def compared(self: Variable, other: Any) -> Any:
        if not isinstance(other, float | int):
            return NotImplemented
        return Variable(ast.Compare(self.formula, [sign], [formula_of(other)]))

    return compared


for _name, _comparison in {
    "lt": ast.Lt(),
    "le": ast.LtE(),
    "gt": ast.Gt(),
    "ge": ast.GtE(),
    "eq": ast.Eq(),
    "ne": ast.NotEq(),
}.items():
    setattr(Variable, f"__{_name}__", _compare(_comparison))


def _negative(self: Symbol) -> Symbol:
    return _made(-float(self), ast.UnaryOp(ast.USub(), self.formula), self)


def _absolute(self: Symbol) -> Symbol:
    call = ast.Call(ast.Name("abs"), [self.formula], [])
    return _made(abs(float(self)), call, self)


setattr(Symbol, "__neg__", _negative)  # noqa: B010  as above; float declares another type
setattr(Symbol, "__abs__", _absolute)  # noqa: B010


def filled(node: Any, filling: dict[str, ast.expr]) -> Any:
    """The expression with others in the place of some of its names; they are not copied, so
    that each is still known by its identity."""
    if isinstance(node, list):
        return [filled(x, filling) for x in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Name) and node.id in filling:
        return filling[node.id]
    return type(node)(**{k: filled(v, filling) for k, v in ast.iter_fields(node)})


def operation(written: str) -> Callable[[F], F]:
    """A function of arrays that can be run on symbols, where it is `written` so.

    The text is Python over the function's own parameters: `@operation("sqrt(x)")`.  For a
    parameter `q` that may be a dict, its items are called `q_left`, `q_right`."""
    pattern = ast.parse(written, mode="eval").body
    names = {n.id for n in ast.walk(pattern) if isinstance(n, ast.Name)}

    def decorate(function: Any) -> Any:
        signature = inspect.signature(function)
        wanted = {n for n in names for p in signature.parameters if f"{n}_".startswith(f"{p}_")}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not any(_is_symbolic(x) for x in (*args, *kwargs.values())):
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            filling: dict[str, ast.expr] = {}
            for name, value in bound.arguments.items():
                items = value.items() if isinstance(value, dict) else ()
                filling |= {f"{name}_{k}": formula_of(x) for k, x in items}
                filling |= {} if isinstance(value, dict) else {name: formula_of(value)}
            if wanted <= set(filling):
                return Variable(filled(pattern, filling))
            return Variable(ast.Call(ast.Name(function.__name__), [*filling.values()], []))

        return call

    return decorate


def _is_symbolic(x: Any) -> bool:
    return any(map(_is_symbolic, x.values())) if isinstance(x, dict) else isinstance(x, Symbol)
