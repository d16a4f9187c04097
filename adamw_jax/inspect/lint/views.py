"""Views: which leaves take which way through an expression.

A mask that is data says which leaves it lets through; masks that are functions, and
the rules of routes, do not, before there are parameters.  A view is one way that
leaves may take: one class of leaves under the masks that are data, with one choice
at every other split.  What a reading finds in some views is a finding if it holds
for one choice at one split, whatever the others say.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adamw_jax.core import trees
from adamw_jax.core.flow import Owners, Path, Reading, Run, Value, interpret, slots
from adamw_jax.inspect.lint import signal
from adamw_jax.inspect.lint.signal import Signal

View = int
Seeing = frozenset[View]


class Split(NamedTuple):
    """A place where leaves are dealt out: the slots there are, and by what."""

    names: tuple[str, ...]
    owners: Owners


class Views(NamedTuple):
    """All ways through an expression.

    Attributes:
      ways: by view, the slot that is taken at every split; None where leaves pass by.
      needed: a finding is certain if it is found in all views of one of these sets.
      guessed: the paths of splits at which it is not known who goes where.
    """

    ways: list[dict[Path, str | None]]
    needed: list[frozenset[View]]
    guessed: frozenset[Path]

    @property
    def all(self) -> frozenset[View]:
        return frozenset(range(len(self.ways)))

    def taking(self, path: Path, slot: str | None) -> frozenset[View]:
        """The views that take a slot at a split."""
        return frozenset(i for i, way in enumerate(self.ways) if way[path] == slot)

    def entering(self, path: Path) -> frozenset[View]:
        """The views that do not pass by at a split."""
        return self.all - self.taking(path, None)


class _Nothing(Value):
    def each(self, op, values):
        return self

    def __getitem__(self, name):
        return self


class _Splits(Reading):
    """The reading that finds every split."""

    def __init__(self):
        self.found: dict[Path, Split] = {}

    def piece(self, tx, u, path):
        for name, part in slots(tx).items():
            interpret(part, u, self, (*path, name))
        return u

    def split(self, run: Run, u, owners):
        self.found[run.path] = Split(tuple(run.parts), owners)
        for name in run.parts:
            self.part(run, name, u)
        return u


def views_of(tx: Any) -> Views:
    """All ways through an expression."""
    reading = _Splits()
    interpret(tx, _Nothing(), reading)
    masks = {path: s for path, s in reading.found.items() if _is_data(s.owners.by)}
    classes = _classes(masks) if masks else [{}]
    known = set(classes[0])
    questions = _questions({p: s for p, s in reading.found.items() if p not in known})
    ways: list[dict[Path, str | None]] = []
    needed: list[frozenset[View]] = []
    answers, certain = _answers([options for _, options in questions])
    for one in classes:
        start = len(ways)
        for answer in answers:
            chosen = {
                p: options[i]
                for (where, _), i in zip(questions, answer, strict=True)
                for p, options in where.items()
            }
            ways.append({**one, **chosen})
        needed += [frozenset(start + i for i in group) for group in certain]
    return Views(ways, needed, frozenset(p for where, _ in questions for p in where))


def _is_data(mask: Any) -> bool:
    flags = jax.tree.leaves(mask)
    return bool(flags) and all(isinstance(x, bool | np.bool_) for x in flags)


def _classes(masks: dict[Path, Split]) -> list[dict[Path, str | None]]:
    """The ways that leaves take through masks that are data, each once."""
    named = {p: jax.tree_util.tree_leaves_with_path(s.owners.by) for p, s in masks.items()}
    paths = {trees.path_names(where) for leaves in named.values() for where, _ in leaves}
    longest = [p for p in paths if not any(q[: len(p)] == p and q != p for q in paths)]
    tree: Any = {}
    for names in longest:
        at = tree
        for name in names[:-1]:
            at = at.setdefault(name, {})
        if names:
            at[names[-1]] = 0.0
    tree = tree or 0.0
    ways: dict[Path, Sequence[str | None]] = {}
    for path, split in masks.items():
        try:
            ways[path] = split.owners.of(tree)
        except ValueError:  # it is a mask of some leaves only, inside another split
            continue
    rows = dict.fromkeys(zip(*ways.values(), strict=True)) if ways else [()]
    return [dict(zip(ways, row, strict=True)) for row in rows]


Question = tuple[dict[Path, tuple], int]


def _questions(splits: dict[Path, Split]) -> list[Question]:
    """Splits that nothing is known of; those by the same function are one question."""
    found: list[tuple[Any, dict[Path, tuple]]] = []
    for path, (names, owners) in splits.items():
        options = (*names, None) if owners.passes else names
        by = owners.by
        mine = next((w for other, w in found if by is not None and _equal(other, by)), None)
        if mine is None or len(next(iter(mine.values()))) != len(options):
            found.append((by, {path: options}))
        else:
            mine[path] = options
    return [(where, len(next(iter(where.values())))) for _, where in found]


def _equal(x: Any, y: Any) -> bool:
    return x is y or (callable(x) and callable(y) and type(x) is type(y) and bool(x == y))


def _answers(counts: list[int]) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Combinations of choices, and the groups of them in which one choice is the same.

    The others are all first, or all second, and so on: enough to tell what depends on
    them, and few."""
    if not counts:
        return [()], [[0]]
    at = lambda j: tuple(min(j, n - 1) for n in counts)
    index: dict[tuple[int, ...], int] = {}
    groups = []
    for k, n in enumerate(counts):
        for i in range(n):
            made = [(*at(j)[:k], i, *at(j)[k + 1 :]) for j in range(max(counts))]
            groups.append(sorted({index.setdefault(one, len(index)) for one in made}))
    return list(index), groups


# --- values by views ---------------------------------------------------------------------


class Seen(Value):
    """What is known of the updates at one place: a signal for every set of views."""

    def __init__(self, reader: Any, groups: list[tuple[Seeing, Signal]]):
        self.reader, self.groups = reader, groups

    @property
    def views(self) -> Seeing:
        return frozenset().union(*(views for views, _ in self.groups))

    def each(self, op: Callable, values: tuple) -> "Seen":
        return self.reader.operate(op, values)

    def __getitem__(self, name: str) -> "Seen":
        return self.map(signal.unknown)  # a branch of what is no fork, or of an unknown one

    def map(self, function: Callable[[Signal], Signal]) -> "Seen":
        """Another signal for every set of views."""
        return Seen(self.reader, [(views, function(s)) for views, s in self.groups])

    def only(self, views: Seeing) -> "Seen":
        """What is seen in some of the views."""
        kept = [(mine & views, s) for mine, s in self.groups if mine & views]
        return Seen(self.reader, kept)


def together(values: dict[str, Seen]) -> Iterator[tuple[Seeing, dict[str, Signal]]]:
    """Several values, by sets of views in which each is one signal."""
    found: list[tuple[Seeing | None, dict[str, Signal]]] = [(None, {})]
    for name, value in values.items():
        found = [
            (mine if views is None else views & mine, {**known, name: s})
            for views, known in found
            for mine, s in value.groups
            if views is None or views & mine
        ]
    yield from ((views, known) for views, known in found if views)


def nothing(reader: Any, u: Any) -> Seen:
    """A value of which nothing is known, in the views of another, or of a fork."""
    if isinstance(u, Seen):
        return u.map(signal.unknown)
    inside = [nothing(reader, x) for x in (u.values() if isinstance(u, dict) else ())]
    views = frozenset[View]().union(*(x.views for x in inside))
    return Seen(reader, [(views, signal.unknown())])
