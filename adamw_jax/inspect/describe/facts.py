"""Facts: what a piece does to a step, found by running what it says on single numbers.

A hyperparameter is known by its effect: the decay is the one without which no multiple
of θ is added.  So a stranger's pieces are described like ours, whatever their arguments
are called.  A piece that says nothing of itself may do anything.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from adamw_jax.core.flow import slots
from adamw_jax.core.programs import is_number
from adamw_jax.core.saying import LETTERS, understood
from adamw_jax.core.transformation import Transformation
from adamw_jax.inspect.contract.execution import Execution, names_of

RATE = "learning_rate"
LARGE = 3e8  # as an update: beyond what a clip lets pass


class _Unknown:
    """What a piece does not say."""

    def __repr__(self):
        return "?"


UNKNOWN: Any = _Unknown()


def _run(piece: Transformation, arguments: Mapping, t: int = 1, u: float = 0, theta: float = 0):
    """What a piece passes on at one update, of single numbers; UNKNOWN if that cannot be."""
    said = understood(piece)
    if said is None:
        return UNKNOWN
    try:
        out = Execution(said, arguments).step(t, u=np.float64(u), theta=np.float64(theta))
        return out if np.ndim(out) == 0 and np.isfinite(out) else UNKNOWN
    except Exception:  # it needs matrices, functions, values that are not known yet
        return UNKNOWN


def _given(piece: Transformation) -> dict[str, Any]:
    """The arguments as they are, schedules at their peak."""
    at = lambda x: getattr(x, "peak", x) if callable(x) else x
    return {name: at(value) for name, value in piece.arguments.items()}


def _probes(piece: Transformation) -> dict[str, Any]:
    """The arguments with some number in the place of each that is one, or may be a schedule."""
    free = [name for name, x in piece.arguments.items() if is_number(x) or callable(x)]
    some = dict(zip(free, np.linspace(0.3, 0.4, max(len(free), 1)), strict=False))
    return dict(piece.arguments) | some


def _slope(run: Callable[[float], Any], far: float = 2.0) -> Any:
    """The factor of what is linear in a number; UNKNOWN if it is not."""
    zero, one, more = run(0.0), run(1.0), run(far)
    if UNKNOWN in (zero, one, more) or not np.isclose(more - zero, far * (one - zero)):
        return UNKNOWN
    return one - zero


def decay_of(piece: Transformation, params: Any = None) -> Any:
    """The hyperparameter that says which multiple of θ a piece adds; None if it adds none.

    If no single one says it, the multiple itself.

    Args:
      piece: one piece, opened.  What parts do is theirs to say.
      params: what a piece that says nothing is asked with, whether it needs parameters.
    """
    if slots(piece):
        return None
    said = understood(piece)
    if said is None:
        return None if _does_without(piece, params) else UNKNOWN
    if "theta" not in names_of(said):
        return None
    adds = lambda arguments: _slope(lambda theta: _run(piece, arguments, theta=theta))
    probes = _probes(piece)
    share = adds(probes)
    if share is UNKNOWN or share == 0:
        return UNKNOWN if share is UNKNOWN else None
    scheduled = {*piece.factory.scheduled, *(k for k, x in piece.arguments.items() if callable(x))}
    names = [k for k in probes if k in names_of(said) and is_number(piece.arguments[k])]
    found = [k for k in names if k not in scheduled and adds(probes | {k: np.float64(0)}) == 0]
    if len(found) == 1:
        return piece.arguments[found[0]]
    share = adds(_given(piece))
    return share if share is UNKNOWN else abs(float(share))


def _does_without(piece: Transformation, params: Any) -> bool:
    """Whether a piece updates without parameters: then it does not decay them."""
    try:
        with jax.numpy_dtype_promotion("standard"):  # which other libraries rely on
            state = jax.eval_shape(piece.init, params)
            jax.eval_shape(lambda g, state: piece.update(g, state), params, state)
    except Exception:  # whatever a stranger raises
        return False
    return True


def rate_of(piece: Transformation) -> Any:
    """The learning rate that a piece multiplies by; None if by none."""
    if slots(piece):
        return None
    if understood(piece) is None:
        return UNKNOWN
    if RATE not in piece.arguments:
        return None
    probes = _probes(piece)
    at = lambda rate: _run(piece, probes | {RATE: np.float64(rate)}, u=1.0)
    slope = _slope(at)
    return piece.arguments[RATE] if at(0.0) == 0 and slope not in (0, UNKNOWN) else None


def factor_of(piece: Transformation) -> Any:
    """The number by which a piece multiplies every update, whatever came before; 1 if by none."""
    said = understood(piece)
    if said is None or slots(piece) or said.statements or {"theta", "t"} & names_of(said):
        return 1.0
    if RATE in piece.arguments or "u" not in names_of(said):
        return 1.0
    times = lambda arguments: _slope(lambda u: _run(piece, arguments, u=u), -LARGE)
    if times(_probes(piece)) is UNKNOWN or _run(piece, _probes(piece)) != 0:
        return 1.0
    factor = times(_given(piece))
    return factor if factor is UNKNOWN else float(factor)


def memory_of(piece: Transformation, field: str) -> float | None:
    """The share of the old value that a field of the state keeps; None if it is no average."""
    said, name = understood(piece), LETTERS.get(field, field)
    if said is None or slots(piece) or name not in names_of(said):
        return None

    def kept(old):
        execution = Execution(said, _given(piece))
        execution.state[name] = np.float64(old)
        execution.step(2, u=np.float64(0), theta=np.float64(0))
        return execution.state[name]

    try:
        share = _slope(kept)
    except Exception:  # as in `_run`
        return None
    return float(share) if share is not UNKNOWN and 0 < share < 1 else None
