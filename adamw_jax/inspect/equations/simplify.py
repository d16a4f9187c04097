"""Simplification of Python expressions: as much as a reader would do in passing.

Terms and factors that are 0 or 1 vanish, signs move outwards, sums and products
lose parentheses they do not need.  Nothing is expanded and no numbers are
folded that tell where they came from: 1 - 0.9 stays.
"""

import ast
import copy
from collections.abc import Iterable
from typing import NamedTuple


def simplify(node: ast.expr) -> ast.expr:
    """The same value, written shorter; the argument is not changed."""
    return _Simplifier().visit(copy.deepcopy(node))


def same(a: ast.AST, b: ast.AST) -> bool:
    """Whether two expressions are written alike."""
    return ast.unparse(a) == ast.unparse(b)


def names_in(*nodes: ast.AST | None) -> set[str]:
    """Every name in some expressions."""
    inside = (n for node in nodes if node for n in ast.walk(node))
    return {n.id for n in inside if isinstance(n, ast.Name)}


def is_number(node: ast.AST, value: float) -> bool:
    """Whether a node is this number, written out."""
    return isinstance(node, ast.Constant) and type(node.value) is not bool and node.value == value


def _is(node: ast.AST, *operators: type) -> bool:
    return isinstance(node, ast.BinOp | ast.UnaryOp) and isinstance(node.op, operators)


def _is_int(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def or_nothing(node: ast.AST) -> bool:
    """Whether a node is `something if test else 0`."""
    return isinstance(node, ast.IfExp) and is_number(node.orelse, 0)


def is_sum_with(node: ast.expr, term: ast.expr) -> ast.BinOp | None:
    """The node itself, if it is `term + something` or `term - something`."""
    if isinstance(node, ast.BinOp) and _is(node, ast.Add, ast.Sub) and same(node.left, term):
        return node
    return None


def _when(test: ast.expr, body: ast.expr) -> ast.expr:
    return ast.IfExp(test, body, ast.Constant(0))


def add(a, b) -> ast.expr:
    """a + b, without zeros, double signs and inner parentheses."""
    if is_number(a, 0) or is_number(b, 0):
        return b if is_number(a, 0) else a
    if _is(b, ast.USub):
        return sub(a, b.operand)
    if _is(b, ast.Add):
        return add(add(a, b.left), b.right)
    if _is(b, ast.Sub):  # a + (x - a) is x
        return b.left if same(a, b.right) else sub(add(a, b.left), b.right)
    if _is(a, ast.USub):
        return sub(b, a.operand)
    if _is(a, ast.Sub) and same(a.right, b):
        return a.left
    if _is_int(a) and _is_int(b):
        return ast.Constant(a.value + b.value)
    return ast.BinOp(a, ast.Add(), b)


def sub(a, b) -> ast.expr:
    """a - b, likewise."""
    if is_number(b, 0):
        return a
    if is_number(a, 0):
        return negative(b)
    if _is(b, ast.USub):
        return add(a, b.operand)
    if _is_int(a) and _is_int(b):
        return ast.Constant(a.value - b.value)
    return ast.BinOp(a, ast.Sub(), b)


def negative(a) -> ast.expr:
    """-a, the sign as far out as it goes."""
    if is_number(a, 0):
        return a
    if _is(a, ast.USub):
        return a.operand
    if or_nothing(a):
        return _when(a.test, negative(a.body))
    return ast.UnaryOp(ast.USub(), a)


def multiply(a, b) -> ast.expr:
    """a * b, without ones, zeros and inner signs."""
    if is_number(a, 0) or is_number(b, 0):
        return ast.Constant(0)
    if is_number(a, 1) or is_number(b, 1):
        return b if is_number(a, 1) else a
    for x, y, swapped in ((a, b, False), (b, a, True)):
        pair = lambda inner, y=y, swapped=swapped: (y, inner) if swapped else (inner, y)
        if _is(x, ast.USub):
            return negative(multiply(*pair(x.operand)))
        if or_nothing(x) and not or_nothing(y):
            return _when(x.test, multiply(*pair(x.body)))
    return ast.BinOp(a, ast.Mult(), b)


def divide(a, b) -> ast.expr:
    """a / b, likewise; of two that begin together, the quotient begins then."""
    if is_number(a, 0) or is_number(b, 1):
        return a
    if _is(a, ast.USub):
        return negative(divide(a.operand, b))
    if _is(b, ast.USub):
        return negative(divide(a, b.operand))
    if _is(b, ast.Div):
        return divide(multiply(a, b.right), b.left)
    if or_nothing(a) and or_nothing(b) and same(a.test, b.test):
        return _when(a.test, divide(a.body, b.body))
    if or_nothing(a) and not or_nothing(b):
        return _when(a.test, divide(a.body, b))
    return ast.BinOp(a, ast.Div(), b)


def matrix_multiply(a, b) -> ast.expr:
    """a @ b; what is nothing at first makes nothing of the product."""
    if is_number(a, 0) or is_number(b, 0):
        return ast.Constant(0)
    if or_nothing(a):
        return _when(a.test, matrix_multiply(a.body, b))
    if or_nothing(b):
        return _when(b.test, matrix_multiply(a, b.body))
    return ast.BinOp(a, ast.MatMult(), b)


def power(a, b) -> ast.expr:
    """a ** b, without exponents 0 and 1."""
    if is_number(b, 0):
        return ast.Constant(1)
    return a if is_number(b, 1) else ast.BinOp(a, ast.Pow(), b)


_BINARY = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: multiply,
    ast.MatMult: matrix_multiply,
    ast.Div: divide,
    ast.Pow: power,
}


class _Simplifier(ast.NodeTransformer):
    def visit_Constant(self, node):
        value = node.value
        if type(value) not in (int, float):
            return node
        size = abs(value)
        whole = ast.Constant(int(size) if size < 1e6 and size == int(size) else size)
        return whole if value >= 0 else ast.UnaryOp(ast.USub(), whole)

    def visit_BinOp(self, node):
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Mod) and is_number(right, 1):
            return ast.Constant(0)
        rule = _BINARY.get(type(node.op))
        return rule(left, right) if rule else ast.BinOp(left, node.op, right)

    def visit_UnaryOp(self, node):
        operand = self.visit(node.operand)
        sign = isinstance(node.op, ast.USub)
        return negative(operand) if sign else ast.UnaryOp(node.op, operand)

    def visit_Compare(self, node):
        self.generic_visit(node)
        left, right, sign = node.left, node.comparators[0], node.ops[0]
        known = isinstance(left, ast.Constant) and isinstance(right, ast.Constant)
        if isinstance(sign, ast.Is | ast.IsNot) and same(right, ast.Constant(None)):
            return ast.Constant(same(left, right) == isinstance(sign, ast.Is))
        if isinstance(sign, ast.Eq) and (known or same(left, right)):
            return ast.Constant(same(left, right))
        return node

    def visit_IfExp(self, node):
        test, orelse = self.visit(node.test), self.visit(node.orelse)
        body = under(test, self.visit(node.body))
        if isinstance(test, ast.Constant):
            return body if test.value else orelse
        return body if same(body, orelse) else ast.IfExp(test, body, orelse)


def under(test: ast.expr, node: ast.expr) -> ast.expr:
    """The expression where `test` is known to hold."""

    class Known(ast.NodeTransformer):
        def visit_IfExp(self, inner):
            self.generic_visit(inner)
            return inner.body if same(inner.test, test) else inner

    return Known().visit(copy.deepcopy(node))


class _Flat(ast.NodeTransformer):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        left, right = node.left, node.right
        if not isinstance(node.op, ast.Mult) or not _is(right, ast.Mult, ast.Div):
            return node
        inner = self.visit(ast.BinOp(left, ast.Mult(), right.left))
        return ast.BinOp(inner, right.op, right.right)


def flatten_products(node: ast.expr) -> ast.expr:
    """a * (b / c) as a * b / c: fewer parentheses on one line."""
    return _Flat().visit(copy.deepcopy(node))


class Line(NamedTuple):
    """`name = value`, done where `condition` holds; `initial` for the value before t = 1,
    `passing` for what has a name only since it is used more than once, and `idle` for what has
    no effect on the last line."""

    name: str
    value: ast.expr
    condition: ast.expr | None = None
    initial: bool = False
    passing: bool = False
    idle: bool = False


def tidy(lines: Iterable[Line], last: list[Line]) -> list[Line]:
    """Simplified lines: those that the last need, and state that they do not."""
    kept: list[Line] = []
    for line in (*lines, *last):
        value, test = simplify(line.value), line.condition and simplify(line.condition)
        if test is not None:
            value = simplify(under(test, value))
            test = None if same(test, ast.Constant(True)) else test
        kept.append(line._replace(value=value, condition=test))
    kept = _inlined(kept)
    feeding = _needed(kept, {line.name for line in last})
    state = {line.name for line in kept if line.name in names_in(line.value)}
    shown = feeding | _needed(kept, state)
    return [
        line._replace(idle=line.name not in feeding)
        for line in kept
        if line.name in shown and not (line.initial and is_number(line.value, 0))
    ]


def _needed(lines: list[Line], names: set[str]) -> set[str]:
    """Some names, and all that are needed for their values."""
    used = [line for line in lines if line.name in names]
    more = {n for line in used for n in names_in(line.value, line.condition)}
    return names if more <= names else _needed(lines, names | more)


def _inlined(lines: list[Line]) -> list[Line]:
    """Lines without names for what turned out to be used once, where it is still the same."""
    for i, line in enumerate(lines):
        if not line.passing or line.condition is not None:
            continue
        uses = [j for j, other in enumerate(lines) if _count(other, line.name)]
        if len(uses) != 1 or _count(lines[uses[0]], line.name) > 1 or uses[0] <= i:
            continue
        between = {other.name for other in lines[i + 1 : uses[0]]}
        if between & names_in(line.value):
            continue
        user = lines[uses[0]]
        value = simplify(_put(user.value, line.name, line.value))
        test = user.condition and _put(user.condition, line.name, line.value)
        value = simplify(under(test, value)) if test is not None else value
        if test is None and or_nothing(value) and user.name == "theta":
            test, value = value.test, value.body  # type: ignore[attr-defined]
        lines[uses[0]] = user._replace(value=value, condition=test)
        return _inlined(lines[:i] + lines[i + 1 :])
    return lines


def _count(line: Line, name: str) -> int:
    nodes = [n for x in (line.value, line.condition) if x is not None for n in ast.walk(x)]
    return sum(isinstance(n, ast.Name) and n.id == name for n in nodes)


def _put(node: ast.expr, name: str, value: ast.expr) -> ast.expr:
    class Put(ast.NodeTransformer):
        def visit_Name(self, inner):
            return value if inner.id == name else inner

    return Put().visit(copy.deepcopy(node))
