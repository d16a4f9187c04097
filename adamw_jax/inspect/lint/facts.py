"""Facts: what is known of the updates at each place of an expression.

Pieces say what they do in words, `@transformation(traits=...)`; here is what
the words and the combinators do to a `Signal`.  `lint` reasons with it.

A fact is only kept while it is certain: what a foreign piece returns, or a
function of the user, is unknown, and nothing is concluded from it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

WORDS = {
    "linear": "passes on a positive multiple of what it receives, or a sum with earlier ones",
    "scale": "multiplies by its argument `factor`",
    "squares": "returns squares, or averages or sums of them",
    "root": "returns the square root",
    "positive": "never returns a negative number",
    "scale_invariant": "returns the same for any positive multiple of what it receives",
    "sign": "returns signs",
    "estimate": "returns something that does not come from what it receives",
    "average": "averages what it receives, from 0, with the weight `decay` of the old value",
    "corrected": "an average that is already corrected for having begun at 0",
    "correction": "corrects an average that began at 0 and has the argument `decay`",
    "learning_rate": "multiplies by the learning rate",
    "negative": "returns a negative multiple: a step down",
    "decoupled_decay": "adds weight_decay * θ, to stand after the quotient, before the rate",
    "l2": "adds weight_decay * θ, to stand before every average",
    "decay_after_rate": "takes a multiple of θ off, to stand after the learning rate",
    "independent": "a decay whose argument `schedule` is 1 at its peak",
    "clip": "bounds what it receives",
    "global": "looks at the whole tree at once",
    "first": "consumes a fork and passes on a positive multiple of its first branch",
    "wrapper": "returns what its one part, `tx`, returns for the same updates",
}


GRADIENT = "(gradient)"  # its name among the degrees; learning rates have their path


_ANY: Any = object()  # a decay that is not known: equal to all


class Signal(NamedTuple):
    """What is known of the updates at one place.

    Attributes:
      known: no foreign piece is upstream, so what has not been seen is not there.
      sign: 1 for a direction of ascent, -1 for a step down, None if not known.
      degrees: the power with which the updates grow with the gradient and with
        the learning rate at each path; None if not known.
      rates: the learning rates applied, by path.
      averages: decays of the averages that are not corrected yet.
      lent: likewise, of averages in sibling branches of a sum.
      averaged: whether there was an average at all.
      smooth: whether all of it is an average (and not the raw gradient, too).
      decays: paths of decoupled decay terms in the sum.
      grown: paths of decay terms added to what was negated, if by no learning rate.
      signs: the path of the `sign` that gave these updates.
      positive: whether no number is negative.
      turned: the path of the last piece that changed the sign, but for learning rates.
      last_scale: the path of a `scale`, if these are what it returned.
    """

    known: bool = True
    sign: int | None = 1
    degrees: Mapping[str, float | None] = {GRADIENT: 1.0}
    rates: Mapping[str, Any] = {}
    averages: tuple = ()
    lent: tuple = ()
    averaged: bool = False
    smooth: bool = False
    decays: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    signs: str | None = None
    positive: bool = False
    turned: str | None = None
    last_scale: str | None = None

    def scaled(self, power: float) -> dict[str, float | None]:
        """The degrees of a power of the updates."""
        return {name: d if d is None else d * power for name, d in self.degrees.items()}


UNKNOWN = Signal(known=False, sign=None, degrees={GRADIENT: None})


def is_traced(*values: Any) -> bool:
    """Whether the value of any of these is only known when the update runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def same(x: Any, y: Any) -> bool:
    """Whether two hyperparameters may be equal, up to the precision of float32."""
    if x is _ANY or y is _ANY or is_traced(x, y):
        return True
    if callable(x) or callable(y):
        return bool(x == y)
    return np.shape(x) == np.shape(y) and bool(np.allclose(x, y, rtol=0, atol=1e-7))


def decay_of(arguments: Mapping[str, Any]) -> Any:
    """The decay of an average or of its correction; equal to any other if it has none."""
    return arguments.get("decay", _ANY)


def after(traits: Iterable[str], arguments: Mapping[str, Any], path: str, s: Signal) -> Signal:
    """The signal that a piece returns for the signal that it receives."""
    if "estimate" in traits:
        s = Signal(s.known, None, {GRADIENT: None})
    if "squares" in traits:
        s = s._replace(degrees=s.scaled(2), sign=1, positive=True, averages=(), signs=None)
    if "root" in traits:
        s = s._replace(degrees=s.scaled(0.5), sign=1, positive=True)
    if "positive" in traits:
        s = s._replace(sign=1, positive=True)
    if "scale_invariant" in traits:
        s = s._replace(degrees=dict.fromkeys(s.degrees, 0.0), averages=(), smooth=False)
    if "sign" in traits:
        s = s._replace(signs=path)
    if "average" in traits:
        new = () if "corrected" in traits else (decay_of(arguments),)
        s = s._replace(averaged=True, smooth=True, signs=None, averages=(*s.averages, *new))
    if "correction" in traits:
        s = _corrected(s, decay_of(arguments))
    return _moved(traits, arguments, path, s)


def _corrected(s: Signal, decay: Any) -> Signal:
    left = list(s.averages)
    hit = next((i for i in reversed(range(len(left))) if same(left[i], decay)), None)
    if hit is not None:
        del left[hit]
    return s._replace(averages=tuple(left))


def _moved(traits, arguments, path, s: Signal) -> Signal:
    """The part of `after` that is about the step: its sign, its rates, its decay."""
    if not {"linear", "decoupled_decay"} & set(traits):
        s = s._replace(last_scale=path if "scale" in traits else None)
    if "scale" in traits:
        s = _times(s, arguments.get("factor", _ANY), path)
    if "negative" in traits:
        turned = s.turned if "learning_rate" in traits else path
        s = s._replace(sign=s.sign and -s.sign, turned=turned, positive=False)
    if "learning_rate" in traits:
        value = arguments.get("learning_rate", _ANY)
        s = s._replace(rates={**s.rates, path: value}, degrees={**s.degrees, path: 1.0})
    if {"decoupled_decay", "l2", "decay_after_rate"} & set(traits):
        s = s._replace(signs=None, positive=False)
    if "decoupled_decay" in traits:
        s = s._replace(decays=(*s.decays, path))
    if {"decoupled_decay", "l2"} & set(traits) and s.sign == -1 and not s.rates:
        s = s._replace(grown=(*s.grown, path))
    return s


def _times(s: Signal, factor: Any, path: str) -> Signal:
    if factor is _ANY or is_traced(factor) or np.iscomplexobj(factor):
        return s._replace(sign=None, positive=False)
    if np.all(np.asarray(factor) > 0):
        return s
    sign = s.sign and -s.sign if np.all(np.asarray(factor) < 0) else None
    return s._replace(sign=sign, positive=False, turned=path)


def _union(values: Iterable[Iterable]) -> tuple:
    return tuple(dict.fromkeys(item for value in values for item in value))


def summed(branches: list[Signal], *, certain: bool = True) -> Signal:
    """The signal of a sum of branches; of any function of them unless that is `certain`."""
    signs = {b.sign for b in branches}
    degrees: dict[str, float | None] = {}
    for name in _union(b.degrees for b in branches):
        found = {b.degrees.get(name) for b in branches}
        degrees[name] = found.pop() if len(found) == 1 else None
    return Signal(
        known=all(b.known for b in branches),
        sign=signs.pop() if certain and len(signs) == 1 else None,
        degrees=degrees,
        rates={path: value for b in branches for path, value in b.rates.items()},
        averages=tuple(decay for b in branches for decay in b.averages),
        averaged=any(b.averaged for b in branches),
        smooth=all(b.smooth for b in branches),
        decays=_union(b.decays for b in branches),
        grown=_union(b.grown for b in branches),
        positive=certain and all(b.positive for b in branches),
        turned=next((b.turned for b in branches if b.turned), None),
    )


def quotient(top: Signal, bottom: Signal) -> Signal:
    """The signal of top / bottom."""
    degrees: dict[str, float | None] = {}
    for name in _union((top.degrees, bottom.degrees)):
        above, below = top.degrees.get(name, 0.0), bottom.degrees.get(name, 0.0)
        degrees[name] = None if above is None or below is None else above - below
    return top._replace(
        known=top.known and bottom.known,
        sign=top.sign if bottom.positive else None,
        degrees=degrees,
        signs=None,
        smooth=False,
        last_scale=None,
        positive=top.positive and bottom.positive,
    )


def merged(inside: Signal, outside: Signal) -> Signal:
    """What is known where some leaves took one way and some the other."""
    if (inside.sign, inside.rates.keys()) != (outside.sign, outside.rates.keys()):
        return UNKNOWN
    return inside
