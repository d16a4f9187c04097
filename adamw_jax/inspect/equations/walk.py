"""The walk that puts what pieces say one into the other.

`Walk` is the reading by symbols: it goes through an expression as its update does,
keeps a list of `Line`s and gives every variable an id; `Variables.resolve` finds
their names in the end.
"""

import ast
import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adamw_jax.core.expression import made_by
from adamw_jax.core.flow import Owners, Path, Reading, Run, Value, interpret, slots
from adamw_jax.core.saying import Saying, saying
from adamw_jax.core.symbols import Branching, Symbol, filled, formula_of, variable
from adamw_jax.core.transformation import Transformation
from adamw_jax.inspect.equations.names import Variables
from adamw_jax.inspect.equations.simplify import (
    Line,
    is_sum_with,
    names_in,
    or_nothing,
    same,
    simplify,
    tidy,
)
from adamw_jax.schedules import Schedule

Scope = dict[str, ast.expr]


class Formula(Value):
    """What the updates are at one place: a formula, in the variables of a walk."""

    def __init__(self, walk: "Walk", node: ast.expr):
        self.walk, self.node = walk, node

    def each(self, op: Callable, values: tuple) -> "Formula":
        return Formula(self.walk, self.walk.operate(op, values))

    def __getitem__(self, name: str) -> "Formula":
        whole = isinstance(self.node, ast.Name)  # nothing is before it: the fork is what comes in
        branch = ast.Name(name)
        return Formula(self.walk, branch if whole else ast.Call(branch, [self.node], []))


Signal = Any  # a Formula, or a dict of them by the names of branches


class Walk(Reading):
    """One pass over an expression; `route` says which branch to take where leaves are routed."""

    def __init__(self, symbols: bool, route: tuple[str, ...] = ()):
        self.symbols = symbols
        self.route: tuple[str, ...] = ()
        self._given = route
        self.untaken: list[tuple[str, ...]] = []
        self.variables = Variables()
        self.fixed: list[str] = []  # what has no time index
        self.lines: list[Line] = []
        self.conditions: list[ast.expr] = []
        self.path: Path = ()  # of what is being read
        self.scope: Scope = {"t": ast.Name("t"), "theta": ast.Name("theta")}
        self._shared: list[tuple[str, Any]] = []  # ids of what is not written out
        self._numbers: dict[tuple[str, float], str] = {}

    def run(self, tx: Transformation) -> list[Line]:
        """All lines, the last of which moves the parameters."""
        result = self.written_out(interpret(self._symbolic(tx), self.of(ast.Name("g")), self))
        if isinstance(result, dict):
            return tidy(self.lines, [Line(name, value) for name, value in result.items()])
        step, test = simplify(result), None
        if isinstance(step, ast.IfExp) and or_nothing(step):
            test, step = step.test, step.body
        moved = ast.BinOp(ast.Name("theta"), ast.Add(), step)
        return tidy(self.lines, [Line("theta", moved, test)])

    def of(self, node: Any) -> Signal:
        """A formula, or branches of them, as a value that flows pass along."""
        if isinstance(node, dict):
            return {name: self.of(x) for name, x in node.items()}
        return Formula(self, node)

    def written_out(self, u: Signal) -> Any:
        """The formulas of a value."""
        if isinstance(u, dict):
            return {name: self.written_out(x) for name, x in u.items()}
        return u.node

    # --- what the reading says of pieces, slots, operations, and splits ---

    def speaks(self, tx):
        return tx.factory.declared["equation"] is not None

    def piece(self, tx, u, path):
        said = saying(tx)
        if said is not None:
            return self.of(self.read(tx, said, self.written_out(u), self.scope, path))
        inside = slots(tx).items()
        parts = [interpret(part, u, self, (*path, name)) for name, part in inside] or [u]
        values = [x for v in parts for x in (v.values() if isinstance(v, dict) else [v])]
        name = made_by(tx.arguments["transform"]) if tx.is_foreign else tx.factory.__name__
        return self.of(ast.Call(ast.Name(name), [x.node for x in values], []))

    def flow(self, tx, path):
        def named(run, u):
            self.path, before = path, self.path
            if tx.body.uses > 1:  # by several slots, or by one and an operation
                u = self.of(self.once(self.written_out(u), path))
            out = tx.body.flow(run, u)
            self.path = before
            return out

        return named

    def split(self, run: Run, u: Signal, owners: Owners) -> Signal:
        if not owners.passes:
            name = self.decide(tuple(run.parts))
            return interpret(run.parts[name], u, self, (*run.path, name))
        ((name, part),) = run.parts.items()
        u = self.of(self.once(self.written_out(u), run.path))
        out = interpret(part, u, self, (*run.path, name))
        if isinstance(out, dict) or isinstance(u, dict):
            return out
        new, old = simplify(out.node), simplify(u.node)
        if same(new, old):
            return u
        mask = ast.Name(self.share(owners.by, "mask"))
        if term := is_sum_with(new, old):
            return self.of(ast.BinOp(old, term.op, ast.BinOp(mask, ast.Mult(), term.right)))
        return self.of(ast.IfExp(mask, new, old))

    def operate(self, op: Callable, values: tuple) -> ast.expr:
        """`op` of some values, by running it on symbols; a named function if that fails."""
        nodes: dict[str, ast.expr] = {}

        def hole(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: hole(x) for key, x in value.items()}
            name = f".{len(nodes)}"
            nodes[name] = value.node
            return variable(name)

        holes = [hole(value) for value in values]
        name = getattr(op, "__name__", "op")
        opaque = ast.Call(ast.Name(name if name.isidentifier() else "op"), [*nodes.values()], [])
        try:
            result = op(*holes)
        except Branching:
            raise
        except Exception:  # it is not arithmetic
            return opaque
        if not isinstance(result, Symbol):
            return opaque
        found = [n.id for n in ast.walk(result.formula) if isinstance(n, ast.Name)]
        often = lambda key: found.count(key) > 1
        filling = {k: self.once(x, self.path) if often(k) else x for k, x in nodes.items()}
        return filled(formula_of(result), filling)

    def read(self, tx: Any, said: Saying, u: Any, scope: Scope, path: Path = ()) -> Any:
        """The value of what a piece, or a schedule, says; the state it keeps is added to the
        lines."""
        body, result = copy.deepcopy(said)  # what is read is filled in
        loads = [n.id for part in (*body, result) for n in ast.walk(part) if type(n) is ast.Name]
        passes = not body and isinstance(result, ast.Name) and result.id == "u"
        if isinstance(u, dict) and "u" in loads and "u" not in u and not passes:
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
            if isinstance(n, ast.Name) and isinstance(getattr(n, "ctx", None), ast.Store)
        }
        for statement in body:
            reader.execute(statement)
        if isinstance(result, ast.Dict):
            names = [ast.literal_eval(key) for key in result.keys if key]
            return {k: reader.visit(v) for k, v in zip(names, result.values, strict=True)}
        value = reader.visit(result)
        return value if isinstance(value, dict) else simplify(value)

    def once(self, u: Any, path: Path) -> Any:
        """`u` as a name, so that it may be used twice."""
        if isinstance(u, dict):
            return {name: self.once(x, path) for name, x in u.items()}
        u = simplify(u)
        if isinstance(u, ast.Name | ast.Constant):
            return u
        inside = names_in(u)
        gradient = "g" in inside and not inside & {line.name for line in self.lines}
        new = self.variables.new("tilde", path, "g") if gradient else self.variables.new("u", path)
        self.assign(new, u, passing=True)
        return ast.Name(new)

    def assign(
        self, name: str, value: ast.expr, initial: bool = False, passing: bool = False
    ) -> None:
        """Adds a line, under the conditions that hold now."""
        tests = list({ast.unparse(test): test for test in self.conditions}.values())
        test = tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests) if tests else None
        self.lines.append(Line(name, value, test, initial, passing))

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
        # A schedule sees the number of earlier updates, and gives it to those inside of it.
        earlier = scope.get("count", ast.BinOp(scope["t"], ast.Sub(), ast.Constant(1)))
        symbol = next((known for known, other in self._shared if other is value), None)
        said = saying(value) if isinstance(value, Schedule) else None
        if said is not None and called and symbol is None:
            return self.read(value, said, ast.Name("u"), {**scope, "t": earlier, "count": earlier})
        own = getattr(value, "__name__", "")
        function: ast.expr = ast.Name(symbol or (own if own.isidentifier() else name))
        if isinstance(value, Schedule) and symbol is None:
            function = value.typed(lambda x, name: self._listed(x, name, scope))
        return ast.Call(function, [earlier], []) if called else function

    def _listed(self, value: Any, name: str, scope: Scope) -> ast.expr:
        """An argument of a schedule; the items of a tuple, one by one."""
        if not isinstance(value, tuple):
            return self.written(value, name, scope, called=False)
        return ast.Tuple([self._listed(x, name, scope) for x in value])


class _Reader(ast.NodeTransformer):
    """Executes the statements of one equation, with formulas for values."""

    def __init__(self, walk: Walk, tx: Any, u: Any, scope: Scope, path: Path):
        self.walk, self.tx, self.u, self.scope, self.path = walk, tx, u, scope, path
        self.assigned: set[str] = set()
        self.own: dict[str, str] = {}  # their ids
        self.parts = self._parts() if isinstance(tx, Transformation) else {}

    def _parts(self) -> dict[str, Transformation]:
        """The parts, with hyperparameters as they are at this update."""
        now = self.tx.factory.declared["now"]
        parts = slots(self.tx)
        return parts | now(self.tx.arguments, self._at_this_update) if now else parts

    def _at_this_update(self, name: str, schedule: Callable) -> Symbol:
        return Symbol(float(schedule(0)), self.walk.written(schedule, name, self.scope))

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
            before, self.walk.scope = self.walk.scope, {**self.scope, **keywords}
            u = self.walk.of(arguments[0])
            out = interpret(self.parts[name], u, self.walk, (*self.path, name))
            self.walk.scope = before
            return self.walk.written_out(out)
        return ast.Call(node.func, arguments, [ast.keyword(k, v) for k, v in keywords.items()])

    def visit_IfExp(self, node):
        test = self.visit(node.test)
        self.walk.conditions.append(test)
        body = self.visit(node.body)
        self.walk.conditions[-1] = ast.UnaryOp(ast.Not(), test)
        orelse = self.visit(node.orelse)
        self.walk.conditions.pop()
        return ast.IfExp(test, body, orelse)


def is_scalar(x: Any) -> bool:
    """Whether x is one known number."""
    known = isinstance(x, int | float | np.generic | np.ndarray | jax.Array)
    return known and not isinstance(x, bool | jax.core.Tracer) and np.ndim(x) == 0


def _equal(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except (TypeError, ValueError):  # trees that hold arrays
        return False
