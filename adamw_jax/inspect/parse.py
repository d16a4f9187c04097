"""Parsing: from the text of an expression back to the expression.

`parse` is the inverse of `repr`.  It knows the package's public names, literals
and calls, and nothing else; no code of the text is ever run.
"""

import ast
import importlib
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adamw_jax.core.expression import Expression
from adamw_jax.core.transformation import Transformation
from adamw_jax.schedules import Schedule

LONGEST = 20_000  # characters; far beyond any expression that a person would write


WINDOW = 76  # characters of a line that an error shows


EDITORS = ("expand", "part", "replace", "swap")  # what may be called and is no factory


class ParseError(ValueError):
    """A text that is not an expression; its message points at the character."""


def parse(text: str, names: Mapping[str, Callable] | None = None) -> Transformation:
    """The transformation that a text such as `repr(tx)` describes.

    The text may call the pieces, combinators, optimizers and schedules of the
    package, and `swap`, `replace`, `part` and `expand`, with numbers, strings,
    True, False, None, tuples, lists, dicts and one another as arguments, and do
    arithmetic with schedules: `0.7 * cosine(0.1, 100)`.

    Args:
      text: for example 'swap(adamw(3e-3), "weight_decay", identity())'.
      names: your own factories and functions, by the names that the text may call or
        pass them by.  A name that the package has, too, is yours.

    Raises:
      ParseError: the text is anything else, or a call in it was refused; the
        message shows where.
      TypeError: `text` is no text, or `names` holds what cannot be called.

    Example:
      >>> from adamw_jax import adamw, parse
      >>> parse("adamw(1e-3, weight_decay=0.1)") == adamw(1e-3, weight_decay=0.1)
      True
      >>> parse("adamw(1e-3).init")
      Traceback (most recent call last):
      adamw_jax.inspect.parse.ParseError: parse: an attribute has no place in an expression.
        adamw(1e-3).init
        ^
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: got {text!r}. Pass the text of an expression, such as 'sgd(0.1)'.")
    if len(text) > LONGEST:
        raise ParseError(f"parse: the text has {len(text)} characters. Keep it below {LONGEST}.")
    for name, value in (names or {}).items():
        if not isinstance(name, str) or not callable(value):
            raise TypeError(
                f"parse: names holds {name!r}: {value!r}. Give a function for every name, such "
                "as {'then': then}."
            )
    text = text.strip()  # from a file or a docstring it comes with blanks around it
    try:
        value = _Reader(text, names or {}).read(_tree(text))
    except RecursionError:
        raise ParseError("parse: the text is nested too deeply. Write it flatter.") from None
    if not isinstance(value, Transformation):
        raise ParseError(
            f"parse: {text!r} is {type(value).__name__}, not a transformation. "
            "Write a call such as adamw(1e-3)."
        )
    return value


def _tree(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python comments on odd literals
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        line, column = error.lineno or 1, (error.offset or 1) - 1
        raise ParseError(_pointing(text, line, column, f"{error.msg}")) from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise ParseError(f"parse: Python cannot read the text ({error}). Correct it.") from None


def _pointing(text: str, line: int, column: int, message: str) -> str:
    """The message, the line it is about, and a caret under the character."""
    lines = text.splitlines() or [""]
    whole = lines[min(line, len(lines)) - 1]
    start = max(0, column - WINDOW // 2)
    shown, column = whole[start : start + WINDOW], min(column, len(whole)) - start
    return f"parse: {message}.\n  {shown}\n  {' ' * column}^"


_KINDS = {
    "Attribute": "an attribute",
    "BoolOp": "logic",
    "Compare": "a comparison",
    "JoinedStr": "a formatted string",
    "Lambda": "a lambda",
    "NamedExpr": "an assignment",
    "Starred": "an unpacked argument",
    "Subscript": "an index",
}


_OPERATORS: Mapping[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class _Reader:
    """Reads a syntax tree node by node; what has no rule is refused."""

    def __init__(self, text: str, own: Mapping[str, Callable]):
        self.text, self.own = text, own
        package = importlib.import_module(__name__.partition(".")[0])
        self.names = {name: getattr(package, name) for name in package.__all__} | dict(own)

    def read(self, node: ast.expr) -> Any:
        rule = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rule is None:
            kind = type(node).__name__
            what = _KINDS.get(kind, f"Python's {kind}")
            raise self.error(node, f"{what} has no place in an expression")
        return rule(node)

    def error(self, node: ast.expr | ast.keyword, message: str) -> ParseError:
        line = self.text.splitlines()[node.lineno - 1] if self.text else ""
        column = len(line.encode()[: node.col_offset].decode(errors="ignore"))
        return ParseError(_pointing(self.text, node.lineno, column, message))

    def _constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int | float | str | None):
            raise self.error(node, f"{node.value!r} is not a number, string, True, False or None")
        return node.value

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.read(node.operand)
        signed = isinstance(node.op, ast.USub | ast.UAdd)
        if not signed or not (_is_number(value) or isinstance(value, Schedule)):
            raise self.error(node, "only a number may have a sign, or a schedule")
        return -value if isinstance(node.op, ast.USub) else value

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.read(node.left), self.read(node.right)
        operate = _OPERATORS.get(type(node.op))
        if operate is None or not any(isinstance(x, Schedule) for x in (left, right)):
            raise self.error(node, "arithmetic is for schedules, with + - * /")
        return self._done(node, operate, left, right)

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple(map(self.read, node.elts))

    def _list(self, node: ast.List) -> Any:
        return list(map(self.read, node.elts))

    def _dict(self, node: ast.Dict) -> Any:
        if None in node.keys:
            raise self.error(node, "a dict may not unpack another")
        keys = [self.read(key) for key in node.keys if key is not None]
        if not all(map(_is_key, keys)):
            message = "the keys of a dict must be strings, whole numbers, or tuples of these"
            raise self.error(node, message)
        return dict(zip(keys, map(self.read, node.values), strict=True))

    def _name(self, node: ast.Name) -> Any:
        """A function that is an argument, such as `add` in join(add, ...)."""
        value = self._known(node)
        if not inspect.isfunction(value) and node.id not in self.own:
            raise self.error(node, f"{node.id!r} is not a function")
        return value

    def _known(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            given = " or among the names given" if self.own else ""
            raise self.error(node, f"{node.id!r} is not a public name of adamw_jax{given}")
        return self.names[node.id]

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name):
            raise self.error(node.func, "only a name may be called")
        function = self._known(node.func)
        if node.func.id not in self.own and not _makes_expressions(node.func.id, function):
            raise self.error(node.func, f"{node.func.id!r} does not make an expression")
        args = [self.read(argument) for argument in node.args]
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:  # Python's compiler refuses the second one, its parser not
            for name, value in self._keywords(node, keyword):
                if name in kwargs:
                    raise self.error(keyword, f"{name!r} is given twice")
                kwargs[name] = value
        return self._done(node, function, *args, **kwargs)

    def _done(self, node: ast.expr, function: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            reason = str(error.args[0] if error.args else error).rstrip(".")
            raise self.error(node, reason) from None

    def _keywords(self, call: ast.Call, keyword: ast.keyword) -> Iterator[tuple[str, Any]]:
        """One argument by name, or those of a dict with the names that Python knows not."""
        if keyword.arg is not None:
            yield keyword.arg, self.read(keyword.value)
            return
        named = self.read(keyword.value) if isinstance(keyword.value, ast.Dict) else {}
        if not named or not all(isinstance(name, str) for name in named):
            message = "a call may unpack only a dict of slots by name, as in **{'no-decay': sgd(1)}"
            raise self.error(call, message)
        yield from named.items()


def _is_key(value: Any) -> bool:
    return all(map(_is_key, value)) if isinstance(value, tuple) else isinstance(value, str | int)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _makes_expressions(name: str, function: Callable) -> bool:
    named_tuple = isinstance(function, type) and issubclass(function, tuple)
    expression = isinstance(function, type) and issubclass(function, Expression)
    return name in EDITORS or hasattr(function, "declared") or (named_tuple and not expression)
