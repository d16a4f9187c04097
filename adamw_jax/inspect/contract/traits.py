"""Traits: each word that a piece may declare, as something to try.

The words are those of `lint`.  A test gets `run(**stream)`, which makes a `Trial`, and
returns what was seen where the word does not hold; None where it does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from adamw_jax.core.flow import slots
from adamw_jax.inspect.contract.execution import Unknown
from adamw_jax.inspect.contract.trial import Trial

CLOSE = 1e-4  # a piece may add an eps to what it divides by
LARGE = 1e12  # where an eps is nothing

# From `run(**stream)` to a sentence on what is wrong.
Test = Callable[[Callable[..., Trial]], str | None]


def _flat(leaves: Any) -> np.ndarray:
    """All numbers of one update."""
    return np.concatenate([np.ravel(x) for x in leaves])


def _received(trial: Trial) -> list[np.ndarray]:
    """What came in at every update; of a fork its first branch."""
    return [_flat(next(iter(g.values())) if isinstance(g, dict) else g) for g in trial.grads]


def _returned(trial: Trial) -> list[np.ndarray]:
    """What came out, one number for each that came in."""
    pairs = (
        zip(u, theta, strict=True) for u, theta in zip(trial.updates, trial.thetas, strict=True)
    )
    return [_flat(np.broadcast_to(x, p.shape) for x, p in pair) for pair in pairs]


def _first_wrong(trial: Trial, right: Callable[[np.ndarray, np.ndarray], Any]) -> str | None:
    """Where an update is not right beside what was received."""
    for t, (g, u) in enumerate(zip(_received(trial), _returned(trial), strict=True), 1):
        wrong = ~np.asarray(right(g, u)) & ~np.isnan(u)
        if np.any(wrong):
            i = int(np.argmax(wrong))
            return f"update {t} makes {u[i]:.4g} of {g[i]:.4g}"
    return None


def _differs(one: list, other: list, factor: float = 1.0) -> str | None:
    """Where the second of two streams of updates is not the first, times a factor."""
    for t, (x, y) in enumerate(zip(map(_flat, one), map(_flat, other), strict=True), 1):
        due, size = factor * x, np.max(np.abs(factor * x), initial=0, where=~np.isnan(x))
        wrong = ~np.isclose(y, due, rtol=CLOSE, atol=CLOSE * size, equal_nan=True)
        if np.any(wrong):
            i = int(np.argmax(wrong))
            return f"where {due[i]:.4g} is due update {t} gives {y[i]:.4g}"
    return None


def _homogeneous(power: float) -> Test:
    def test(run):
        return _differs(run(signed=False).updates, run(signed=False, scale=2.0).updates, 2.0**power)

    return test


def _linear(run):
    wrong = _homogeneous(1)(run)
    return wrong or _first_wrong(run(still=True), lambda g, u: u * g > 0)


def _squares(run):
    wrong = _first_wrong(run(), lambda g, u: u >= 0)
    return wrong or _homogeneous(2)(run)


def _root(run):
    large = run(signed=False, scale=LARGE), run(signed=False, scale=4 * LARGE)
    return _differs(large[0].updates, large[1].updates, 2.0)


def _scale_invariant(run):
    """Branches of a fork may have other units; then one assignment of them must do."""
    plain = run()
    powers = [(1, 1), (1, 2), (2, 1)] if plain.branches else [(1, 1)]
    found = [_differs(plain.updates, run(scale=8.0, powers=p).updates) for p in powers]
    return None if None in found else found[0]


def _nonlinear(run):
    proportional = _differs(run().updates, run(scale=8.0).updates, 8.0) is None
    return "is proportional to what it receives" if proportional else None


def _estimate(run):
    return _differs(run().updates, run(scale=-3.0).updates)


def _gathered(trial: Trial) -> list[float]:
    """The weight that an average has by each update."""
    decay = trial.piece.arguments["decay"]
    return [1 - decay**t for t in range(1, len(trial.updates) + 1)]


def _average(run):
    trial = run(still=True)
    if "decay" not in trial.piece.arguments:
        return "has no argument 'decay'"
    weights = [1.0] * 9 if "corrected" in _words(trial) else _gathered(trial)
    full = [[x / w for x in u] for u, w in zip(trial.updates, weights, strict=False)]
    return _differs([full[0]] * len(full), full)


def _correction(run):
    trial = run()
    if "decay" not in trial.piece.arguments:
        return "has no argument 'decay'"
    due = [[g / w] for g, w in zip(_received(trial), _gathered(trial), strict=True)]
    return _differs(due, trial.updates)


def _words(trial: Trial) -> tuple[str, ...]:
    return trial.piece.factory.declared["traits"]


def _times(argument: str, sign: float = 1.0) -> Test:
    """Multiplies by an argument; the sign is that of the word `negative`."""

    def test(run):
        trial = run()
        factor = trial.piece.arguments.get(argument)
        if callable(factor):
            raise Unknown(f"its {argument} is a schedule")
        if factor is None:
            return f"has no argument {argument!r}"
        turned = -1 if argument == "learning_rate" and "negative" in _words(trial) else 1
        return _differs([[turned * factor * g] for g in _received(trial)], trial.updates)

    return test


def _moved(run) -> tuple[np.ndarray, np.ndarray]:
    """By how much more the first update moves when the parameters are twice as large, and they."""
    small, large = run(), run(theta=2.0)
    return _flat(large.updates[0]) - _flat(small.updates[0]), _flat(small.thetas[0])


def _adds_theta(run):
    (more, theta), decay = _moved(run), run().piece.arguments.get("weight_decay", np.nan)
    return _differs([[decay * theta]], [[more]])


def _takes_theta(run):
    more, theta = _moved(run)
    i = int(np.argmax(more * theta))
    return f"it adds {more[i]:.4g} for {theta[i]:.4g}" if more[i] * theta[i] > 0 else None


def _independent(run):
    peak = getattr(run().piece.arguments.get("schedule"), "peak", 1.0)
    return None if peak in (None, 1.0) else f"the peak of its schedule is {peak}"


def _clip(run):
    wrong = _first_wrong(run(), lambda g, u: np.abs(u) <= np.abs(g) * (1 + CLOSE))
    size = lambda trial: max(np.max(np.abs(_flat(u))) for u in trial.updates)
    large, larger = size(run(scale=LARGE)), size(run(scale=10 * LARGE))
    if wrong or larger <= large * (1 + CLOSE):
        return wrong
    return f"it lets {larger:.4g} pass, and of a tenth {large:.4g}"


def _global(run):
    plain, other = run(scale=LARGE), run(scale=LARGE, leaf=10.0)
    if len(plain.paths) < 2:
        raise Unknown("there is one leaf")
    same = _differs([u[1:] for u in plain.updates], [u[1:] for u in other.updates]) is None
    return "what it makes of a leaf does not depend on the others" if same else None


def _first(run):
    """What is left of the branch may have been made scale-free or positive since."""
    trial = run()
    if set(_words(trial)) - {"first"}:
        return None
    return _first_wrong(trial, lambda g, u: u * g >= 0)


def _wrapper(run):
    trial = run()
    parts = slots(trial.piece)
    if len(parts) != 1:
        return f"it has {len(parts)} parts"
    inner = run(next(iter(parts.values())))
    agree = [_flat(u) @ _flat(v) for u, v in zip(trial.updates, inner.updates, strict=True)]
    if max(map(abs, agree)) == 0 or next(x for x in agree if x) > 0:
        return None
    return "it goes another way than its part"


TESTS: dict[str, Test] = {
    "average": _average,
    "clip": _clip,
    "correction": _correction,
    "decay_after_rate": _takes_theta,
    "decoupled_decay": _adds_theta,
    "estimate": _estimate,
    "first": _first,
    "global": _global,
    "independent": _independent,
    "l2": _adds_theta,
    "learning_rate": _times("learning_rate"),
    "linear": _linear,
    "negative": lambda run: _first_wrong(run(), lambda g, u: u * g <= 0),
    "positive": lambda run: _first_wrong(run(), lambda g, u: u >= 0),
    "root": _root,
    "scale": _times("factor"),
    "scale_invariant": _scale_invariant,
    "nonlinear": _nonlinear,
    "sign": lambda run: _first_wrong(run(), lambda g, u: np.isin(u, (-1, 0, 1))),
    "squares": _squares,
    "wrapper": _wrapper,
}


def broken_word(piece: Any, word: str, run: Callable[..., Trial]) -> str | None:
    """What was seen where a word does not hold of a piece, None where it does.

    Raises:
      Unknown: there is nothing to try.
    """
    if word not in TESTS and word != "corrected":  # which is tried with "average"
        raise Unknown(f"there is no test of the word {word!r}")
    if slots(piece) and word != "wrapper":
        raise Unknown(f"what is {word!r} may be its part")
    if not run().whole:
        raise Unknown("it returns something else than an update")
    return TESTS[word](run) if word in TESTS else None
