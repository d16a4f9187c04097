"""The contract kit: what the library promises of its pieces, checked of yours.

The promises are a table in `adamw_jax.inspect.contract.promises`.  Where one rests on
another that is broken, it is not judged: one mistake gives one finding.
"""

from numbers import Number
from typing import Any, NamedTuple

import jax
import optax

from adamw_jax.inspect.contract.compare import Broken
from adamw_jax.inspect.contract.promises import PROPERTIES, Inapplicable, Property, Subject


class Verdict(NamedTuple):
    """One property: its name, whether it holds (None: not applicable), and why."""

    name: str
    passed: bool | None
    why: str


class Report(NamedTuple):
    """The verdicts of `check`, in the order in which they were reached."""

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether no property is broken."""
        return all(v.passed is not False for v in self.verdicts)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the broken properties."""
        return tuple(v.name for v in self.verdicts if v.passed is False)

    def __str__(self):
        words = {True: "passed", False: "FAILED", None: "n/a"}
        width = max(len(v.name) for v in self.verdicts)
        return "\n".join(f"{v.name:{width}}  {words[v.passed]:6}  {v.why}" for v in self.verdicts)

    def __repr__(self):
        return str(self)


def _judge(prop: Property, subject: Subject, causes: dict[str, str]) -> Verdict:
    if prop.name in causes:
        return Verdict(prop.name, None, f"not judged, since {causes[prop.name]} is broken")
    try:
        return Verdict(prop.name, True, prop.judge(subject))
    except Inapplicable as reason:
        return Verdict(prop.name, None, str(reason))
    except Broken as reason:
        return Verdict(prop.name, False, str(reason))
    except Exception as error:  # whatever a user's piece raises is the finding
        first = str(error).strip().split("\n")[0]
        return Verdict(prop.name, False, f"raises {type(error).__name__}: {first}")


def check(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    extra: Any = None,
    tolerance: float = 1e-4,
) -> Report:
    """What a transformation keeps of the contract of all pieces in this library.

    Runs it for a few steps on random gradients, in many ways: eager, jitted,
    in `scan` and `vmap`, with donated buffers, in 16 bits, on zeros, around
    masked leaves, from a checkpoint.

    Args:
      tx: any gradient transformation.
      params: a small tree of parameters that it should work on.
      extra: a dict of extra arguments of `update`, or a function from
        parameters to one; None for none.
      tolerance: how far results that should be equal but for rounding may
        differ, in units of the largest element of the array.

    Raises:
      TypeError: `tx` is no transformation.
      ValueError: `params` holds no arrays, or something else.

    Returns:
      A report: `.ok`, `.failed`, `.verdicts`, and a table when printed.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import check, scale
      >>> report = check(scale(0.5), {"w": jnp.ones(3)})
      >>> report.ok, report.verdicts[0]
      (True, Verdict(name='runs', passed=True, why='three updates, shaped like the gradients'))
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"check: {tx!r} is not a gradient transformation. Pass what a factory returns."
        )
    leaves = jax.tree.leaves(params)
    if not leaves or not all(hasattr(x, "__array__") or isinstance(x, Number) for x in leaves):
        raise ValueError(f"check: params holds no arrays: {params!r}. Pass a small tree of them.")
    subject = Subject(tx, params, extra, tolerance)
    verdicts: list[Verdict] = []
    causes: dict[str, str] = {}  # what cannot be judged, and the broken property it rests on
    for prop in PROPERTIES:
        for root in (causes[name] for name in prop.needs if name in causes):
            causes.setdefault(prop.name, root)
        verdict = _judge(prop, subject, causes)
        verdicts.append(verdict)
        if verdict.passed is False:
            causes[prop.name] = prop.name
    return Report(tuple(verdicts))


def assert_contract(
    tx: optax.GradientTransformation, params: Any, *, extra: Any = None, tolerance: float = 1e-4
) -> None:
    """Raises an AssertionError with the table of `check` if a property is broken.

    One line in a test of your own: `assert_contract(my_piece(0.9), params)`.

    Args:
      tx, params, extra, tolerance: as in `check`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import assert_contract, scale
      >>> assert_contract(scale(2.0), {"w": jnp.ones(3)})
    """
    report = check(tx, params, extra=extra, tolerance=tolerance)
    if not report.ok:
        raise AssertionError(f"{tx!r} breaks {', '.join(report.failed)}.\n{report}")
