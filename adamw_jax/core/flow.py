"""Flow: what a combinator does, said once; everything else reads it.

A combinator's body is one function over an abstract "run this slot on that value",

    def flow(run, u):
        return each(divide, run("numerator", u), run("denominator", u))

and an elementwise piece's body is one formula,

    def formula(u, momentum):
        momentum = decay * momentum + (1 - decay) * u
        return momentum, {"momentum": momentum}

`interpret` walks an expression.  A *reading* says what a value is and what a piece
does to it: arrays give the update, symbols the equations, units and signs lint,
histories the transplant, paths the routes.  No reading can say what the update does
not do, and what a stranger writes is read like everything else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adamw_jax.core.symbols import Branching
from adamw_jax.core.trees import path_names

Path = tuple[str, ...]


class Value:
    """What a reading passes along in the place of arrays.

    A subclass says what an operation on such values gives."""

    def each(self, op: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        raise NotImplementedError  # each reading has its own

    def _no_operator(self, *others: Any) -> Any:
        raise TypeError("it uses an operator on a whole tree of updates")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_operator
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _no_operator

    def __bool__(self) -> bool:
        raise Branching("a flow branches on the value of an update, which only arrays have.")


def each(op: Callable[..., Any], *values: Any) -> Any:
    """op(x, ...), leaf by leaf: how a flow makes one value of several.

    Args:
      op: a function of as many arrays as there are values.  If it needs only
        arithmetic, `**` and `abs`, or the functions of `adamw_jax.core.numerics`, it
        has an equation.
      *values: what `run` returned, or what the flow received.

    Example:
      >>> from adamw_jax import combinator, each, identity, scale
      >>> @combinator
      ... def mean(first, second):
      ...     middle = lambda a, b: (a + b) / 2
      ...     return lambda run, u: each(middle, run("first", u), run("second", u))
      >>> tx = mean(identity(), scale(3.0))
      >>> tx.update(1.0, tx.init(0.0))[0].item()
      2.0
    """
    abstract = next((x for x in values if isinstance(x, Value)), None)
    if abstract is not None:
        return abstract.each(op, values)
    return jax.tree.map(op, *values)


class Owners(NamedTuple):
    """How the leaves of a tree are dealt out among the slots of a combinator.

    Attributes:
      of: from a tree to the slot of every leaf, in order; None where a leaf passes
        unchanged.
      passes: whether there may be such leaves.
      by: what decides, for the readings that print it; None for rules.
      check: raises where the leaves of parameters are dealt out in a way nobody meant.
    """

    of: Callable[[Any], Sequence[str | None]]
    passes: bool = False
    by: Any = None
    check: Callable[[Sequence[str | None], Any], None] = lambda found, tree: None


class Run:
    """What a flow calls: `run(slot, u)`, or `run.split(u, owners)`."""

    def __init__(self, name: str, parts: Mapping[str, Any], reading: Any, path: Path):
        self.name, self.parts, self.reading, self.path = name, parts, reading, path
        self.ran: list[str] = []
        self.splits = False

    def __call__(self, slot: str, u: Any) -> Any:
        """What the part in a slot makes of a value."""
        self._enter(slot)
        return self.reading.part(self, slot, u)

    def split(self, u: Any, owners: Owners) -> Any:
        """What the parts make of a value, each of the leaves that it owns."""
        self.splits = True
        for slot in self.parts:
            self._enter(slot)
        return self.reading.split(self, u, owners)

    def _enter(self, slot: str) -> None:
        there = ", ".join(self.parts) or "none"
        if slot not in self.parts:
            raise KeyError(
                f"{self.name}: its flow runs {slot!r}, and its slots are: {there}. Run one of them."
            )
        if slot in self.ran:
            raise ValueError(
                f"{self.name}: its flow runs {slot!r} twice, and a slot has one state. Run every "
                "slot once, or add another slot."
            )
        self.ran.append(slot)


# What the factories of combinators and of elementwise pieces return.
AFlow = Callable[[Run, Any], Any]
AFormula = Callable[..., Any]


class Flow(optax.GradientTransformationExtraArgs):
    """The body of a combinator: its flow over its slots, and the update that follows from it.

    Attributes:
      flow: the function; rebuilt: the same from other arguments of its call.
      parts: the transformations by slot.
      arguments: of the call that made it.
      listed: whether the slots are positions, and the state a tuple.
      splits: whether leaves are dealt out among the slots.
      uses: how often the flow uses what it receives.
    """

    flow: AFlow
    rebuilt: Callable[[Mapping[str, Any]], AFlow]
    parts: dict[str, Any]
    arguments: Mapping[str, Any]
    listed: bool
    splits: bool
    uses: int


class Formula(optax.GradientTransformation):
    """The body of an elementwise piece: its formula, and the update that follows from it.

    Attributes:
      formula: the function; rebuilt: the same from other arguments of its call.
      reads: what it names beside `u`.
      starts: where its state starts, by field.
      arguments: of the call that made it.
      counts: whether its state counts the updates.
      State: the class of its state, None if it keeps none.
      stored: from a field and the dtype of a parameter to that of what is kept.
    """

    formula: AFormula
    rebuilt: Callable[[Mapping[str, Any]], AFormula]
    reads: tuple[str, ...]
    starts: Mapping[str, Any]
    arguments: Mapping[str, Any]
    counts: bool
    State: Any
    stored: Callable[[str, Any], Any]


class PerTree(NamedTuple):
    """One number for the whole tree, where other state is one array a parameter."""

    start: float


def per_tree(start: float) -> PerTree:
    """A field of an elementwise piece that is one number for the whole tree.

    It may depend on hyperparameters, on `t` and on other such numbers alone.

    Example:
      >>> from adamw_jax import elementwise, per_tree
      >>> @elementwise(product=per_tree(1.0))
      ... def fading(decay):
      ...     def formula(u, product):
      ...         return decay * product * u, {"product": decay * product}
      ...     return formula
      >>> tx = fading(0.5)
      >>> update, state = tx.update(8.0, tx.init(0.0))
      >>> update.item(), tx.update(8.0, state)[0].item()
      (4.0, 2.0)
    """
    return PerTree(start)


def opened(tx: Any) -> Any:
    """The piece or combinator behind a name."""
    while tx.composite:
        tx = tx.body
    return tx


def is_part(x: Any) -> bool:
    """Whether an argument is a transformation that remembers its call."""
    return isinstance(x, optax.GradientTransformation) and hasattr(x, "factory")


def slots(tx: Any) -> dict[str, Any]:
    """The transformations directly inside `tx`, by name."""
    tx = opened(tx)
    if isinstance(tx.body, Flow):
        return tx.body.parts
    return {} if tx.is_foreign else parts_among(tx.arguments)


def parts_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The transformations among some arguments, by their dotted names."""
    found = {}
    is_leaf = lambda x: hasattr(x, "factory") or hasattr(x, "tree_flatten")
    for name, value in arguments.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_leaf):
            if is_part(leaf):
                found[".".join((name, *path_names(path)))] = leaf
    return found


def interpret(tx: Any, u: Any, reading: Any, path: Path = ()) -> Any:
    """What a reading makes of a value on its way through an expression.

    Args:
      tx: the expression.
      u: the value that enters.
      reading: has `speaks(tx)`, whether a composite is read as one piece;
        `piece(tx, u, path)`, what a piece makes of a value; `part(run, slot, u)` and
        `split(run, u, owners)`, what slots make of it.  See `Reading`.
      path: the slots that lead to `tx`.
    """
    while tx.composite and not reading.speaks(tx):
        tx = tx.body
    if isinstance(tx.body, Flow):
        run = Run(tx.factory.__name__, tx.body.parts, reading, path)
        return reading.flow(tx, path)(run, u)
    return reading.piece(tx, u, path)


class Reading:
    """A reading that walks into every part; subclasses say what a piece does."""

    def speaks(self, tx: Any) -> bool:
        """Whether a composite is read as one piece."""
        return False

    def piece(self, tx: Any, u: Any, path: Path) -> Any:
        """What a piece makes of a value."""
        raise NotImplementedError  # this is what a reading is

    def flow(self, tx: Any, path: Path) -> AFlow:
        """The flow of a combinator."""
        body: Flow = tx.body
        return body.flow

    def part(self, run: Run, slot: str, u: Any) -> Any:
        """What the part in a slot makes of a value."""
        return interpret(run.parts[slot], u, self, (*run.path, slot))

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        """What the parts make of a value, each of its own leaves."""
        raise NotImplementedError  # depends on what a value is


# --- a flow is run once when it is built -------------------------------------------------


class _Token(Value):
    """A value about which nothing is known; remembers how it was used."""

    def __init__(self) -> None:
        self.forked = False  # whether a branch was taken from it
        self.uses = 0

    def each(self, op: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        if any(isinstance(x, dict) for x in values):
            raise TypeError("an operation is applied to a fork. Take one of its branches.")
        for x in values:
            x.uses += 1
        return _Token()

    def __getitem__(self, name: str) -> Any:
        self.forked = True
        return _Token()


class _Build(Reading):
    def part(self, run: Run, slot: str, u: Any) -> Any:
        for x in u.values() if isinstance(u, dict) else [u]:
            x.uses += 1
        return _Token()

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        return _Token()


def check_flow(name: str, flow: Any, parts: Mapping[str, Any]) -> tuple[bool, int]:
    """Raises where a flow is none, or does what no reading could follow.

    Returns whether it deals out the leaves, and how often it uses what it receives."""
    if not callable(flow):
        raise TypeError(
            f"{name}: returned {flow!r}. A combinator's factory must return a function "
            "flow(run, u)."
        )
    run = Run(name, parts, _Build(), ())
    start = _Token()
    try:
        out = flow(run, start)
    except Branching as error:
        raise Branching(f"{name}: {error} Use each(where, condition, a, b).") from None
    except TypeError as error:
        raise TypeError(
            f"{name}: its flow cannot be run: {error}. Write flow(run, u), and operations on "
            "values as each(op, a, b)."
        ) from error
    left = [slot for slot in parts if slot not in run.ran]
    if left:
        raise ValueError(
            f"{name}: its flow never runs {', '.join(map(repr, left))}. Run every slot once, or "
            "leave the slot out."
        )
    branches = list(out.values()) if isinstance(out, dict) else [out]
    if not branches or not all(isinstance(x, _Token) for x in branches):
        raise TypeError(
            f"{name}: its flow returns {out!r}. Return what run or each gave, or a dict of them "
            "by branch."
        )
    return run.splits, start.uses


class _Kind(Reading):
    """Trees or forks: what an expression consumes and produces."""

    def piece(self, tx: Any, u: Any, path: Path) -> Any:
        declared = tx.factory.declared
        if isinstance(u, _Token) and declared.get("consumes") == "fork":
            u.forked = True
        return {"": _Token()} if declared.get("produces") == "fork" else _Token()

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        return _Token()


def kinds(tx: Any) -> tuple[str, str]:
    """What an expression consumes and produces: each "tree", or "fork" for a dict of branches."""
    start = _Token()
    out = interpret(tx, start, _Kind())
    word = {False: "tree", True: "fork"}
    return word[start.forked], word[isinstance(out, dict)]
