"""Symbols: numbers that remember the formula they came from.

`equations` puts them in the place of hyperparameters.  They are floats, so any
factory accepts them, and what it computes from them (`1 - decay`) is a symbol.
"""

import ast
import operator
from typing import Any


class Symbol(float):
    """A float with the formula it came from, as a Python expression tree."""

    formula: ast.expr

    def __new__(cls, value: float, formula: ast.expr):
        self = super().__new__(cls, value)
        self.formula = formula
        return self


def formula_of(value: Any) -> ast.expr:
    """The formula of a symbol; a plain number is its own."""
    return value.formula if isinstance(value, Symbol) else ast.Constant(value)


def _binary(function, sign: ast.operator, left: Any, right: Any) -> Any:
    if not (isinstance(left, float | int) and isinstance(right, float | int)):
        return NotImplemented
    try:
        value = float(function(float(left), float(right)))
    except (ArithmeticError, TypeError):  # 1 / 0; a root of a negative number
        value = float("nan")
    return Symbol(value, ast.BinOp(formula_of(left), sign, formula_of(right)))


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
}.items():
    _give(_name, _sign)


def _negative(self):
    return Symbol(-float(self), ast.UnaryOp(ast.USub(), self.formula))


def _absolute(self):
    call = ast.Call(ast.Name("abs"), [self.formula], [])
    return Symbol(abs(float(self)), call)


setattr(Symbol, "__neg__", _negative)  # noqa: B010  as above; float declares another type


setattr(Symbol, "__abs__", _absolute)  # noqa: B010
