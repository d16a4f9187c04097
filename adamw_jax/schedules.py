"""Schedules that are data.

A schedule is a function of the number of earlier updates, so the first one
sees 0.  These are expressions too: they print, compare and pickle, and their
numbers are leaves, so changing a peak or a length does not recompile.
Fractions are taken in the default float dtype (float64 under x64), never in
that of the integer count.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, overload

import jax
import jax.numpy as jnp

from adamw_jax.core.domains import ASchedule, LearningRate, NonNegative, Steps
from adamw_jax.core.expression import Expression, Factory, remember
from adamw_jax.core.numerics import divide

P = ParamSpec("P")


class Schedule(Expression):
    """A remembered function from the number of earlier updates to a number.

    Its first argument is its largest value, `peak`.

    Example:
      >>> from adamw_jax import linear_warmup
      >>> rate = linear_warmup(0.5, 4)
      >>> rate.peak, float(rate(1))
      (0.5, 0.125)
    """

    data = (*Expression.data, int)

    def _check_body(self, built: Any) -> None:
        if not callable(built):
            raise TypeError(
                f"{self.factory.__name__}: returned {built!r}. A schedule's factory must "
                "return a function of the step."
            )

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        value: jax.Array = self.body(jnp.asarray(count, float))
        return value

    @property
    def peak(self) -> Any:
        """The largest value, or None where the schedule does not know it."""
        first = next(iter(self.arguments.values()), None)
        if isinstance(first, Schedule):
            return 1.0 if self.factory is relative else first.peak
        return None if callable(first) else first


@overload
def schedule(function: Callable[P, ASchedule]) -> Factory[P, Schedule]: ...


@overload
def schedule(
    *, equation: str | None = None
) -> Callable[[Callable[P, ASchedule]], Factory[P, Schedule]]: ...


def schedule(function: Callable[..., Any] | None = None, *, equation: str | None = None) -> Any:
    """Makes a schedule factory remember its calls, as `transformation` does.

    The factory's first argument is the schedule's largest value; it returns a
    function of t, the number of earlier updates as a float array.  With an
    `equation`, such as "peak / (t + 1)", `equations` writes it out.

    Example:
      >>> from adamw_jax import schedule, sgd
      >>> @schedule(equation="peak / (t + 1)")
      ... def harmonic(peak):
      ...     return lambda t: peak / (t + 1)
      >>> sgd(harmonic(0.1))
      sgd(harmonic(0.1))
    """
    if function is None:
        return functools.partial(schedule, equation=equation)
    return remember(function, Schedule, equation=equation)


def _ramp(t: jax.Array, start: Any, length: Any) -> jax.Array:
    """0 until `start`, 1 from `start + length` on, linear between."""
    length = jnp.asarray(length, t.dtype)
    inside = jnp.clip((t - start) / jnp.where(length > 0, length, 1), 0, 1)
    return jnp.where(length > 0, inside, jnp.where(t >= start, 1, 0).astype(t.dtype))


def _check_fit(function: str, total_steps: Any, **phases: Any) -> None:
    """Raises where plain numbers say that the phases do not fit into the whole."""
    steps = (total_steps, *phases.values())
    if all(isinstance(n, int | float) for n in steps) and sum(phases.values()) > total_steps:
        raise ValueError(
            f"{function}: {' + '.join(phases)} is {sum(phases.values())}, and total_steps "
            f"{total_steps}. Make total_steps larger: it includes them."
        )


@schedule(equation="value")
def constant(value: NonNegative) -> ASchedule:
    """value, at every step.

    Example:
      >>> from adamw_jax import constant
      >>> constant(0.5)(7).item()
      0.5
    """
    return lambda t: jnp.asarray(value, t.dtype)


@schedule
def linear_warmup(peak: NonNegative, warmup_steps: Steps) -> ASchedule:
    """peak * min(1, t / warmup_steps).

    Args:
      peak: the value reached and kept.
      warmup_steps: length of the rise from 0.

    Example:
      >>> from adamw_jax import linear_warmup
      >>> linear_warmup(1.0, 4)(1).item()
      0.25
    """
    return lambda t: jnp.asarray(peak, t.dtype) * _ramp(t, 0, warmup_steps)


@schedule
def cosine(
    peak: NonNegative, total_steps: Steps, *, warmup_steps: Steps = 0, end: NonNegative = 0.0
) -> ASchedule:
    """A linear rise to `peak`, then half a cosine wave down to `end`.

    end + (peak - end) (1 + cos(π (t - warmup_steps) / (total_steps - warmup_steps))) / 2

    Args:
      peak: the largest value, reached after `warmup_steps`.
      total_steps: when `end` is reached, the rise included.
      warmup_steps: length of the rise from 0.
      end: the value from `total_steps` on.

    Example:
      >>> from adamw_jax import cosine
      >>> round(cosine(1.0, 8)(4).item(), 6)
      0.5

    Reference: Loshchilov & Hutter, "SGDR", 2017, equation 5.
    """

    _check_fit("cosine", total_steps, warmup_steps=warmup_steps)

    def value(t: jax.Array) -> jax.Array:
        top, last = jnp.asarray(peak, t.dtype), jnp.asarray(end, t.dtype)
        start, stop = jnp.asarray(warmup_steps, t.dtype), jnp.asarray(total_steps, t.dtype)
        fall = _ramp(t, start, stop - start)
        wave = last + (top - last) * (1 + jnp.cos(jnp.pi * fall)) / 2
        return jnp.where(t < start, top * _ramp(t, 0, start), wave)

    return value


@schedule
def warmup_stable_decay(
    peak: NonNegative,
    total_steps: Steps,
    *,
    warmup_steps: Steps = 0,
    decay_steps: Steps = 0,
    end: NonNegative = 0.0,
) -> ASchedule:
    """A linear rise to `peak`, a plateau, and a linear fall to `end`.

    Args:
      peak: the value of the plateau.
      total_steps: when `end` is reached, everything included.
      warmup_steps: length of the rise from 0.
      decay_steps: length of the fall.
      end: the value from `total_steps` on.

    Example:
      >>> from adamw_jax import warmup_stable_decay
      >>> wsd = warmup_stable_decay(1.0, 10, warmup_steps=2, decay_steps=4)
      >>> [wsd(t).item() for t in (1, 5, 8, 10)]
      [0.5, 1.0, 0.5, 0.0]

    Reference: Hu et al., "MiniCPM", 2024, section 4.
    """

    _check_fit(
        "warmup_stable_decay", total_steps, warmup_steps=warmup_steps, decay_steps=decay_steps
    )

    def value(t: jax.Array) -> jax.Array:
        top, last = jnp.asarray(peak, t.dtype), jnp.asarray(end, t.dtype)
        length, stop = jnp.asarray(decay_steps, t.dtype), jnp.asarray(total_steps, t.dtype)
        rise = top * _ramp(t, 0, warmup_steps)
        return rise - (top - last) * _ramp(t, stop - length, length)

    return value


@schedule
def inverse_sqrt(peak: NonNegative, warmup_steps: Steps) -> ASchedule:
    """peak * min(t / warmup_steps, √(warmup_steps / t)).

    Args:
      peak: the largest value, reached at `warmup_steps`.
      warmup_steps: length of the linear rise from 0; with 0 it falls as
        peak / √max(t, 1).

    Example:
      >>> from adamw_jax import inverse_sqrt
      >>> inverse_sqrt(1.0, 4)(16).item()
      0.5

    Reference: Vaswani et al., "Attention Is All You Need", 2017, equation 3.
    """

    def value(t: jax.Array) -> jax.Array:
        length = jnp.asarray(warmup_steps, t.dtype)
        fall = jnp.sqrt(jnp.maximum(length, 1) / jnp.maximum(t, jnp.maximum(length, 1)))
        return jnp.asarray(peak, t.dtype) * _ramp(t, 0, length) * fall

    return value


@schedule
def relative(schedule: LearningRate) -> ASchedule:
    """schedule / its peak: the schedule's shape, without its size; 0 where that peak is 0.

    Raises:
      ValueError: the schedule does not know its peak.

    Example:
      >>> from adamw_jax import linear_warmup, relative
      >>> shape = relative(linear_warmup(0.01, 4))
      >>> [round(float(shape(t)), 4) for t in (1, 2, 9)]
      [0.25, 0.5, 1.0]
    """
    if not isinstance(schedule, Schedule) or schedule.peak is None:
        raise ValueError(
            f"relative: {schedule!r} does not know its peak. Use a schedule of adamw_jax, such as "
            "cosine(...), or give shrink(weight_decay, schedule) the multiplier itself."
        )
    return lambda t: divide(schedule(t), jnp.asarray(schedule.peak, t.dtype))


@schedule
def ahead(schedule: ASchedule, steps: Steps = 1) -> ASchedule:
    """schedule(t + steps): lets the first update see 1 instead of 0.

    Example:
      >>> from adamw_jax import ahead, linear_warmup
      >>> ahead(linear_warmup(1.0, 4))(0).item()
      0.25
    """
    return lambda t: schedule(t + jnp.asarray(steps, t.dtype))


@schedule(equation="minimum(peak, 1 / sqrt(t + 1))")
def capped_inverse_sqrt(peak: NonNegative) -> ASchedule:
    """min(peak, 1 / √(t + 1)).

    Example:
      >>> from adamw_jax import capped_inverse_sqrt
      >>> rate = capped_inverse_sqrt(0.5)
      >>> [round(float(rate(t)), 4) for t in (0, 3, 99)]
      [0.5, 0.5, 0.1]

    Reference: Shazeer & Stern, "Adafactor", 2018, algorithm 6.
    """
    return lambda t: jnp.minimum(jnp.asarray(peak, t.dtype), 1 / jnp.sqrt(t + 1))
