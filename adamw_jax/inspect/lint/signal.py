"""Signal: what is known of the updates at one place of an expression.

Units and signs, not numbers: a signal is a sum of terms, each a power of the gradient,
of θ and of every learning rate, with bounds on the factor before it.  `Number` is what
is no update: a hyperparameter, the number of the update, a norm.  The functions here
are the arithmetic of both; what is wrong with an operation is for `rules` to say.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, overload

import jax
import numpy as np

GRADIENT = "(gradient)"  # its name among the degrees; learning rates have their path

Degrees = Mapping[str, float | None]


class Hyper:
    """A hyperparameter, compared as an object: its value may be traced."""

    def __init__(self, value: Any):
        self.value = value


ANY = Hyper(None)  # one that is not known: equal to all


def is_traced(*values: Any) -> bool:
    """Whether the value of any of these is only known when the update runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def same(x: Hyper, y: Hyper) -> bool:
    """Whether two hyperparameters may be equal, up to the precision of float32."""
    if x is ANY or y is ANY or is_traced(x.value, y.value):
        return True
    a, b = x.value, y.value
    if callable(a) or callable(b):
        return bool(a == b)
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=0, atol=1e-7))


class Number(NamedTuple):
    """A factor: what is known of a number that is no update.

    Attributes:
      low, high: its bounds.
      hyper: the hyperparameter that it is.
      degrees: how it grows with the gradient (a norm does) and with learning rates.
      gathered: (decay, power) of every 1 - decay^t in it.
      lacking: the decay, if it is decay^t.
      counts: whether it counts the updates.
    """

    low: float = -math.inf
    high: float = math.inf
    hyper: Hyper = ANY
    degrees: Mapping[str, float | None] = {}
    gathered: tuple[tuple[Hyper, float], ...] = ()
    lacking: Hyper | None = None
    counts: bool = False

    @property
    def exact(self) -> float | None:
        """Its value, if that is known."""
        return self.low if self.low == self.high else None

    @property
    def known_as(self) -> Hyper:
        """What to compare with other hyperparameters."""
        return self.hyper if self.exact is None else Hyper(self.exact)


class Debt(NamedTuple):
    """An average that began at 0: it has gathered the weight (1 - decay^t)^owed.

    `paid` is the power that it was divided by.  Where there was no such average, a
    correction leaves a debt of 0 behind, and `path` and `others`: what it was, and which
    averages there were instead."""

    decay: Hyper
    owed: float
    paid: float = 0.0
    path: str | None = None
    others: tuple[Hyper, ...] = ()


class Term(NamedTuple):
    """One summand of the updates.

    Attributes:
      low, high: bounds of the factor before it.
      degrees: its powers of the gradient and of learning rates; None if not known.
      debts: averages that began at 0, and their corrections.
      averages: the decays of all averages in it.
      smooth: whether it is an average, and not the raw gradient.
      decay: the path of the piece that added it, if it is a multiple of θ.
      meant: what that piece calls it: "decoupled_decay", "l2", or ""; "told" once it was said
        that it is not that.
      born: its sign when it was added; None inside that piece.
      old: the state it is, from before this update, and `by` what multiplies that.
      turned: the path of the last piece that changed its sign, but for learning rates.
      slot: the branch of a sum that it comes from.
    """

    low: float = 1.0
    high: float = 1.0
    degrees: Mapping[str, float | None] = {GRADIENT: 1.0}
    debts: tuple[Debt, ...] = ()
    averages: tuple[Hyper, ...] = ()
    smooth: bool = False
    decay: str | None = None
    meant: str = ""
    born: int | None = None
    old: str | None = None
    by: Hyper | None = ANY
    turned: str | None = None
    slot: str | None = None

    @property
    def sign(self) -> int | None:
        """1 if it goes up the gradient, -1 if down, None if that is not known."""
        if self.low >= 0 and self.high > 0:
            return 1
        return -1 if self.high <= 0 and self.low < 0 else None

    @property
    def rates(self) -> list[str]:
        """The learning rates in it that were not normalised away, by path."""
        return [path for path, d in self.degrees.items() if path != GRADIENT and d]


class Signal(NamedTuple):
    """What is known of the updates at one place.

    Attributes:
      terms: whose sum they are.
      known: no foreign piece is upstream, so what has not been seen is not there.
      definite: True if no number is negative, False if some may be, None if not known.
      form: "square", "square of an average" or "root of a square", if they are just that.
      signs: the path of the `sign` that gave them.
      scaled: the path of the piece that only scaled them, if that was the last one.
      missed: the masks that let them pass by, each as its path.
      last: the path of a piece that must be last, if they have been through one.
      route: the path of the last branch of a route that they took.
      inside: the paths of decays that were averaged or divided with the gradient.
      at: the path of the slot that they come out of.
    """

    terms: tuple[Term, ...] = (Term(),)
    known: bool = True
    definite: bool | None = False
    form: str = ""
    signs: str | None = None
    scaled: str | None = None
    missed: tuple[tuple[str, ...], ...] = ()
    last: str | None = None
    route: str = ""
    inside: tuple[str, ...] = ()
    at: str = ""

    @property
    def gradient(self) -> list[Term]:
        """The terms that are no decay."""
        return [t for t in self.terms if t.decay is None and t.old is None]

    @property
    def decays(self) -> list[Term]:
        """The terms that are multiples of θ."""
        return [t for t in self.terms if t.decay is not None]

    @property
    def sign(self) -> int | None:
        """The sign of all terms but decays, if they have one."""
        signs = {t.sign for t in self.gradient}
        return signs.pop() if len(signs) == 1 else None

    @property
    def rates(self) -> list[str]:
        """The learning rates that were not normalised away, by path."""
        return list(dict.fromkeys(r for t in self.gradient for r in t.rates))

    @property
    def has_rates(self) -> bool:
        """Whether there was any learning rate."""
        return any(len(t.degrees) > (GRADIENT in t.degrees) for t in self.terms)

    @property
    def degrees(self) -> Degrees:
        """The degrees that all terms but decays share; None where they differ."""
        found = [t.degrees for t in self.gradient]
        names = dict.fromkeys(n for d in found for n in d)
        return {n: _common(d.get(n, 0.0) for d in found) for n in names}

    @property
    def degree(self) -> float | None:
        """The power with which they grow with the gradient."""
        return self.degrees.get(GRADIENT, 0.0)


def unknown(*parts: "Signal | Number") -> Signal:
    """The signal of which nothing is known but where it has been."""
    signals = [x for x in parts if isinstance(x, Signal)]
    terms = (Term(-math.inf, math.inf, {GRADIENT: None}),)
    return _joined(Signal(terms, known=False, definite=None), signals)._replace(known=False)


def old_state(name: str) -> Signal:
    """State from before this update; as definite as what it is made of, from 0 on."""
    return Signal((Term(old=name, degrees={}),), definite=True)


def parameter(path: str, meant: str) -> Signal:
    """θ itself, read by the piece at a path."""
    return Signal((Term(degrees={}, decay=path, meant=meant),))


def _common(values: Iterable) -> Any:
    found = list(values)
    return found[0] if found and all(x == found[0] for x in found) else None


def _joined(out: Signal, signals: Iterable[Signal]) -> Signal:
    """The signal with what is remembered of several."""
    signals = list(signals)
    return out._replace(
        known=all(s.known for s in signals),
        missed=tuple(dict.fromkeys(m for s in signals for m in s.missed)),
        last=next((s.last for s in signals if s.last is not None), None),
        route=next((s.route for s in signals if s.route), ""),
        inside=tuple(dict.fromkeys(p for s in signals for p in s.inside)),
        at="",
    )


# --- bounds ------------------------------------------------------------------------------

Bounds = tuple[float, float]


def _product(a: Bounds, b: Bounds) -> Bounds:
    found = [0.0 if math.isnan(z := x * y) else z for x in a for y in b]
    return min(found), max(found)


def _reciprocal(b: Bounds) -> Bounds:
    low, high = b
    if low > 0 or high < 0:
        return 1 / high, 1 / low
    if low == high:
        return -math.inf, math.inf
    return (0.0, math.inf) if low >= 0 else (-math.inf, 0.0) if high <= 0 else (-math.inf, math.inf)


def _combined(a: Degrees, b: Degrees, power: float = 1.0) -> dict[str, float | None]:
    """The degrees of a product a · b^power."""
    out = dict(a)
    for name, degree in b.items():
        mine = out.get(name, 0.0)
        out[name] = None if mine is None or degree is None else mine + power * degree
    return out


def _scaled(degrees: Degrees, power: float) -> dict[str, float | None]:
    return {name: None if d is None else d * power for name, d in degrees.items()}


# --- numbers -----------------------------------------------------------------------------


def constant(value: float) -> Number:
    """A plain number."""
    return Number(value, value)


def _either(a: Degrees, b: Degrees) -> Degrees:
    """The degrees of a sum of numbers; a constant is a matter of precision."""
    if not a or not b:
        return a or b
    return {n: _common((a.get(n, 0.0), b.get(n, 0.0))) for n in {**a, **b}}


def number_sum(a: Number, b: Number) -> Number:
    """a + b."""
    low, high = a.low + b.low, a.high + b.high
    counts = (a.counts and b.exact is not None) or (b.counts and a.exact is not None)
    return Number(low, high, degrees=_either(a.degrees, b.degrees), counts=counts)


def number_difference(a: Number, b: Number) -> Number:
    """a - b; 1 - decay^t is the weight that an average has gathered."""
    if a.exact == 1 and b.lacking is not None:
        return Number(0.0, 1.0, gathered=((b.lacking, 1.0),))
    return number_sum(a, number_product(constant(-1.0), b))._replace(
        counts=a.counts and b.exact is not None
    )


def number_product(a: Number, b: Number, power: float = 1.0) -> Number:
    """a · b, or a / b where the power is -1."""
    other = (b.low, b.high) if power > 0 else _reciprocal((b.low, b.high))
    low, high = _product((a.low, a.high), other)
    gathered = (*a.gathered, *((d, power * p) for d, p in b.gathered))
    return Number(low, high, degrees=_combined(a.degrees, b.degrees, power), gathered=gathered)


def number_power(a: Number, b: Number) -> Number:
    """a ** b; decay^t is known as that."""
    if b.counts and a.low >= 0 and a.high <= 1:
        return Number(0.0, 1.0, lacking=a.known_as)
    p = b.exact
    if a.exact is not None and p is not None:
        try:
            return constant(float(a.exact**p))
        except (ArithmeticError, TypeError):
            return Number()
    even = p is not None and p % 2 == 0
    if p is None:
        return Number(0.0 if a.low >= 0 else -math.inf)
    low = 0.0 if even or a.low >= 0 else -math.inf
    gathered = tuple((d, p * q) for d, q in a.gathered)
    return Number(low, degrees=_scaled(a.degrees, p), gathered=gathered)


def hull(a: Number, b: Number) -> Number:
    """One of two numbers."""
    gathered = a.gathered if a.gathered == b.gathered else ()
    bounds = min(a.low, b.low), max(a.high, b.high)
    return Number(*bounds, degrees=_either(a.degrees, b.degrees), gathered=gathered)


# --- signals -----------------------------------------------------------------------------


def times(s: Signal, n: Number, power: float = 1.0) -> Signal:
    """s · n, or s / n where the power is -1."""
    if n.exact == 1 and not n.gathered:
        return s
    factor = (n.low, n.high) if power > 0 else _reciprocal((n.low, n.high))
    terms = tuple(_times(t, n, factor, power) for t in s.terms)
    kept = [t for t in terms if t.decay is None or (t.low, t.high) != (0, 0)]
    definite = s.definite if factor[0] >= 0 else None if s.definite else s.definite
    return s._replace(terms=tuple(kept), definite=definite, at="")


def _times(t: Term, n: Number, factor: Bounds, power: float) -> Term:
    low, high = _product((t.low, t.high), factor)
    by = t.by
    if t.old is not None:
        by = n.known_as if (t.low, t.high) == (1, 1) and power > 0 else ANY
    debts = t.debts
    if t.decay is None and t.old is None:
        for decay, p in n.gathered:
            debts = _paid(debts, decay, -power * p)
    return t._replace(
        low=low, high=high, degrees=_combined(t.degrees, n.degrees, power), by=by, debts=debts
    )


def _paid(debts: tuple[Debt, ...], decay: Hyper, amount: float) -> tuple[Debt, ...]:
    """The debts after a division by (1 - decay^t)^amount."""
    mine = [i for i, d in enumerate(debts) if same(d.decay, decay)]
    exact = [i for i in mine if debts[i].owed == debts[i].paid + amount]
    i = next(reversed(exact or mine), None)
    if i is None:
        return (*debts, Debt(decay, 0.0, amount))
    return (*debts[:i], debts[i]._replace(paid=debts[i].paid + amount), *debts[i + 1 :])


def _with(debts: tuple[Debt, ...], more: Iterable[Debt]) -> tuple[Debt, ...]:
    """The debts of a product; a correction may stand before its average."""
    for d in more:
        early = [x for x in debts if not x.owed and x.path is None and same(x.decay, d.decay)]
        if early and d.paid != d.owed:
            paid = d._replace(paid=d.paid + early[-1].paid)
            debts = (*(x for x in debts if x is not early[-1]), paid)
        else:
            debts = (*debts, d)
    return debts


def plus(a: Signal | Number, b: Signal | Number) -> Signal:
    """The sum of two, at least one of which is a signal."""
    if isinstance(a, Number):
        a, b = b, a
    assert isinstance(a, Signal), "two numbers are added by number_sum"
    if isinstance(b, Number):
        definite = a.definite if b.low >= 0 else None if a.definite else a.definite
        return a._replace(definite=definite, scaled=None, at="")
    terms = list(_forgiven(a.terms, b.terms))
    for t in _forgiven(b.terms, a.terms):
        i = next((i for i, x in enumerate(terms) if _alike(x, t)), None)
        if i is None:
            terms.append(t)
        else:
            terms[i] = terms[i]._replace(low=terms[i].low + t.low, high=terms[i].high + t.high)
    moved = [s for s in (a, b) if s.gradient]
    form = moved[0].form if len(moved) == 1 else ""
    out = Signal(tuple(terms), definite=_sum_definite(a, b), form=form)
    return _joined(out, (a, b))


def _alike(x: Term, y: Term) -> bool:
    return x._replace(low=0.0, high=0.0, slot=None) == y._replace(low=0.0, high=0.0, slot=None)


def _sum_definite(a: Signal, b: Signal) -> bool | None:
    if a.definite is None or b.definite is None:
        return None
    return a.definite and b.definite


def _forgiven(terms: Iterable[Term], others: Iterable[Term]) -> Iterable[Term]:
    """The terms without corrections of averages that stand in other terms of the sum."""
    averages = [d for t in others for d in t.averages]
    for t in terms:
        keep = [d for d in t.debts if d.owed or not any(same(d.decay, a) for a in averages)]
        yield t if len(keep) == len(t.debts) else t._replace(debts=tuple(keep))


def collapsed(s: Signal) -> Term:
    """All terms but decays as one, which a function that is not linear makes of them."""
    own = s.gradient or [Term(degrees={GRADIENT: 0.0})]
    bounds = {1: (0.0, math.inf), -1: (-math.inf, 0.0), None: (-math.inf, math.inf)}[s.sign]
    debts = own[0].debts if all(t.debts == own[0].debts for t in own) else ()
    return Term(
        *((own[0].low, own[0].high) if len(own) == 1 else bounds),
        degrees=s.degrees or {GRADIENT: 0.0},
        debts=debts,
        averages=tuple(dict.fromkeys(a for t in own for a in t.averages)),
        smooth=all(t.smooth for t in own),
        turned=next((t.turned for t in own if t.turned is not None), None),
    )


def power(s: Signal, p: float) -> Signal:
    """s ** p, for p > 0."""
    t = collapsed(s)
    debts = tuple(d._replace(owed=d.owed * p, paid=d.paid * p) for d in t.debts)
    even = p % 2 == 0
    definite = True if even or s.definite or p % 1 else s.definite
    t = t._replace(degrees=_scaled(t.degrees, p), debts=debts)
    if definite:
        t = t._replace(low=0.0, high=math.inf)
    square = "square of an average" if t.smooth and s.degree != 0 else "square"
    form = square if even else "root of a square" if s.form == "square" and p == 0.5 else ""
    return s._replace(terms=(t,), definite=definite, form=form, signs=None, scaled=None, at="")


def magnitude(s: Signal) -> Signal:
    """|s|."""
    t = collapsed(s)._replace(low=0.0, high=math.inf)
    return s._replace(terms=(t,), definite=True, form="", scaled=None, at="")


def normalized(s: Signal, path: str | None = None) -> Signal:
    """A function of s that is the same for any positive multiple of it: signs, at a path."""
    t = collapsed(s)
    t = t._replace(degrees=dict.fromkeys(t.degrees, 0.0), debts=(), smooth=False)
    return s._replace(terms=(t,), form="", signs=path, scaled=None, at="")


def product(a: Signal, b: Signal, power: float = 1.0) -> Signal:
    """a · b, or a / b where the power is -1; the terms are those of a."""
    if power > 0 and a.definite and not b.definite:
        a, b = b, a
    other = collapsed(b)
    debts = tuple(d._replace(owed=d.owed * power, paid=d.paid * power) for d in other.debts)

    def term(t: Term) -> Term:
        low, high = (t.low, t.high) if b.definite else (-math.inf, math.inf)
        return t._replace(
            low=low,
            high=high,
            degrees=_combined(t.degrees, other.degrees, power) if t.decay is None else t.degrees,
            debts=_with(t.debts, debts) if t.decay is None else t.debts,
            averages=tuple(dict.fromkeys((*t.averages, *other.averages))),
            smooth=False,
        )

    signed = a.definite if b.definite else None
    out = Signal(tuple(map(term, a.terms)), definite=signed)
    return _joined(out, (a, b))


@overload
def either(a: Signal, b: Signal) -> Signal: ...


@overload
def either(a: Signal | Number, b: Signal | Number) -> Signal | Number: ...


def either(a: Signal | Number, b: Signal | Number) -> Signal | Number:
    """One of two, as a condition says; a number is a matter of beginning or precision."""
    if isinstance(a, Number):
        if isinstance(b, Number):
            return hull(a, b)
        a, b = b, a
    if isinstance(b, Number):
        return a._replace(definite=a.definite if b.low >= 0 else None, at="")
    if not a.gradient or not b.gradient:
        return a if a.gradient else b
    began = tuple(t._replace(by=None) for t in (*a.terms, *b.terms) if t.old is not None)
    x, y = collapsed(a), collapsed(b)
    debts = x.debts if began or x.debts == y.debts else ()
    degrees = {n: _common((x.degrees.get(n, 0.0), y.degrees.get(n, 0.0))) for n in x.degrees}
    t = x._replace(low=min(x.low, y.low), high=max(x.high, y.high), degrees=degrees, debts=debts)
    definite = _sum_definite(a, b)
    out = Signal((t, *began, *a.decays, *b.decays), definite=definite, form=a.form)
    return _joined(out, (a, b))


def without_old(s: Signal) -> Signal:
    """A signal without the state from before, which is like the rest of it."""
    return s._replace(terms=tuple(t for t in s.terms if t.old is None))


def averaged(s: Signal, decay: Hyper | None) -> Signal:
    """The average of s with a decay; from 0 on, or, if that is None, from the first s on."""
    debt = () if decay is None else (Debt(decay, 1.0),)

    def term(t: Term) -> Term:
        if t.decay is not None:
            return t
        mine = (*t.averages, decay or ANY)
        return t._replace(smooth=True, debts=(*t.debts, *debt), averages=mine)

    return s._replace(terms=tuple(map(term, s.terms)), form="", signs=None, scaled=None, at="")


def uncertain(branches: list[Signal]) -> Signal:
    """The signal of a function of several of which nothing is known."""
    degrees: dict[str, float | None] = {}
    for name in dict.fromkeys(n for b in branches for n in b.degrees):
        degrees[name] = _common(b.degrees.get(name, 0.0) for b in branches)
    averages = tuple(a for b in branches for t in b.terms for a in t.averages)
    debts = tuple(d for b in branches for t in b.terms for d in t.debts if d.owed)
    smooth = all(t.smooth for b in branches for t in b.gradient)
    one = Term(-math.inf, math.inf, degrees, debts, averages, smooth)
    decays = tuple(t for b in branches for t in b.decays)
    return _joined(Signal((one, *decays), definite=None), branches)
