"""Schedules that are data.

A schedule is a function of the number of earlier updates, so the first one
sees 0.  These are expressions too: they print, compare and pickle, and their
numbers are leaves, so changing a peak or a length does not recompile.
They can be added, subtracted, multiplied and divided: `0.7 * cosine(0.1, 100)`.
Fractions are taken in the default float dtype (float64 under x64), never in
that of the integer count.
"""

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core.domains import (
    ASchedule,
    Divisor,
    Domain,
    Flag,
    Fraction,
    LearningRate,
    NonNegative,
    Period,
    Positive,
    Steps,
    Term,
    admit,
)
from adamw_jax.core.expression import Expression, Factory, remember
from adamw_jax.core.numerics import divide
from adamw_jax.core.saying import parsed
from adamw_jax.core.symbols import filled

P = ParamSpec("P")


class Schedule(Expression):
    """A remembered function from the number of earlier updates to a number.

    Its first argument is its largest value, `peak`, unless it says otherwise.

    Example:
      >>> from adamw_jax import linear_warmup
      >>> rate = linear_warmup(0.5, 4)
      >>> rate.peak, float(rate(1))
      (0.5, 0.125)
    """

    data = (*Expression.data, int)
    __array_ufunc__ = None  # so that NumPy's numbers leave arithmetic to us

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
        peak = self.factory.declared["peak"]
        return peak(self.arguments) if peak else _peak(next(iter(self.arguments.values()), None))

    def typed(self, write: Callable[[Any, str], ast.expr]) -> ast.expr:
        """The call that made it, with every argument as `write(value, name)` has it."""
        parameters = self.factory.signature.parameters
        args, keywords = [], []
        for name, value in self.arguments.items():
            default = parameters[name].default
            if isinstance(value, type(default)) and value == default:
                continue
            if parameters[name].kind is parameters[name].KEYWORD_ONLY:
                keywords.append(ast.keyword(name, write(value, name)))
            else:
                args.append(write(value, name))
        return ast.Call(ast.Name(self.factory.__name__), args, keywords)

    def __add__(self, other: Term) -> "Schedule":
        return plus(self, other)

    def __radd__(self, other: Term) -> "Schedule":
        return plus(other, self)

    def __sub__(self, other: Term) -> "Schedule":
        return minus(self, other)

    def __rsub__(self, other: Term) -> "Schedule":
        return minus(other, self)

    def __mul__(self, other: Term) -> "Schedule":
        return times(self, other)

    def __rmul__(self, other: Term) -> "Schedule":
        return times(other, self)

    def __truediv__(self, other: Divisor) -> "Schedule":
        return over(self, other)

    def __rtruediv__(self, other: Term) -> "Schedule":
        return over(other, self)

    def __neg__(self) -> "Schedule":
        return negative(self)


class Lifted(Schedule):
    """What a schedule function of Optax returns, remembered.

    Its Python numbers are structure, since Optax asks Python about them, and it leaves
    dtypes to JAX."""

    data = (np.ndarray, jax.Array)

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(self.body(jnp.asarray(count, float)), float)


def _lift(function: Callable[..., Any]) -> Factory[..., Schedule]:
    maker, *inside = getattr(function, "__qualname__", repr(function)).split(".")
    if inside:
        raise TypeError(
            f"schedule: got what {maker} returned. Pass that function itself, as in "
            f"schedule(optax.{maker})(...)."
        )
    return remember(function, Lifted, equation=None, peak=_peak_in_optax)


def _peak_in_optax(arguments: Mapping[str, Any]) -> Any:
    return arguments.get("peak_value")


class Arithmetic(Schedule):
    """A schedule made of others by an operator, and printed with it."""

    def __repr__(self) -> str:
        return ast.unparse(self.typed(_as_typed))

    def typed(self, write: Callable[[Any, str], ast.expr]) -> ast.expr:
        equation = parsed(self.factory.__name__, self.factory.declared["equation"])
        written = {name: write(value, name) for name, value in self.arguments.items()}
        result: ast.expr = filled(equation.result, written)
        return result


def _as_typed(value: Any, name: str) -> ast.expr:
    if isinstance(value, Arithmetic):
        return value.typed(_as_typed)  # its parentheses are up to what is around it
    return ast.Name(getattr(value, "__name__", repr(value)))


def _peak(rate: Any) -> Any:
    """The largest value of a schedule or a number, or None where it is not known."""
    if isinstance(rate, Schedule):
        return rate.peak
    return None if callable(rate) else rate


def _largest(*peaks: Any) -> Any:
    """The largest of some peaks, or None where one is not known."""
    if any(x is None for x in peaks):
        return None
    if all(isinstance(x, int | float) for x in peaks):
        return max(peaks)
    return functools.reduce(jnp.maximum, (jnp.asarray(x, float) for x in peaks))


@overload
def schedule(function: Callable[P, ASchedule]) -> Factory[P, Schedule]: ...


@overload
def schedule(
    *, equation: str | None = None, peak: Callable[[Mapping[str, Any]], Any] | None = None
) -> Callable[[Callable[P, ASchedule]], Factory[P, Schedule]]: ...


def schedule(
    function: Callable[..., Any] | None = None,
    *,
    equation: str | None = None,
    peak: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Any:
    """Makes a schedule factory remember its calls, as `transformation` does.

    The factory returns a function of t, the number of earlier updates as a float array.
    One of Optax's may be given as it is.  Its numbers are no leaves, and a change of one
    compiles again: `cosine` and the others of this package have no such limit.

    Args:
      function: the factory.
      equation: what it returns, such as "peak / (t + 1)", for `equations` to write out.
      peak: a function from the arguments by name to the schedule's largest value, or to
        None where that is not known.  Without it, that is the first argument.

    Raises:
      TypeError: it is a schedule of Optax, not the function that makes one.

    Example:
      >>> from adamw_jax import schedule, sgd
      >>> @schedule(equation="peak / (t + 1)")
      ... def harmonic(peak):
      ...     return lambda t: peak / (t + 1)
      >>> sgd(harmonic(0.1))
      sgd(harmonic(0.1))
      >>> import optax
      >>> sgd(schedule(optax.cosine_decay_schedule)(0.1, 100))
      sgd(cosine_decay_schedule(0.1, 100))
    """
    if function is None:
        return functools.partial(schedule, equation=equation, peak=peak)
    if (getattr(function, "__module__", None) or "").partition(".")[0] == optax.__name__:
        return _lift(function)
    return remember(function, Schedule, equation=equation, peak=peak)


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

    return lambda t: _wave(t, peak, total_steps, warmup_steps, end)


def _wave(t: jax.Array, peak: Any, total_steps: Any, warmup_steps: Any, end: Any) -> jax.Array:
    top, last = jnp.asarray(peak, t.dtype), jnp.asarray(end, t.dtype)
    start, stop = jnp.asarray(warmup_steps, t.dtype), jnp.asarray(total_steps, t.dtype)
    fall = _ramp(t, start, stop - start)
    wave = last + (top - last) * (1 + jnp.cos(jnp.pi * fall)) / 2
    return jnp.where(t < start, top * _ramp(t, 0, start), wave)


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


# --- from one value to another ------------------------------------------------------------


@schedule(peak=lambda arguments: _largest(arguments["start"], arguments["end"]))
def linear(start: NonNegative, end: NonNegative, total_steps: Steps) -> ASchedule:
    """start + (end - start) min(1, t / total_steps).

    Args:
      start: the first value.
      end: the value from `total_steps` on.
      total_steps: when `end` is reached.

    Example:
      >>> from adamw_jax import linear
      >>> [linear(1.0, 0.5, 4)(t).item() for t in (0, 2, 9)]
      [1.0, 0.75, 0.5]
    """
    return lambda t: _power(t, start, end, 1, total_steps)


@schedule(peak=lambda arguments: _largest(arguments["start"], arguments["end"]))
def polynomial(
    start: NonNegative, end: NonNegative, power: Positive, total_steps: Steps
) -> ASchedule:
    """end + (start - end) (1 - t / total_steps)^power.

    Args:
      start: the first value.
      end: the value from `total_steps` on.
      power: 1 is a line; more falls fast and arrives slowly.
      total_steps: when `end` is reached.

    Example:
      >>> from adamw_jax import polynomial
      >>> [polynomial(1.0, 0.0, 2, 4)(t).item() for t in (0, 2, 9)]
      [1.0, 0.25, 0.0]

    Reference: Liu et al., "ParseNet", 2015, section 3.4 ("poly").
    """
    return lambda t: _power(t, start, end, power, total_steps)


def _power(t: jax.Array, start: Any, end: Any, power: Any, total_steps: Any) -> jax.Array:
    first, last = jnp.asarray(start, t.dtype), jnp.asarray(end, t.dtype)
    left = 1 - _ramp(t, 0, total_steps)
    raised = jnp.where(left > 0, left, 1) ** jnp.asarray(power, t.dtype)  # the slope of √0 is ∞
    return last + (first - last) * jnp.where(left > 0, raised, 0)


def _peak_of_exponential(arguments: Mapping[str, Any]) -> Any:
    start, decay, end = (arguments[name] for name in ("start", "decay", "end"))
    if isinstance(decay, float):
        return start if decay <= 1 else None if end is None else _largest(start, end)
    return start if end is None else jnp.where(decay > 1, _largest(start, end), start)


@schedule(peak=_peak_of_exponential)
def exponential(
    start: NonNegative,
    every: Period,
    decay: Positive,
    *,
    staircase: Flag = False,
    end: NonNegative | None = None,
) -> ASchedule:
    """start * decay^(t / every).

    Args:
      start: the first value.
      every: the number of steps in which the value is multiplied by `decay`.
      decay: below 1 for a fall, above for a rise.
      staircase: at once, when these steps are over: the exponent is ⌊t / every⌋.
      end: the value that a fall does not go below, nor a rise above.

    Example:
      >>> from adamw_jax import exponential
      >>> [exponential(1.0, 10, 0.25, end=0.1)(t).item() for t in (0, 5, 10)]
      [1.0, 0.5, 0.25]
    """

    def value(t: jax.Array) -> jax.Array:
        factor, times = jnp.asarray(decay, t.dtype), t / jnp.asarray(every, t.dtype)
        out = jnp.asarray(start, t.dtype) * factor ** (jnp.floor(times) if staircase else times)
        if end is None:
            return out
        last = jnp.asarray(end, t.dtype)
        return jnp.where(factor < 1, jnp.maximum(out, last), jnp.minimum(out, last))

    return value


# --- through several ----------------------------------------------------------------------


def _ascending(steps: Iterable[Any]) -> bool:
    """Whether steps are in order, as far as is known."""
    known = [x for x in steps if isinstance(x, int | float)]
    return all(a <= b for a, b in itertools.pairwise(known))


def _factors(value: Any) -> Any:
    pairs = sorted(value.items()) if isinstance(value, Mapping) else value
    return tuple((admit("", "", x, Steps), admit("", "", y, NonNegative)) for x, y in pairs)


Factors = Annotated[
    Mapping[int, float] | Sequence[tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]],
    Domain(
        "{step: factor}, such as {1000: 0.1}: steps in order, and factors of at least 0",
        lambda pairs: _ascending(step for step, _ in pairs),
        _factors,
    ),
]


SHAPES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.floor,
    "linear": lambda x: x,
    "cosine": lambda x: (1 - jnp.cos(jnp.pi * x)) / 2,
}


def _check_shape(function: str, shape: Any) -> None:
    if shape not in SHAPES:
        raise ValueError(f"{function}: shape is {shape!r}. It must be one of: {', '.join(SHAPES)}.")


def _through(t: jax.Array, shape: str, *knots: tuple[Any, Any]) -> jax.Array:
    """The given values at the given steps, curves of that shape between, the last one beyond."""
    (start, before), *rest = ((jnp.asarray(x, t.dtype), jnp.asarray(y, t.dtype)) for x, y in knots)
    out = before
    for step, after in rest:
        done = SHAPES[shape](_ramp(t, start, step - start))
        out = jnp.where(t < start, out, (1 - done) * before + done * after)
        start, before = step, after
    return out


def _knots(start: Any, factors: Any) -> list[tuple[Any, Any]]:
    """Step and value, wherever the value has been multiplied by a factor."""
    values = itertools.accumulate((factor for _, factor in factors), operator.mul, initial=start)
    return list(zip((0, *(step for step, _ in factors)), values, strict=True))


@schedule(
    peak=lambda arguments: _largest(
        *(value for _, value in _knots(arguments["start"], arguments["factors"]))
    )
)
def piecewise(start: NonNegative, factors: Factors, *, shape: str = "constant") -> ASchedule:
    """start * the product of the factors whose step has come: of all (s, f) with s <= t.

    Args:
      start: the first value.
      factors: {step: factor}, kept as pairs; each multiplies what the earlier ones left.
      shape: what is between the steps: "constant", or a "linear" or "cosine" curve, which
        reaches each value at its step.

    Raises:
      ValueError: the steps are not in order, or there is no such shape.

    Example:
      >>> from adamw_jax import piecewise
      >>> piecewise(1.0, {10: 0.5, 20: 0.5})
      piecewise(1.0, ((10, 0.5), (20, 0.5)))
      >>> [piecewise(1.0, {10: 0.5, 20: 0.5})(t).item() for t in (9, 10, 20)]
      [1.0, 0.5, 0.25]
    """
    _check_shape("piecewise", shape)
    return lambda t: _through(t, shape, *_knots(jnp.asarray(start, t.dtype), factors))


@schedule
def one_cycle(
    peak: NonNegative,
    total_steps: Steps,
    *,
    warmup_steps: Steps | None = None,
    cooldown_steps: Steps = 0,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    shape: str = "cosine",
) -> ASchedule:
    """From peak / div_factor up to `peak`, and down to peak / (div_factor final_div_factor).

    Args:
      peak: the largest value, reached after `warmup_steps`.
      total_steps: when the last value is reached, everything included.
      warmup_steps: length of the rise; 30 % of the steps, if it is None.
      cooldown_steps: where this is not 0, the fall ends at the first value, and a second
        one of this length follows.
      div_factor: peak / the first value.
      final_div_factor: the first value / the last one.
      shape: "cosine" or "linear".

    Raises:
      ValueError: the phases do not fit into `total_steps`, or there is no such shape.

    Example:
      >>> from adamw_jax import one_cycle
      >>> rate = one_cycle(1.0, 10)
      >>> [round(rate(t).item(), 6) for t in (0, 3, 10)]
      [0.04, 1.0, 4e-06]

    Reference: Smith & Topin, "Super-Convergence", 2017, section 3.
    """
    steps: Any = total_steps
    rise = steps * 3 // 10 if warmup_steps is None else warmup_steps
    _check_fit("one_cycle", total_steps, warmup_steps=rise, cooldown_steps=cooldown_steps)
    _check_shape("one_cycle", shape)

    def value(t: jax.Array) -> jax.Array:
        top, stop = jnp.asarray(peak, t.dtype), jnp.asarray(total_steps, t.dtype)
        first = top / jnp.asarray(div_factor, t.dtype)
        last = first / jnp.asarray(final_div_factor, t.dtype)
        cooldown = jnp.asarray(cooldown_steps, t.dtype)
        below = jnp.where(cooldown > 0, first, last)
        return _through(t, shape, (0, first), (rise, top), (stop - cooldown, below), (stop, last))

    return value


def _cycles(value: Any) -> Any:
    if isinstance(value, tuple | list) and value:
        return tuple(admit("", "", x, Period) for x in value)
    return admit("", "", value, Period)


Cycles = Annotated[
    jax.typing.ArrayLike | Sequence[jax.typing.ArrayLike],
    Domain("a number of steps above 0, or a tuple of them, one for each cycle", read=_cycles),
]


@schedule
def cosine_restarts(
    peak: NonNegative,
    cycle_steps: Cycles,
    *,
    warmup_steps: Steps = 0,
    end: NonNegative = 0.0,
    decay: Fraction = 1.0,
) -> ASchedule:
    """`cosine` from `peak` to `end` in every cycle; then it starts again.

    Args:
      peak: the largest value of the first cycle.
      cycle_steps: the length of every cycle, without an end; or a tuple of the lengths of
        all of them, such as (100, 200, 400), after which the value stays at `end`.
      warmup_steps: length of the rise from 0 in every cycle, included in it.
      end: the value that every cycle falls to.
      decay: what the peak is multiplied by at every restart.

    Raises:
      ValueError: `warmup_steps` does not fit into a cycle.

    Example:
      >>> from adamw_jax import cosine_restarts
      >>> rate = cosine_restarts(1.0, (2, 4), decay=0.5)
      >>> [round(rate(t).item(), 6) for t in (0, 1, 2, 4, 9)]
      [1.0, 0.5, 0.5, 0.25, 0.0]

    Reference: Loshchilov & Hutter, "SGDR", 2017, section 3.
    """
    for length in cycle_steps if isinstance(cycle_steps, tuple) else (cycle_steps,):
        plain = isinstance(length, int | float) and isinstance(warmup_steps, int | float)
        if plain and warmup_steps > length:
            raise ValueError(
                f"cosine_restarts: warmup_steps is {warmup_steps}, and a cycle has {length} steps. "
                "Make warmup_steps smaller: every cycle includes it."
            )

    def value(t: jax.Array) -> jax.Array:
        number, into, length = _cycle(t, cycle_steps)
        top = jnp.asarray(peak, t.dtype) * jnp.asarray(decay, t.dtype) ** number
        return _wave(into, top, length, warmup_steps, end)

    return value


def _cycle(t: jax.Array, cycle_steps: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which cycle t is in, how far, and how long it is."""
    if not isinstance(cycle_steps, tuple):
        length = jnp.asarray(cycle_steps, t.dtype)
        into = t % length  # is exact, where a quotient may round to the next whole number
        return jnp.round((t - into) / length), into, length
    first, *rest = (jnp.asarray(x, t.dtype) for x in cycle_steps)
    begin, number, into, length = first, jnp.zeros_like(t), t, first
    for steps in rest:
        number = jnp.where(t >= begin, number + 1, number)
        into = jnp.where(t >= begin, t - begin, into)
        length = jnp.where(t >= begin, steps, length)
        begin = begin + steps
    return number, into, length


# --- of other schedules -------------------------------------------------------------------


def _at(rate: Any, t: jax.Array) -> jax.Array:
    """A number, or a schedule at t."""
    return jnp.asarray(rate(t) if callable(rate) else rate, t.dtype)


def _schedules(value: Any) -> Any:
    return tuple(admit("", "", x, LearningRate) for x in value)


Schedules = Annotated[
    Sequence[LearningRate],
    Domain("a tuple of schedules, or of numbers of at least 0", len, _schedules),
]


Boundaries = Annotated[
    Sequence[jax.typing.ArrayLike],
    Domain(
        "a tuple of steps, in order",
        _ascending,
        lambda value: tuple(admit("", "", x, Steps) for x in value),
    ),
]


@schedule(peak=lambda arguments: _largest(*map(_peak, arguments["schedules"])))
def join_schedules(schedules: Schedules, boundaries: Boundaries) -> ASchedule:
    """One schedule after another: from each boundary b on the next one, at t - b.

    Its peak is the largest of theirs.

    Args:
      schedules: the schedules, or numbers, in order.
      boundaries: when each of them but the first begins.

    Raises:
      ValueError: there is not one boundary fewer than schedules, or they are not in order.

    Example:
      >>> from adamw_jax import join_schedules, linear, linear_warmup
      >>> rate = join_schedules((linear_warmup(1.0, 2), linear(1.0, 0.0, 4)), (2,))
      >>> [rate(t).item() for t in (1, 2, 3, 6)]
      [0.5, 1.0, 0.75, 0.0]
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules: boundaries is {boundaries!r} for {len(schedules)} schedules. Give "
            "one step for each of them but the first: when it begins."
        )

    def value(t: jax.Array) -> jax.Array:
        out = _at(schedules[0], t)
        for rate, boundary in zip(schedules[1:], boundaries, strict=True):
            begin = jnp.asarray(boundary, t.dtype)
            # Before it begins a schedule is at 0, where it is defined.
            out = jnp.where(t < begin, out, _at(rate, jnp.maximum(t - begin, 0)))
        return out

    return value


@schedule(peak=lambda arguments: 1.0)
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


@schedule
def shift(schedule: ASchedule, steps: Steps) -> ASchedule:
    """schedule(max(t - steps, 0)): begins later, and has its first value until then.

    Example:
      >>> from adamw_jax import linear, shift
      >>> [shift(linear(1.0, 0.0, 4), 10)(t).item() for t in (0, 10, 11)]
      [1.0, 1.0, 0.75]
    """
    return lambda t: _at(schedule, jnp.maximum(t - jnp.asarray(steps, t.dtype), 0))


# --- arithmetic ---------------------------------------------------------------------------


def _arithmetic(
    equation: str, peak: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Callable[P, ASchedule]], Factory[P, Schedule]]:
    return lambda function: remember(function, Arithmetic, equation=equation, peak=peak)


def _peak_and_number(a: Any, b: Any) -> tuple[Any, Any]:
    """The peak of the one and the number that is the other; None for what is not known."""
    if callable(a) and callable(b):
        return None, None
    return (_peak(a), b) if callable(a) else (_peak(b), a)


def _peak_of_sum(a: Any, b: Any) -> Any:
    peak, number = _peak_and_number(a, b)
    return None if peak is None else peak + number


def _peak_of_product(a: Any, b: Any) -> Any:
    peak, number = _peak_and_number(a, b)
    known = number is not None and not isinstance(number, jax.core.Tracer)
    return None if peak is None or (known and np.any(number < 0)) else peak * number


@_arithmetic("a + b", lambda arguments: _peak_of_sum(**arguments))
def plus(a: Term, b: Term) -> ASchedule:
    """a + b, which are schedules or numbers.

    Its peak is known where one of them is a number.

    Example:
      >>> from adamw_jax import constant
      >>> (constant(0.25) + 0.5)(7).item()
      0.75
    """
    return lambda t: _at(a, t) + _at(b, t)


@_arithmetic("a - b", lambda x: None if callable(x["b"]) else _peak_of_sum(x["a"], -x["b"]))
def minus(a: Term, b: Term) -> ASchedule:
    """a - b; its peak is known where b is a number.

    Example:
      >>> from adamw_jax import constant
      >>> (1 - constant(0.25))(7).item()
      0.75
    """
    return lambda t: _at(a, t) - _at(b, t)


@_arithmetic("a * b", lambda arguments: _peak_of_product(**arguments))
def times(a: Term, b: Term) -> ASchedule:
    """a * b; its peak is known where one of them is a number of at least 0.

    Example:
      >>> from adamw_jax import linear_warmup
      >>> rate = 0.5 * linear_warmup(1.0, 4)
      >>> rate, rate.peak, rate(2).item()
      (0.5 * linear_warmup(1.0, 4), 0.5, 0.25)
    """
    return lambda t: _at(a, t) * _at(b, t)


@_arithmetic("a / b", lambda x: None if callable(x["b"]) else _peak_of_product(x["a"], 1 / x["b"]))
def over(a: Term, b: Divisor) -> ASchedule:
    """a / b, and 0 where both are 0; its peak is known where b is a number above 0.

    Example:
      >>> from adamw_jax import constant
      >>> (constant(0.5) / 2)(7).item()
      0.25
    """
    return lambda t: divide(_at(a, t), _at(b, t))


@_arithmetic("-a", lambda arguments: None)
def negative(a: ASchedule) -> ASchedule:
    """-a; its peak is not known.

    Example:
      >>> from adamw_jax import constant
      >>> -constant(0.5), (-constant(0.5))(7).item()
      (-constant(0.5), -0.5)
    """
    return lambda t: -_at(a, t)
