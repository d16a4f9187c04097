"""Facts: the words by which a piece says what no reader can derive.

What most pieces do is read off their formulas and equations.  A piece that is more
than arithmetic, or means more than it computes, says so in these words,
`@transformation(traits=...)`.
"""

import math
from collections.abc import Collection
from typing import Any

from adamw_jax.inspect.lint import signal
from adamw_jax.inspect.lint.signal import Number, Signal

WORDS = {
    "linear": "passes on a positive multiple of what it receives, or a sum with earlier ones",
    "scale": "multiplies by its argument `factor`",
    "squares": "returns squares, or averages or sums of them",
    "root": "returns the square root",
    "positive": "never returns a negative number",
    "scale_invariant": "returns the same for any positive multiple of what it receives",
    "nonlinear": "mixes what it receives, so that the terms of a sum cannot be told apart",
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

# What a piece is called, and not what it does: its formula says that, if it has one.
NAMES = {"decoupled_decay", "l2", "independent", "clip", "global"}


def meaning(words: Collection[str]) -> str:
    """Which decay a piece is meant to add."""
    return next((w for w in ("decoupled_decay", "l2") if w in words), "")


def after(words: Collection[str], of: Any, s: Signal) -> Signal:
    """The signal that a piece with these words returns for the one that it receives.

    `of` does the arithmetic; it has the piece's arguments as numbers."""
    if "estimate" in words:
        terms = (signal.Term(-math.inf, math.inf, {signal.GRADIENT: None}),)
        s = s._replace(terms=terms, definite=None, form="", signs=None)
    if "squares" in words:
        s = of.square(s)
    if "root" in words:
        s = of.root(s)
    if "scale_invariant" in words:
        if "nonlinear" in words:
            s = of.entering(s)
            s = signal.normalized(s, of.path if "sign" in words else None)
        else:
            s = s._replace(terms=tuple(map(_without_degree, s.terms)), form="")
    elif "sign" in words:
        s = s._replace(signs=of.path)
    if "positive" in words:
        s = s._replace(definite=True)
    if "average" in words:
        corrected = "corrected" in words
        s = of.average(s, None if corrected else of.argument("decay").known_as)
    if "correction" in words:
        gathered = ((of.argument("decay").known_as, 1.0),)
        s = signal.times(s, Number(0.0, 1.0, gathered=gathered), -1.0)
    return _moved(words, of, s)


def _without_degree(t: signal.Term) -> signal.Term:
    if t.decay is not None:
        return t
    return t._replace(degrees=dict.fromkeys(t.degrees, 0.0), debts=(), smooth=False)


def _moved(words: Collection[str], of: Any, s: Signal) -> Signal:
    """The part of `after` that is about the step: its sign, its rates, its decay."""
    if "scale" in words:
        s = signal.times(s, of.argument("factor"))._replace(scaled=of.path)
    if "learning_rate" in words:
        s = signal.times(s, of.argument("learning_rate"))
    if "negative" in words:
        s = signal.times(s, signal.constant(-1.0))
    if {"decoupled_decay", "l2", "decay_after_rate"} & set(words):
        theta = signal.parameter(of.path, meaning(words))
        down = "decay_after_rate" in words
        s = signal.plus(s, signal.times(theta, signal.constant(-1.0 if down else 1.0)))
    if "clip" in words:
        of.clip(s)
    return s
