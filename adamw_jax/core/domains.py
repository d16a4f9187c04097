"""What a hyperparameter may be, said once as an annotation.

`b1: Decay` documents an argument and checks it: plain Python and NumPy numbers,
and concrete arrays, when the factory is called; tracers never, so a factory may
be called under `jit`.
"""

import math
import numbers
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core.symbols import Symbol


def _number(value: Any) -> Any:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, jax.Array | np.ndarray):
        if not jnp.issubdtype(value.dtype, jnp.floating) or not np.all(np.isfinite(value)):
            raise ValueError
        # Flax NNX refuses arrays in an optimizer; a sweep stacks them, and keeps them.
        return value if value.ndim else float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _whole(value: Any) -> Any:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
        return value  # optax.inject_hyperparams turns ints into arrays
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError
    return int(value)


def _steps(value: Any) -> Any:
    if isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    steps = int(value) if whole else _number(value)
    if isinstance(steps, float) and 0 < steps < 1:
        raise ValueError  # a share of the steps was meant
    return steps


def _rate(value: Any) -> Any:
    return value if callable(value) else _number(value)


def _dtype(value: Any) -> Any:
    dtype = jnp.dtype(value)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError
    return dtype.name


class Domain(NamedTuple):
    """A set of admissible values: its name, its members, and how one is read."""

    says: str
    holds: Callable[[Any], Any] = lambda x: True
    read: Callable[[Any], Any] = _number


Decay = Annotated[jax.typing.ArrayLike, Domain("in [0, 1)", lambda x: (x >= 0) & (x < 1))]


Fraction = Annotated[jax.typing.ArrayLike, Domain("in [0, 1]", lambda x: (x >= 0) & (x <= 1))]


Finite = Annotated[jax.typing.ArrayLike, Domain("a finite number")]


OpenFraction = Annotated[jax.typing.ArrayLike, Domain("in (0, 1)", lambda x: (x > 0) & (x < 1))]


NonNegative = Annotated[jax.typing.ArrayLike, Domain("a number, at least 0", lambda x: x >= 0)]


Positive = Annotated[jax.typing.ArrayLike, Domain("a number above 0", lambda x: x > 0)]


LearningRate = Annotated[
    optax.ScalarOrSchedule,
    Domain("a finite number, at least 0, or a schedule", lambda x: callable(x) or x >= 0, _rate),
]


Term = Annotated[optax.ScalarOrSchedule, Domain("a finite number, or a schedule", read=_rate)]


Divisor = Annotated[
    optax.ScalarOrSchedule,
    Domain("a number other than 0, or a schedule", lambda x: callable(x) or x != 0, _rate),
]


ASchedule = Annotated[Callable[..., Any], Domain("a schedule", callable, lambda x: x)]


Flag = Annotated[bool, Domain("True or False", lambda x: x in (True, False), lambda x: x)]


OfLeaf = Domain("a function of path and leaf", callable, lambda x: x)


Count = Annotated[int, Domain("a whole number, at least 1", lambda x: x >= 1, _whole)]


Whole = Annotated[int, Domain("a whole number, at least 0", lambda x: x >= 0, _whole)]


Steps = Annotated[
    jax.typing.ArrayLike,
    Domain("a number of steps (not a share of them), at least 0", lambda x: x >= 0, _steps),
]


Period = Annotated[
    jax.typing.ArrayLike,
    Domain("a number of steps (not a share of them), above 0", lambda x: x > 0, _steps),
]


DType = Annotated[jax.typing.DTypeLike, Domain("a floating-point dtype", read=_dtype)]


def admits_schedule(annotation: Any) -> bool:
    """Whether an argument so annotated may be a function of the number of earlier updates."""
    domain, _ = _domain(annotation)
    return domain is not None and domain.read is _rate


def admit(function: str, name: str, value: Any, annotation: Any) -> Any:
    """The canonical form of an argument, or a `ValueError` that says what it must be.

    Numbers become floats, counts ints, dtypes their names; arrays and tracers
    stay as they are; arguments annotated otherwise pass untouched.
    """
    domain, optional = _domain(annotation)
    if domain is None or (value is None and optional) or isinstance(value, jax.core.Tracer):
        return value
    try:
        canonical = domain.read(value)
        if np.all(domain.holds(canonical)):
            return canonical
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{function}: {name} is {value!r}. It must be {domain.says}.")


def _domain(annotation: Any) -> tuple[Domain | None, bool]:
    """The domain an annotation carries, and whether None is admitted beside it."""
    found = getattr(annotation, "__metadata__", ())
    if found and isinstance(found[0], Domain):
        return found[0], False
    members = get_args(annotation) if type(None) in get_args(annotation) else ()
    domains = [_domain(member)[0] for member in members]
    return next(filter(None, domains), None), True
