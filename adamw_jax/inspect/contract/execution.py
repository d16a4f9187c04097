"""Execution: a saying run on numbers.

An equation is a claim about an update.  Here it is run, line by line and in float64,
as `check` and `describe` need it: its state begins at 0, or as it says itself at t = 1.

A value is a number, or `Leaves`: one array for each parameter.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adamw_jax.core.saying import Saying, assignment


class Unknown(Exception):
    """The saying needs something that is not known here; the message says what."""


class Leaves(list):
    """One array for each parameter."""


def over(op: Callable, *values: Any) -> Any:
    """op(...), leaf by leaf where any of the values has leaves."""
    count = next((len(x) for x in values if isinstance(x, Leaves)), None)
    if count is None:
        return op(*values)
    at = lambda i: (x[i] if isinstance(x, Leaves) else x for x in values)
    return Leaves(op(*at(i)) for i in range(count))


def _norm(x: Any) -> Any:
    return np.sqrt(np.sum(np.square(x)))


# Of every leaf alone.
OF_LEAF: dict[str, Callable] = {
    "abs": np.abs,
    "block_means": lambda x, axes=(): np.mean(x, axes, keepdims=True),
    "clip": np.clip,
    "column_means": lambda x: np.mean(x, -2),
    "exp": np.exp,
    "eye": lambda x: np.eye(len(x)),
    "log": np.log,
    "maximum": np.maximum,
    "mean": np.mean,
    "minimum": np.minimum,
    "norm": _norm,
    "outer": np.multiply.outer,
    "rms": lambda x: np.sqrt(np.mean(np.square(x))),
    "row_means": lambda x: np.mean(x, -1),
    "sign": np.sign,
    "sqrt": np.sqrt,
}


def _total(function: Callable) -> Callable:
    """The sum over all leaves of a number for each."""

    def call(*values):
        found = over(lambda *xs: np.sum(function(*xs)), *values)
        return sum(found) if isinstance(found, Leaves) else found

    return call


# Of all leaves at once.
OF_TREE: dict[str, Callable] = {
    "dot": _total(np.multiply),
    "global_norm": lambda x: np.sqrt(_total(np.square)(x)),
    "norm_1": _total(np.abs),
}

# What is said of matrices, and of no other array.
OF_MATRICES = {"column_means", "eye", "fan_in", "fan_out", "outer", "row_means"}

_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.MatMult: operator.matmul,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: np.logical_not,
    ast.And: np.logical_and,
    ast.Or: np.logical_or,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def names_of(saying: Saying, context: type = ast.Load) -> set[str]:
    """The names that a saying reads, functions included; or those that it assigns."""
    nodes = (n for part in (*saying.statements, saying.result) for n in ast.walk(part))
    # What a formula became has names without a context, which are read.
    kind = lambda n: ast.Store if isinstance(getattr(n, "ctx", None), ast.Store) else ast.Load
    return {n.id for n in nodes if isinstance(n, ast.Name) and kind(n) is context}


class Execution:
    """A saying with its state, which `step` moves on by one update.

    Attributes:
      state: by the names that the saying assigns.
    """

    def __init__(
        self,
        saying: Saying,
        arguments: Mapping[str, Any],
        functions: Mapping[str, Callable] = {},
    ):
        """`functions` are known beside those of this module, and get the values as they are."""
        self.saying, self.arguments = saying, arguments
        self.functions = OF_TREE | dict(functions)
        self.state: dict[str, Any] = dict.fromkeys(names_of(saying, ast.Store), np.float64(0))
        self.scope: dict[str, Any] = {}

    def step(self, t: int, **known: Any) -> Any:
        """What is passed on at update t = 1, 2, ..., for what the saying reads (u, theta)."""
        self.scope = {"t": np.float64(t)} | known | self.state
        with np.errstate(all="ignore"):
            for statement in self.saying.statements:
                self._execute(statement)
            out = self.value(self.saying.result)
        self.state = {name: self.scope[name] for name in self.state}
        return out

    def _execute(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If):
            if self._decided(self.value(statement.test)):
                for inner in statement.body:
                    self._execute(inner)
        else:
            name, value = assignment(statement)
            self.scope[name] = self.value(value)

    def _decided(self, condition: Any) -> bool:
        if isinstance(condition, Leaves) or np.ndim(condition):
            raise Unknown("a condition on every element")
        return bool(condition)

    def value(self, node: Any) -> Any:
        """What an expression of the saying is now."""
        kind = f"_{type(node).__name__.lower()}"
        if not hasattr(self, kind):
            raise Unknown(f"{ast.unparse(node)!r}")
        return getattr(self, kind)(node)

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return np.float64(value)
        return value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self.scope:
            return self.scope[node.id]
        if node.id not in self.arguments:
            raise Unknown(f"the name {node.id!r}")
        value = self.arguments[node.id]
        if callable(value):
            value = value(int(self.scope["t"]) - 1)
        return value if isinstance(value, str | bool | None) else np.float64(value)

    def _binop(self, node: ast.BinOp) -> Any:
        return over(_OPERATORS[type(node.op)], self.value(node.left), self.value(node.right))

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return over(_OPERATORS[type(node.op)], self.value(node.operand))

    def _boolop(self, node: ast.BoolOp) -> Any:
        first, *rest = map(self.value, node.values)
        for other in rest:
            first = over(_OPERATORS[type(node.op)], first, other)
        return first

    def _compare(self, node: ast.Compare) -> Any:
        left, found = self.value(node.left), np.True_
        for sign, right in zip(node.ops, map(self.value, node.comparators), strict=True):
            found = over(np.logical_and, found, over(_OPERATORS[type(sign)], left, right))
            left = right
        return found

    def _ifexp(self, node: ast.IfExp) -> Any:
        test = self.value(node.test)
        if isinstance(test, Leaves) or np.ndim(test):
            return over(np.where, test, self.value(node.body), self.value(node.orelse))
        return self.value(node.body if test else node.orelse)  # the other may hold a part

    def _attribute(self, node: ast.Attribute) -> Any:
        if node.attr != "T":
            raise Unknown(f"{ast.unparse(node)!r}")
        return over(np.transpose, self.value(node.value))

    def _call(self, node: ast.Call) -> Any:
        name = getattr(node.func, "id", ast.unparse(node.func))
        if name not in self.functions and name not in OF_LEAF:
            raise Unknown(f"the function {name!r}")
        values = [self.value(x) for x in node.args]
        if name not in self.functions:
            return over(OF_LEAF[name], *values)
        keywords = {str(k.arg): self.value(k.value) for k in node.keywords}
        return self.functions[name](*values, **keywords)
