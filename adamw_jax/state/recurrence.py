"""Recurrence: how an elementwise piece renews a field of its state, x <- decay x + gain u^power.

Found by running its formula on numbers.  It tells an average from a sum, and both from
averages of squares, whoever wrote the piece.
"""

import contextlib
from typing import Any, NamedTuple

import numpy as np

from adamw_jax.core.flow import Formula, PerTree
from adamw_jax.core.transformation import Transformation


class Recurrence(NamedTuple):
    """x <- decay x + gain u^power, power 1 or 2."""

    decay: Any
    gain: Any
    power: int

    @property
    def averages(self) -> bool:
        """Whether the weights of old and new add up to 1."""
        return bool(np.allclose(self.decay + self.gain, 1, atol=1e-6))


def recurrence(piece: Transformation, field: str) -> Recurrence | None:
    """How a piece renews a field; None if otherwise, or if nobody can tell."""
    known = piece.__dict__.setdefault("recurrences", {})
    if field not in known:
        known[field] = _recurrence(piece.body, field)
    return known[field]


def _recurrence(body: Any, field: str) -> Recurrence | None:
    if not isinstance(body, Formula) or field not in body.starts:
        return None
    renew = lambda x, u: _renewed(body, field, np.float64(x), np.float64(u))
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
        return _fitted(renew)
    return None  # it needs more than numbers


def _renewed(body: Formula, field: str, x: Any, u: Any) -> Any:
    """What the formula makes of a field, late in a training and with the parameter at 0."""
    numbers = {k: v.start if isinstance(v, PerTree) else 0.0 for k, v in body.starts.items()}
    known = {**numbers, "t": np.float64(9), "theta": np.float64(0), field: x}
    return np.asarray(body.formula(u, **{k: known[k] for k in body.reads})[1][field], float)


def _fitted(renew: Any) -> Recurrence | None:
    """The recurrence that a function of x and u follows, up to a constant."""
    rest = renew(0, 0)
    decay, gain = renew(1, 0) - rest, renew(0, 1) - rest
    for power in (1, 2):
        fits = (
            np.allclose(renew(x, u) - rest, decay * x + gain * u**power, rtol=1e-4, equal_nan=True)
            for x, u in ((3, 2), (2, -3), (0.5, -0.5))
        )
        if all(fits):
            return Recurrence(decay, gain, power)
    return None
