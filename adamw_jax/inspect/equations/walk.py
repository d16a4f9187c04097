"""The walk that puts the equations of pieces one into the other.

`Walk` goes through an expression as its update does, keeps a list of `Line`s
and gives every variable an id; `Variables.resolve` finds their names in the end.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from adamw_jax.core.expression import made_by
from adamw_jax.core.flow import slots
from adamw_jax.core.symbols import Symbol
from adamw_jax.core.transformation import Transformation, foreign
from adamw_jax.inspect.equations.names import Variables
from adamw_jax.inspect.equations.simplify import Line, names_in, or_nothing, simplify, tidy
from adamw_jax.schedules import Schedule

Value = Any  # an ast.expr, or a dict of them by the names of branches


Scope = dict[str, ast.expr]


class Walk:
    """One pass over an expression; `route` says which branch to take where leaves are routed."""

    def __init__(
        self, combinators: Mapping[Any, Callable], symbols: bool, route: tuple[str, ...] = ()
    ):
        self.combinators = combinators  # factory -> function(walk, tx, u, scope, path)
        self.symbols = symbols
        self.route: tuple[str, ...] = ()
        self._given = route
        self.untaken: list[tuple[str, ...]] = []
        self.variables = Variables()
        self.fixed: list[str] = []  # what has no time index
        self.lines: list[Line] = []
        self.conditions: list[ast.expr] = []
        self._shared: list[tuple[str, Any]] = []  # ids of what is not written out
        self._numbers: dict[tuple[str, float], str] = {}

    def run(self, tx: Transformation) -> list[Line]:
        """All lines, the last of which moves the parameters."""
        start: Scope = {"t": ast.Name("t"), "theta": ast.Name("theta")}
        result = self.value(self._symbolic(tx), ast.Name("g"), start)
        if isinstance(result, dict):
            return tidy(self.lines, [Line(name, value) for name, value in result.items()])
        step, test = simplify(result), None
        if isinstance(step, ast.IfExp) and or_nothing(step):
            test, step = step.test, step.body
        moved = ast.BinOp(ast.Name("theta"), ast.Add(), step)
        return tidy(self.lines, [Line("theta", moved, test)])

    def value(self, tx: Transformation, u: Value, scope: Scope, path: tuple[str, ...] = ()):
        """What `tx` makes of `u`; the state it keeps is added to the lines."""
        declared = tx.factory.declared["equation"]
        text = declared(tx.arguments) if callable(declared) else declared
        if text is not None:
            return self.read(tx, text, u, scope, path)
        if tx.factory in self.combinators:
            return self.combinators[tx.factory](self, tx, u, scope, path)
        if tx.composite:
            return self.value(tx.body, u, scope, path)
        parts = [self.value(part, u, scope, (*path, n)) for n, part in slots(tx).items()]
        trees = [x for v in parts or [u] for x in (v.values() if isinstance(v, dict) else [v])]
        name = made_by(tx.arguments["transform"]) if tx.factory is foreign else tx.factory.__name__
        return ast.Call(ast.Name(name), trees, [])

    def read(self, tx: Any, text: str, u: Value, scope: Scope, path: tuple[str, ...] = ()) -> Value:
        """The value of a declared equation."""
        body, result = _parsed(tx, text)
        loads = [n.id for part in (*body, result) for n in ast.walk(part) if type(n) is ast.Name]
        if isinstance(u, dict) and "u" in loads and "u" not in u and text != "u":
            raise ValueError(
                f"equations: {tx.factory.__name__} receives the branches {', '.join(u)} of a fork, "
                "and not one tree of updates. Put merge(op) or pick(name) before it."
            )
        if isinstance(u, dict):
            u = {k: self.once(v, path) if loads.count(k) > 1 else v for k, v in u.items()}
        elif loads.count("u") > 1:
            u = self.once(u, path)
        reader = _Reader(self, tx, u, scope, path)
        reader.assigned = {
            n.id
            for statement in body
            for n in ast.walk(statement)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        for statement in body:
            reader.execute(statement)
        if isinstance(result, ast.Dict):
            names = [ast.literal_eval(key) for key in result.keys if key]
            return {k: reader.visit(v) for k, v in zip(names, result.values, strict=True)}
        value = reader.visit(result)
        return value if isinstance(value, dict) else simplify(value)

    def once(self, u: Value, path: tuple[str, ...]) -> Value:
        """`u` as a name, so that it may be used twice."""
        if isinstance(u, dict):
            return {name: self.once(x, path) for name, x in u.items()}
        u = simplify(u)
        if isinstance(u, ast.Name | ast.Constant):
            return u
        inside = names_in(u)
        gradient = "g" in inside and not inside & {line.name for line in self.lines}
        new = self.variables.new("tilde", path, "g") if gradient else self.variables.new("u", path)
        self.assign(new, u)
        return ast.Name(new)

    def assign(self, name: str, value: ast.expr, initial: bool = False) -> None:
        """Adds a line, under the conditions that hold now."""
        tests = list({ast.unparse(test): test for test in self.conditions}.values())
        test = tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests) if tests else None
        self.lines.append(Line(name, value, test, initial))

    def decide(self, names: tuple[str, ...]) -> str:
        """The branch to take among those that leaves are routed to."""
        depth = len(self.route)
        new = depth >= len(self._given)
        if new:
            self.untaken = [(*self.route, other) for other in names[1:]] + self.untaken
        chosen = names[0] if new else self._given[depth]
        self.route = (*self.route, chosen)
        return chosen

    def _symbolic(self, tx: Transformation) -> Transformation:
        """The expression with numbers that remember how others are made from them."""
        stop = lambda x: isinstance(x, Schedule)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tx, is_leaf=stop)
        return treedef.unflatten(self._symbol(path, leaf) for path, leaf in leaves)

    def _symbol(self, path: tuple, leaf: Any) -> Any:
        *where, name = (str(getattr(key, "name", "")) for key in path)
        rate = name == "learning_rate"
        if isinstance(leaf, Schedule):
            if self.symbols:
                self._shared.append((self._fix(name, tuple(where)), leaf))
        elif name.isidentifier() and is_scalar(leaf) and (rate or leaf not in (0, 1)):
            value = float(leaf)
            if not self.symbols:
                return Symbol(value, ast.Constant(value))
            if (name, value) not in self._numbers:  # equal ones are taken for one
                self._numbers[name, value] = self._fix(name, tuple(where))
            return Symbol(value, ast.Name(self._numbers[name, value]))
        return leaf

    def _fix(self, name: str, path: tuple[str, ...] = ()) -> str:
        self.fixed.append(self.variables.new(name, path))
        return self.fixed[-1]

    def share(self, thing: Any, name: str) -> str:
        """The name of something that is not written out; equal things have one."""
        for known, other in self._shared:
            if other is thing or (type(other) is type(thing) and _equal(other, thing)):
                return known
        self._shared.append((self._fix(name), thing))
        return self._shared[-1][0]

    def written(self, value: Any, name: str, scope: Scope, *, called: bool = True) -> ast.expr:
        """A hyperparameter; a schedule at this update, unless it is not to be called."""
        if isinstance(value, Symbol):
            return value.formula
        if is_scalar(value):
            return ast.Constant(np.asarray(value).item())
        if name == "mask" or not callable(value):
            plain = value is None or isinstance(value, str | bool)
            return ast.Constant(value) if plain else ast.Name(self.share(value, name))
        earlier = ast.BinOp(scope["t"], ast.Sub(), ast.Constant(1))
        symbol = next((known for known, other in self._shared if other is value), None)
        text = value.factory.declared.get("equation") if isinstance(value, Schedule) else None
        if text is not None and called and symbol is None:
            return self.read(value, text, ast.Name("u"), {**scope, "t": earlier})
        own = getattr(value, "__name__", "")
        function: ast.expr = ast.Name(symbol or (own if own.isidentifier() else name))
        if isinstance(value, Schedule) and symbol is None:
            function = self._call(value, scope)
        return ast.Call(function, [earlier], []) if called else function

    def _call(self, schedule: Schedule, scope: Scope) -> ast.expr:
        """A schedule as the call that made it."""
        parameters, args, keywords = schedule.factory.signature.parameters, [], []
        for name, value in schedule.arguments.items():
            if parameters[name].default == value:
                continue
            written = self.written(value, name, scope, called=False)
            if parameters[name].kind is parameters[name].KEYWORD_ONLY:
                keywords.append(ast.keyword(name, written))
            else:
                args.append(written)
        return ast.Call(ast.Name(schedule.factory.__name__), args, keywords)


class _Reader(ast.NodeTransformer):
    """Executes the statements of one equation, with formulas for values."""

    def __init__(self, walk: Walk, tx: Any, u: Value, scope: Scope, path: tuple[str, ...]):
        self.walk, self.tx, self.u, self.scope, self.path = walk, tx, u, scope, path
        self.assigned: set[str] = set()
        self.own: dict[str, str] = {}  # their ids
        self.parts = slots(tx) if isinstance(tx, Transformation) else {}

    def execute(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If):
            initial = ast.unparse(statement.test) == "t == 1"
            self.walk.conditions.append(self.visit(statement.test))
            for inner in statement.body:
                self._assign(inner, initial)
            self.walk.conditions.pop()
        else:
            self._assign(statement, False)

    def _assign(self, statement: Any, initial: bool) -> None:
        name = statement.targets[0].id
        value = self.visit(statement.value)
        self.walk.assign(self._declare(name), value, initial)

    def _declare(self, name: str) -> str:
        """The id of an assigned name; `u_hat` and `m_old` are named after another."""
        if name not in self.own:
            stem, _, ending = name.rpartition("_")
            parent = self.u.id if stem == "u" and isinstance(self.u, ast.Name) else None
            parent = self.own.get(stem, parent)
            base = ending if parent else name
            self.own[name] = self.walk.variables.new(base, self.path, parent)
        return self.own[name]

    def visit_Name(self, node):
        name = node.id
        if name in self.assigned:
            return ast.Name(self._declare(name))
        if name == "u":
            return self.u
        if isinstance(self.u, dict) and name in self.u:
            return self.u[name]
        if name in self.tx.arguments:
            return self.walk.written(self.tx.arguments[name], name, self.scope)
        return self.scope.get(name, node)

    def visit_Call(self, node):
        name = getattr(node.func, "id", "")
        arguments = [self.visit(x) for x in node.args]
        keywords = {k.arg: self.visit(k.value) for k in node.keywords}
        if name in self.parts:
            inner = {**self.scope, **keywords}
            return self.walk.value(self.parts[name], arguments[0], inner, (*self.path, name))
        return ast.Call(node.func, arguments, [ast.keyword(k, v) for k, v in keywords.items()])

    def visit_IfExp(self, node):
        test = self.visit(node.test)
        self.walk.conditions.append(test)
        body = self.visit(node.body)
        self.walk.conditions[-1] = ast.UnaryOp(ast.Not(), test)
        orelse = self.visit(node.orelse)
        self.walk.conditions.pop()
        return ast.IfExp(test, body, orelse)


def _parsed(tx: Any, text: str) -> tuple[list[ast.stmt], ast.expr]:
    """The statements of an equation and the value passed on."""
    try:
        *body, last = ast.parse(text).body
        if all(map(_is_plain, body)) and isinstance(last, ast.Expr):
            return body, last.value
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"equations: the equation of {tx.factory.__name__} is {text!r}. Write assignments, each to "
        "one name of your own and at most below an if, then the value passed on, such as "
        '"m = decay * m + u; m".'
    )


def _is_plain(statement: ast.stmt) -> bool:
    """Whether a statement gives one name a value, or does so under a condition."""
    if isinstance(statement, ast.If):
        assigned = all(isinstance(s, ast.Assign) and _is_plain(s) for s in statement.body)
        return assigned and not statement.orelse
    names = statement.targets if isinstance(statement, ast.Assign) else []
    own = (isinstance(x, ast.Name) and x.id not in ("u", "t", "theta") for x in names)
    return len(names) == 1 and all(own)


def is_scalar(x: Any) -> bool:
    """Whether x is one known number."""
    known = isinstance(x, int | float | np.generic | np.ndarray | jax.Array)
    return known and not isinstance(x, bool | jax.core.Tracer) and np.ndim(x) == 0


def _equal(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except (TypeError, ValueError):  # trees that hold arrays
        return False
