"""Differences: in which slots and hyperparameters two optimizers differ.

Two expressions are compared from the outside in.  Calls of the same factory
differ in their arguments; otherwise both are written out, one layer after the
other, until they are calls of the same factory, whose parts are compared.
Where nothing is shared, one piece has been swapped for another.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax

from adamw_jax.core.expression import is_node, written
from adamw_jax.core.flow import slots
from adamw_jax.core.transformation import Transformation, lift


class Change(NamedTuple):
    """One slot or hyperparameter that differs.

    Attributes:
      path: its dotted path; "" for the whole expression.
      old: its value in the first optimizer, None where it has no such slot.
      new: its value in the second.
    """

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = _written(self.old, self.new), _written(self.new, self.old)
        return f"{self.path or '(whole)'}: {old} -> {new}"

    @property
    def name(self) -> str:
        """The change in few words: `learning_rate=0.0003`, `numerator=identity`."""
        *outer, last = self.path.split(".")
        if isinstance(self.old, Transformation) and self.new is None:
            return f"no {last}"
        if (not isinstance(self.new, Transformation) or last.isdigit()) and outer[-1:] != [last]:
            last = _join(*outer[-1:], last)
        if isinstance(self.new, Transformation) and last:
            return f"{last}={self.new.factory.__name__}"
        return (f"{last}=" if last else "") + _written(self.new, self.old)


def _written(value: Any, other: Any) -> str:
    absent = value is None and isinstance(other, Transformation)
    return "absent" if absent else written(value)


class Changes(list[Change]):
    """All differences; prints one a line, and knows a short `name`.

    Example:
      >>> from adamw_jax import adamw, diff
      >>> diff(adamw(1e-3), adamw(3e-4, b1=0.8)).name
      'learning_rate=0.0003, b1=0.8'
    """

    @property
    def name(self) -> str:
        """The changes in few words, for a run or a row of a table; "" if there are none."""
        return ", ".join(change.name for change in self)

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def diff(a: optax.GradientTransformation, b: optax.GradientTransformation) -> Changes:
    """The slots and hyperparameters in which two optimizers differ.

    One entry a change, at the outermost call that says it: a hyperparameter of
    `adamw` that reaches two pieces is one entry, a swapped piece is one entry.

    Args:
      a: the optimizer to start from.
      b: the other one.

    Example:
      >>> from adamw_jax import adamw, diff, identity, swap
      >>> print(diff(adamw(1e-3), swap(adamw(1e-3), "weight_decay", identity())))
      weight_decay: add_decoupled_weight_decay(0.0001) -> identity()
    """
    return Changes(_changes(lift(a, "diff"), lift(b, "diff"), ""))


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _changes(a: Transformation, b: Transformation, path: str) -> list[Change]:
    if a == b:
        return []
    whole = [Change(path, a, b)]
    found = _inside(a, b, path)
    if found is None:
        return whole
    # Two names for different things, in a slot: one was swapped for the other.
    renamed = a.composite and b.composite and a.factory != b.factory
    return whole if path and renamed and len(found) > 1 else found


def _inside(a: Transformation, b: Transformation, path: str) -> list[Change] | None:
    """The differences within the outermost calls of one factory; None if nothing is shared."""
    for x in _layers(a):
        for y in _layers(b):
            if x.factory == y.factory and not x.is_foreign:
                found = _arguments(x, y, path)
                if found is not None:
                    return found
    return None


def _layers(tx: Transformation) -> Iterator[Transformation]:
    """The expression, and what it stands for, layer by layer."""
    while tx.composite:
        yield tx
        tx = tx.body
    yield tx


def _arguments(a: Transformation, b: Transformation, path: str) -> list[Change] | None:
    """The arguments in which two calls of one factory differ; None if they do not say it."""
    names = list(dict.fromkeys((*a.arguments, *b.arguments)))
    differ = [name for name in names if not _same(a, b, name)]
    values = [(name, a.arguments.get(name), b.arguments.get(name)) for name in differ]
    if not values and list(a.arguments) == list(b.arguments):
        return []
    if values and not any(_holds_parts(x) or _holds_parts(y) for _, x, y in values):
        return [Change(_join(path, name), x, y) for name, x, y in values]
    return None if a.composite else _slots(a, b, path, differ)


def _same(a: Transformation, b: Transformation, name: str) -> bool:
    if (name in a.arguments) != (name in b.arguments):
        return False
    one, other = (Transformation(tx.factory, {name: tx.arguments[name]}) for tx in (a, b))
    return one == other


def _holds_parts(value: Any) -> bool:
    return any(isinstance(x, Transformation) for x in jax.tree.leaves(value, is_leaf=is_node))


def _stages(mine: list[Any], theirs: list[Any], path: str) -> list[Change] | None:
    """The differences of two sequences by position, of which one has more stages in front or at
    the end; None if the others have nothing in common."""
    count, found = max(len(mine), len(theirs)), []
    for front in (True, False):
        fill = lambda x, front=front: [None] * (front * (count - len(x))) + x
        old, new = ([*fill(x), *[None] * count][:count] for x in (mine, theirs))
        changes, shared = [], False
        for i, (x, y) in enumerate(zip(old, new, strict=True)):
            here = _join(path, str(i))
            inner = [Change(here, x, y)] if x is None or y is None else _changes(x, y, here)
            shared = shared or [change.path for change in inner] != [here]
            changes += inner
        found += [changes] if shared else []
    return min(found, key=len, default=None)


def _slots(
    a: Transformation, b: Transformation, path: str, differ: list[str]
) -> list[Change] | None:
    """The differences of two calls of a combinator; None if they share no slot."""
    mine, theirs = slots(a), slots(b)
    numbered = [all(map(str.isdigit, inner)) for inner in (mine, theirs)]
    if any(numbered) and len(mine) != len(theirs):
        return _stages(list(mine.values()), list(theirs.values()), path) if all(numbered) else None
    common = [name for name in mine if name in theirs]
    if common != [name for name in theirs if name in mine] or not differ:
        return None  # another order
    found, shared = [], False
    for name in dict.fromkeys((*mine, *theirs)):
        here = _join(path, name)
        if name in common:
            inner = _changes(mine[name], theirs[name], here)
            shared = shared or [change.path for change in inner] != [here]
            found += inner
        else:
            found.append(Change(here, mine.get(name), theirs.get(name)))
    slotted = {name.split(".")[0] for name in (*mine, *theirs)}
    plain = [name for name in differ if name not in slotted]
    found += [Change(_join(path, n), a.arguments.get(n), b.arguments.get(n)) for n in plain]
    return found if shared else None
