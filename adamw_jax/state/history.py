"""History: what has happened to the gradient on its way to each piece of an expression.

An average of gradients is another thing than one of their squares, and an optimizer
can go on with the state of another only where both were shown the same.  This is the
reading that tells.  Its values are histories; what a piece makes of one follows from
what it says of itself (`adamw_jax.core.saying`), and what a combinator makes of
several from its flow.

* What is still the gradient stays it: with terms of θ added, clipped, or times a
  factor near one; and the mean of two values that are alike, or of a round of them.
* Anything else is written down as the formula that made it, without the values of
  hyperparameters, and as what it was made of.
* A piece that says nothing is known by the words it declares (its traits), else by
  itself: nobody can tell what it does, but two that are equal do the same.
"""

import ast
import contextlib
import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax.core import trees
from adamw_jax.core.expression import made_by
from adamw_jax.core.flow import Path, Reading, Value, interpret, parts_among, slots
from adamw_jax.core.programs import is_number
from adamw_jax.core.saying import Saying, understood
from adamw_jax.core.symbols import Symbol, formula_of, variable
from adamw_jax.core.transformation import Transformation


class History(Value):
    """What has happened to the gradient; two are equal if the same has.

    Attributes:
      events: "g", or a tuple of what was done and of the events before it.
      words: the names of the pieces and combinators that did it, for the report.
      nameless: whether the combinator that did the last of it is still to be named.
    """

    def __init__(self, events: Any, words: tuple[str, ...] = (), *, nameless: bool = False):
        self.events, self.words, self.nameless = events, words, nameless

    def __eq__(self, other):
        return isinstance(other, History) and self.events == other.events

    def __hash__(self):
        return hash(self.events)

    def each(self, op, values):
        return _joined(op, values)

    def __getitem__(self, name):
        return _made(("branch", name), [self])


GRADIENT = History("g")


def _made(by: Any, of: Sequence[History], *names: str, nameless: bool = False) -> History:
    """The history of what is made of values."""
    words = dict.fromkeys([*(word for x in of for word in x.words), *names])
    return History((by, *(x.events for x in of)), tuple(words), nameless=nameless)


def _flat(u: Any) -> list[History]:
    """A value, or the branches of a fork, in the order of their names."""
    return [x for name in sorted(u) for x in _flat(u[name])] if isinstance(u, dict) else [u]


def _one(u: Any) -> History:
    """A value, or all branches of a fork as one."""
    return _made(("fork", *sorted(u)), _flat(u)) if isinstance(u, dict) else u


# --- the reading -------------------------------------------------------------------------


def histories(tx: Transformation, params: Any) -> list[dict[str, History]]:
    """For every parameter the history that enters each piece that it meets, by dotted path."""
    reading = _Histories(trees.widen(params))  # as init shows them to the rules
    return [reading.of(tx, leaf) for leaf in range(len(jax.tree.leaves(params)))]


class _Histories(Reading):
    """The reading by histories, of one leaf at a time: where leaves are dealt out, it follows
    the one."""

    def __init__(self, params: Any):
        self.params, self.indices = params, tuple(range(len(jax.tree.leaves(params))))
        self.leaf = 0
        self.seen: dict[str, History] = {}
        self.taken: dict[Path, Any] = {}  # by this leaf, where leaves are dealt out
        self.owners: dict[Path, dict[int, Any]] = {}  # of every leaf
        self.known: list[tuple[dict, dict]] = []  # what was taken, and what was seen
        self.written: dict[Any, str] = {}

    def of(self, tx: Transformation, leaf: int) -> dict[str, History]:
        """What one leaf meets; leaves that take the same way meet the same."""
        for taken, seen in self.known:
            if all(self.owners[path].get(leaf, path) == slot for path, slot in taken.items()):
                return seen
        self.leaf, self.seen, self.taken = leaf, {}, {}
        interpret(tx, GRADIENT, self)
        self.known.append((self.taken, self.seen))
        return self.seen

    def split(self, run, u, owners):
        params, indices = self.params, self.indices
        if run.path not in self.owners:
            self.owners[run.path] = dict(zip(indices, owners.of(params), strict=True))
        found = self.owners[run.path]
        slot = self.taken[run.path] = found[self.leaf]
        if slot is None:
            return u
        flags = [found[i] == slot for i in indices]
        self.params = trees.select(params, flags)
        self.indices = tuple(i for i in indices if found[i] == slot)
        out = self.part(run, slot, u)
        self.params, self.indices = params, indices
        return out

    def flow(self, tx, path):
        flow = tx.body.flow
        if not tx.body.splits:
            with contextlib.suppress(Exception):  # a factory that computes with its numbers
                flow = tx.body.rebuilt(_symbolic(tx.arguments))
        return lambda run, u: _named(tx.factory.__name__, flow(run, u))

    def piece(self, tx, u, path):
        self.seen[".".join(path)] = _one(u)
        part = lambda slot, shown: interpret(slots(tx)[slot], shown, self, (*path, slot))
        said = understood(tx)
        return _opaque(tx, u, part) if said is None else self._said(tx, said, u, part)

    def _said(self, tx: Transformation, said: Saying, u: Any, part: Callable) -> History:
        """What a piece makes of a value that says what it does."""
        name, branches = tx.factory.__name__, u if isinstance(u, dict) else {}
        key = id(tx), *branches
        if key not in self.written:
            self.written[key] = _written(said, branches)
        by = self.written[key]
        shown: dict[str, History] = {}

        def show(slot, value):
            if slot not in shown:
                known = isinstance(value, History)
                given = value if known else _made((by, slot), _flat(u), name)
                shown[slot] = _one(part(slot, given))
            return shown[slot]

        value = _Sentence({**branches, "u": _one(u)}, slots(tx), show).read(said)
        for slot in slots(tx):
            show(slot, _Kind.MIXED)  # those that it does not mention
        if isinstance(value, History):
            return value
        of = _flat(u) if value is _Kind.MIXED else []
        return _made(by, [*of, *shown.values()], name)


def _named(name: str, u: Any) -> Any:
    """A value by the name of the combinator that made it."""
    if isinstance(u, dict):
        return {branch: _named(name, x) for branch, x in u.items()}
    return History(u.events, (name, *u.words)) if u.nameless else u


def _opaque(tx: Transformation, u: Any, part: Callable) -> History:
    """What a piece makes of a value that does not say what it does."""
    traits, name = tx.factory.declared["traits"], tx.factory.__name__
    if tx.is_foreign:
        name = made_by(tx.arguments["transform"])
    plain = {k: x for k, x in tx.arguments.items() if not parts_among({k: x})}
    by = tx.factory if traits else _Alone(Transformation(tx.factory, plain))
    word = name if traits else f"{name} (unknown)"
    wraps = "wrapper" in traits
    given = u if wraps else _made((by, "part"), _flat(u), word)
    inside = {slot: _one(part(slot, given)) for slot in slots(tx)}
    if wraps and "tx" in inside:
        return inside["tx"]
    return _one(u) if "clip" in traits else _made(by, [*_flat(u), *inside.values()], word)


class _Alone:
    """A piece of which nothing is known; it is what is equal to it."""

    def __init__(self, tx: Transformation):
        self.tx = tx

    def __eq__(self, other):
        return isinstance(other, _Alone) and self.tx == other.tx

    def __hash__(self):
        return hash(self.tx.factory.__name__)


# --- operations of flows -----------------------------------------------------------------


def _joined(op: Callable, values: tuple) -> History:
    """What an operation of a flow makes of values."""
    names = [f"x{i}" for i in range(len(values))]
    by: Any = (getattr(op, "__module__", ""), getattr(op, "__code__", op))
    with contextlib.suppress(Exception):  # what needs more than arithmetic is known by its code
        out = op(*map(variable, names))
        if isinstance(out, Symbol):
            said = Saying([], formula_of(out))
            value = _Sentence(dict(zip(names, values, strict=True))).read(said)
            if isinstance(value, History):
                return value
            by = _written(said, names)
    if len(values) > 1 and all(x == values[0] for x in values) and _is_mean(op, len(values)):
        return values[0]
    return _made(by, values, nameless=True)


def _is_mean(op: Callable, count: int) -> bool:
    """Whether a function of equal numbers returns that number."""
    with contextlib.suppress(Exception):
        return all(np.allclose(op(*[np.float32(x)] * count), x) for x in (3.0, -0.5))
    return False


def _symbolic(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with names in the place of numbers, whose values do not matter."""
    return {k: _symbol(k, x) if is_number(x) else x for k, x in arguments.items()}


def _symbol(name: str, value: Any) -> Symbol:
    try:
        return Symbol(value, ast.Name(name))
    except TypeError:  # an array, or what is only known when the update runs
        return variable(name)


# --- what is said ------------------------------------------------------------------------


class _Kind(enum.Enum):
    """What is no history."""

    PLAIN = "nothing of the gradient in it"
    MIXED = "something made of the gradient"


class _Sentence:
    """What comes of histories in a saying: one of them, as long as it stays what it is.

    Args:
      scope: the histories by name.
      parts: the names of the parts that it may call.
      show: from such a name and what the part is shown to what it returns.
    """

    def __init__(self, scope: Mapping[str, Any], parts: Any = (), show: Any = None):
        self.scope, self.parts, self.show = dict(scope), parts, show

    def read(self, said: Saying) -> Any:
        # State is made of earlier gradients, until it is assigned.
        self.scope |= dict.fromkeys(_assigned(said), _Kind.MIXED)
        for statement in said.statements:
            self._execute(statement, certain=True)
        return self.value(said.result)

    def _execute(self, statement: Any, *, certain: bool) -> None:
        if isinstance(statement, ast.If):
            for inner in statement.body:
                self._execute(inner, certain=False)
            return
        mean = self._mean_of_round(statement)
        value = self.value(statement.value) if mean is None else mean
        self.scope[statement.targets[0].id] = value if certain else _Kind.MIXED

    def _mean_of_round(self, statement: Any) -> History | None:
        """What a state is the mean of, `x = x + (u - x) / n` where n counts in rounds; None if
        it is none.  An average that never starts again remembers more than what comes."""
        name = statement.targets[0].id
        match statement.value:
            case ast.BinOp(
                ast.Name(before),
                ast.Add(),
                ast.BinOp(ast.BinOp(new, ast.Sub(), ast.Name(old)), ast.Div(), count),
            ) if before == old == name:
                value, in_rounds = self.value(new), any(_is_modulo(x) for x in ast.walk(count))
                plain = self.value(count) is _Kind.PLAIN and in_rounds
                return value if plain and isinstance(value, History) else None
        return None

    def value(self, node: Any) -> Any:
        if isinstance(node, ast.Name):
            return self.scope.get(node.id, _Kind.PLAIN)
        if isinstance(node, ast.Call) and _name(node) in self.parts:
            return self.show(_name(node), self.value(node.args[0]))
        kept = self._kept(node)
        if kept is not None:
            return kept
        inner = [self.value(x) for x in ast.iter_child_nodes(node)]
        plain = all(x is _Kind.PLAIN for x in inner)
        return _Kind.PLAIN if plain else _Kind.MIXED

    def _kept(self, node: Any) -> History | None:
        """The history that an operation leaves as it is; None if it leaves none."""
        first, other = None, []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            first, other = node.left, [node.right]
            if isinstance(node.op, ast.Add) and self.value(first) is _Kind.PLAIN:
                first, other = node.right, [node.left]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            if self._is_near_one(node.right):
                first = node.left
            elif isinstance(node.op, ast.Mult) and self._is_near_one(node.left):
                first = node.right
        elif isinstance(node, ast.Call) and _name(node) in ("clip", "minimum", "maximum"):
            values = sorted(node.args, key=lambda x: self.value(x) is _Kind.PLAIN)
            first, other = values[0], values[1:]
        elif isinstance(node, ast.IfExp):
            ways = [x for x in (node.body, node.orelse) if ast.unparse(x) != "0"]
            alike = ways and all(self.value(x) == self.value(ways[0]) for x in ways)
            first, other = (ways[0], [node.test]) if alike else (None, [])
        value = None if first is None else self.value(first)
        plain = all(self.value(x) is _Kind.PLAIN for x in other)
        return value if isinstance(value, History) and plain else None

    def _is_near_one(self, node: Any) -> bool:
        """Whether a factor is one, or what a bound makes of it: `minimum(1, ...)`, `1 + k`."""
        one = lambda x: isinstance(x, ast.Constant) and x.value == 1
        if isinstance(node, ast.Call):
            return _name(node) in ("minimum", "maximum") and any(map(one, node.args))
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
            return one(node)
        names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
        plain = self.value(node) is _Kind.PLAIN and "t" not in names
        return plain and (one(node.left) or one(node.right))


def _is_modulo(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _assigned(said: Saying) -> set[str]:
    found = (x for line in said.statements for x in ast.walk(line) if isinstance(x, ast.Assign))
    return {x.targets[0].id for x in found if isinstance(x.targets[0], ast.Name)}


def _written(said: Saying, inputs: Any = ()) -> str:
    """What is said, in words that do not depend on how state and hyperparameters are called."""
    whole = copy.deepcopy(ast.Module([*said.statements, ast.Expr(said.result)], []))
    nodes = list(ast.walk(whole))
    known = {"u", "t", "theta", *inputs, *(_name(x) for x in nodes if isinstance(x, ast.Call))}
    state, words = _assigned(said), {name: name for name in known}
    for node in nodes:
        if isinstance(node, ast.Name):
            kind = "state" if node.id in state else "number"
            node.id = words.setdefault(node.id, f"{kind}{len(words)}")
    return ast.unparse(whole)
