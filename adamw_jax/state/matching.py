"""Matching: which array of one optimizer's state means the same in another's.

An array means what its name says (the class of state and the field), for which
parameter, of what input (`adamw_jax.state.history`): an average of gradients is not
one of normalized gradients.  Where several mean the same, the place decides: the same slot, then
a slot moved as a whole, then the same piece, then the only one left.  What is
still ambiguous is matched with nothing.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import optax

from adamw_jax.core.flow import Formula, opened, slots
from adamw_jax.core.slots import parts
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.state.history import GRADIENT, History, histories
from adamw_jax.state.layout import Held, state
from adamw_jax.state.recurrence import Recurrence, recurrence


class Entry(NamedTuple):
    """One array of a state, and the piece that keeps it.

    Attributes:
      held: where it is and what it is called.
      piece: the piece.
      sees: what has happened to the gradient before the piece receives it.
      value: the array, None if there is none yet.
    """

    held: Held
    piece: Transformation
    sees: History
    value: Any = None

    @property
    def name(self) -> str:
        """Its dotted name, "direction.numerator.0.momentum"."""
        return ".".join(filter(None, (self.held.path, self.held.field)))

    @property
    def place(self) -> tuple[str, ...]:
        """The slots that lead to what holds it."""
        names = tuple(self.name.split("."))
        return names[: len(names) - len(self.held.name.split("."))]

    @property
    def called(self) -> tuple:
        """What it is, wherever it stands."""
        kind = self.held.kind or self.piece.factory
        return kind.__name__, self.held.name, self.held.leaf

    @property
    def meaning(self) -> tuple:
        """What two arrays must share to stand for each other."""
        return *self.called, self.held.shape, self.held.dtype, self.sees


def entries(tx: optax.GradientTransformation, params: Any) -> list[Entry]:
    """Every array of the state of `tx`, in the order in which JAX flattens it."""
    tx = lift(tx)
    pieces, seen = {"": tx, **parts(tx)}, histories(tx, params)
    anywhere = {path: sees for met in reversed(seen) for path, sees in met.items()}

    def sees(held: Held) -> History:
        met = anywhere if held.leaf is None else seen[held.leaf]
        return met.get(held.path, GRADIENT)

    return [Entry(h, opened(pieces[h.path]), sees(h)) for h in state(tx, params)]


def _ends_alike(old: Entry, new: Entry) -> bool:
    """Whether one place is the other with more slots before it."""
    n = min(len(old.place), len(new.place))
    return old.place[len(old.place) - n :] == new.place[len(new.place) - n :]


_TIERS: tuple[Callable[[Entry, Entry], bool], ...] = (
    lambda old, new: old.place == new.place,
    _ends_alike,
    lambda old, new: old.piece == new.piece,
    lambda old, new: True,
)


def pair(old: list[Entry], new: list[Entry]) -> dict[int, int]:
    """For arrays of `new` that belong to a parameter, the one of `old` that means the same.

    Both by their position; each stands for at most one."""
    alike: dict[tuple, tuple[list[int], list[int]]] = {}
    for side, found in enumerate((old, new)):
        for i, entry in enumerate(found):
            if entry.held.leaf is not None:
                alike.setdefault(entry.meaning, ([], []))[side].append(i)
    return {j: i for olds, news in alike.values() for j, i in _pairs(old, new, olds, news)}


def _pairs(old, new, olds: list[int], news: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs (new, old) among arrays of one meaning, those first that are alike in most."""
    for related in _TIERS:
        choice = {j: [i for i in olds if related(old[i], new[j])] for j in news}
        wanted = Counter(i for found in choice.values() for i in found)
        sure = {j: c[0] for j, c in choice.items() if len(c) == 1 and wanted[c[0]] == 1}
        yield from sure.items()
        olds = [i for i in olds if i not in sure.values()]
        news = [j for j in news if j not in sure]


def source(old: list[Entry], entry: Entry) -> list[int]:
    """The numbers of `old` that may stand for one that belongs to no parameter.

    They are of one value, or there is none: the one in the same place, those
    moved as a whole, all of that name, or for a count that only tells how many
    updates there were, all counts."""
    aval = lambda e: (e.held.leaf, e.held.shape, e.held.dtype)
    loose = [i for i, e in enumerate(old) if aval(e) == aval(entry)]
    named = [i for i in loose if old[i].called == entry.called]
    tiers = [[i for i in named if related(old[i], entry)] for related in _TIERS[:2]]
    tiers.append(named)
    if entry.held.name == "count" and not _counts_its_own(entry.piece):
        tiers.append([i for i in loose if old[i].held.name == "count"])
    found: list[int] = next(filter(None, tiers), [])
    bits = {np.asarray(old[i].value).tobytes() for i in found}  # a NaN is equal to itself
    if len(bits) > 1:
        return []
    shared = lambda i: len(set(old[i].place) & set(entry.place))
    return sorted(found, key=shared, reverse=True)


def _counts_its_own(piece: Transformation) -> bool:
    """Whether a count tells how long what is inside the piece has been there; that of a
    schedule for a part only tells the time."""
    return "tx" in slots(piece) and not piece.factory.declared["now"]


def scope(new: list[Entry], entry: Entry) -> list[int]:
    """The arrays whose age a number of the state speaks of: none, if it just tells the time.

    They are those of the same piece; for a correction, which has none, those
    that stand nearest."""
    arrays = [i for i, e in enumerate(new) if e.held.leaf is not None]
    own = [i for i in arrays if new[i].place == entry.place]
    if own or not _corrects(entry):
        return own
    for n in range(len(entry.place), -1, -1):
        near = [i for i in arrays if new[i].place[:n] == entry.place[:n]]
        if near:
            return near
    return []


def _corrects(entry: Entry) -> bool:
    """Whether a number tells the age of arrays that others keep."""
    if isinstance(entry.piece.body, Formula):
        return getattr(entry.held.kind, "_fields", ()) == ("count",) and "t" in (
            entry.piece.body.reads
        )
    return "correction" in entry.piece.factory.declared["traits"]


def older(new: list[Entry], kept: Collection[int]) -> Iterator[tuple[int, int]]:
    """Averages that are kept, each with squares of the same parameter that are not."""
    young = {
        e.held.leaf: i
        for i, e in enumerate(new)
        if e.held.leaf is not None and i not in kept and _is_of_squares(e)
    }
    for j in kept:
        leaf = new[j].held.leaf
        if leaf in young and _is_average(new[j]):
            yield j, young[leaf]


def follows(entry: Entry) -> Recurrence | None:
    """How the array is renewed, where that can be told."""
    field, *_ = entry.held.name.split(".")
    return recurrence(entry.piece, field)


def _is_of_squares(entry: Entry) -> bool:
    how = follows(entry)
    return how.power == 2 if how else "squares" in entry.piece.factory.declared["traits"]


def _is_average(entry: Entry) -> bool:
    """Whether an array remembers more than one of what it was shown, and no squares."""
    how, traits = follows(entry), entry.piece.factory.declared["traits"]
    if how:
        return how.power == 1 and bool(np.any(how.decay))
    return "average" in traits and "squares" not in traits


def reason(old: list[Entry], entry: Entry, used: Collection[int]) -> str:
    """Why nothing in `old` stands for an array; `used` are those that stand for others."""
    alike = [e for e in old if e.called == entry.called]
    if not alike:
        return "new"
    same = [i for i, e in enumerate(old) if e.meaning == entry.meaning]
    if entry.held.leaf is None or any(i not in used for i in same):
        names = [old[i].name for i in same if i not in used] or [e.name for e in alike]
        return f"ambiguous: {' or '.join(names)}"
    if same:
        return f"{old[same[0]].name} has gone elsewhere"
    fits = [e for e in alike if e.sees == entry.sees]
    if fits:
        return f"was {_aval(fits[0].held)}, is {_aval(entry.held)}"
    said = lambda sees: ", ".join(sees.words) or "nothing"
    return f"{alike[0].name} had {said(alike[0].sees)} before it, this has {said(entry.sees)}"


def _aval(held: Held) -> str:
    return f"{held.dtype}[{','.join(map(str, held.shape))}]"
