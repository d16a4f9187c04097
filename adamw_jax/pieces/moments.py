"""Moments: pieces that remember.  Averages, sums and maxima of what they see.

Symbols: g is what the piece receives, m and v are averages of g and |g|², and
t = 1, 2, ... numbers the updates.  An average of g keeps the unit of g [L/θ],
an average of |g|² its square [L²/θ²].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Decay, DType, Finite, NonNegative
from adamw_jax.core.numerics import Counter, abs_squared, accumulate, count_up, saturate, zeros
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import cast, kept


class PreviousSecondMomentState(NamedTuple):
    count: Counter
    second_moment: optax.Updates


class VarianceReductionState(NamedTuple):
    previous: optax.Updates


@transformation(
    leafwise=True,
    equation="v_old = v; v = decay * v + (1 - decay) * u**2 if t > 1 else u**2; v_old",
    traits=("squares",),
)
def previous_second_moment(decay: Decay):
    """Passes on v as it was before this update; v is |g|² after the first, then averages.

    Args:
      decay: weight of the old value, in [0, 1).

    State: `second_moment`, real, shaped like the parameters [L²/θ²]; `count`.

    Example:
      >>> from adamw_jax import previous_second_moment
      >>> tx = previous_second_moment(0.5)
      >>> first, state = tx.update(2.0, tx.init(0.0))
      >>> second, state = tx.update(4.0, state)
      >>> first.item(), second.item()
      (0.0, 4.0)

    Reference: Taniguchi et al., "ADOPT", 2024, algorithm 2.
    """

    def init(params):
        return PreviousSecondMomentState(jnp.zeros((), jnp.int32), zeros(params, real=True))

    def update(updates, state, params=None):
        first = state.count == 0

        def step(g, v):
            b = cast(decay, v)
            b = jnp.where(first, 0, b)
            return saturate(b * v + (1 - b) * abs_squared(g))

        stored = accumulate("previous_second_moment", step, updates, state.second_moment)[1]
        new = PreviousSecondMomentState(count_up(state.count), stored)
        return state.second_moment, new

    return optax.GradientTransformation(init, update)


@transformation(
    leafwise=True,
    equation="c = u + gamma * decay / (1 - decay) * (u - u_prev); u_prev = u; c",
    traits=("linear",),
)
def variance_reduction(decay: Decay, gamma: Finite = 0.025):
    """g -> g + gamma · decay / (1 - decay) · (g - g_previous), g_previous = 0 at first.

    Args:
      decay: b1 of the average that follows, in [0, 1).
      gamma: strength; 0 is the identity.

    State: `previous`, like the parameters [L/θ].

    Example:
      >>> from adamw_jax import variance_reduction
      >>> tx = variance_reduction(0.5, gamma=0.5)
      >>> first, state = tx.update(2.0, tx.init(0.0))
      >>> second, state = tx.update(2.0, state)
      >>> first.item(), second.item()
      (3.0, 2.0)

    Reference: Yuan et al., "MARS", 2024, equation 1 (approximate form).
    """

    def init(params):
        return VarianceReductionState(zeros(params))

    def update(updates, state, params=None):
        def step(g, old):
            b = cast(decay, g)
            return g + cast(gamma, g) * b / (1 - b) * (g - old)

        new, _ = accumulate("variance_reduction", step, updates, state.previous)
        return new, VarianceReductionState(kept(updates, state.previous))

    return optax.GradientTransformation(init, update)


class ScaleByMomentumState(NamedTuple):
    momentum: optax.Updates


class SecondMomentState(NamedTuple):
    second_moment: optax.Updates


class SumOfSquaresState(NamedTuple):
    sum_of_squares: optax.Updates


class RunningMaxState(NamedTuple):
    maximum: optax.Updates


class DifferenceState(NamedTuple):
    count: Counter
    previous: optax.Updates


class CountState(NamedTuple):
    count: Counter


@transformation(
    leafwise=True,
    equation="m_old = m; m = decay * m + (1 - decay if gain is None else gain) * u; "
    "m if read == 'after' else m_old",
    traits=("average",),
)
def scale_by_momentum(
    decay: Decay, *, gain: Finite | None = None, read: str = "after", dtype: DType | None = None
):
    """m <- decay * m + gain * g, passes m on.

    An exponential moving average by default (gain = 1 - decay), a velocity
    buffer with `gain=1.0`.  It starts at 0 and is not corrected for that; see
    `bias_correction`.

    Args:
      decay: weight of the old value, in [0, 1).
      gain: weight of the new value; None for 1 - decay.
      read: pass on m as it is "after" or was "before" this update.
      dtype: dtype of the stored m; None for the parameter's, at least float32.

    State: `momentum`, like the parameters [L/θ].

    Example:
      >>> from adamw_jax import scale_by_momentum
      >>> tx = scale_by_momentum(0.5)
      >>> update, state = tx.update(4.0, tx.init(0.0))
      >>> update.item(), state.momentum.item()
      (2.0, 2.0)

    Reference: Polyak 1964; Kingma & Ba, "Adam", 2015, algorithm 1 (m).
    """
    if read not in ("after", "before"):
        raise ValueError(f'scale_by_momentum: read is {read!r}. It must be "after" or "before".')

    def init(params):
        return ScaleByMomentumState(zeros(params, dtype))

    def update(updates, state, params=None):
        def step(g, m):
            b = cast(decay, g)
            return b * m + (1 - b if gain is None else cast(gain, g)) * g

        new, stored = accumulate("scale_by_momentum", step, updates, state.momentum)
        if read == "before":
            new = jax.tree.map(lambda m, g: m.astype(g.dtype), state.momentum, updates)
        return new, ScaleByMomentumState(stored)

    return optax.GradientTransformation(init, update)


@transformation(
    leafwise=True,
    equation="v = decay * v + (1 - decay) * u**2 + (0 if eps_root is None else eps_root); v",
    traits=("squares", "average"),
)
def second_moment(decay: Decay, *, eps_root: NonNegative | None = None, dtype: DType | None = None):
    """v <- decay * v + (1 - decay) * |g|², passes v on.

    Args:
      decay: weight of the old value, in [0, 1).
      eps_root: added to v at every update and kept in it [L²/θ²]; None for 0.
      dtype: dtype of the stored v; None for the parameter's, at least float32.
        In bfloat16 a v with decay 0.999 never decays.

    State: `second_moment`, real, shaped like the parameters [L²/θ²].

    Example:
      >>> from adamw_jax import second_moment
      >>> tx = second_moment(0.75)
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      4.0

    Reference: Kingma & Ba, "Adam", 2015, algorithm 1 (v).
    """

    def init(params):
        return SecondMomentState(zeros(params, dtype, real=True))

    def update(updates, state, params=None):
        def step(g, v):
            b = cast(decay, v)
            # ((1-b) g) g and not (1-b) g²: the product overflows later than the square.
            new = b * v + jnp.real((cast(1 - b, g) * g) * jnp.conj(g))
            return saturate(new if eps_root is None else new + cast(eps_root, v))

        new, stored = accumulate("second_moment", step, updates, state.second_moment)
        return new, SecondMomentState(stored)

    return optax.GradientTransformation(init, update)


@transformation(
    leafwise=True, equation="if t == 1: s = initial\ns = s + u**2; s", traits=("squares",)
)
def sum_of_squares(initial: NonNegative = 0.0, *, dtype: DType | None = None):
    """s <- s + |g|², passes s on.

    Args:
      initial: s before the first update [L²/θ²].
      dtype: dtype of the stored s; None for the parameter's, at least float32.

    State: `sum_of_squares`, real, shaped like the parameters [L²/θ²].

    Example:
      >>> from adamw_jax import sum_of_squares
      >>> tx = sum_of_squares()
      >>> first, state = tx.update(3.0, tx.init(0.0))
      >>> second, state = tx.update(4.0, state)
      >>> second.item()
      25.0

    Reference: Duchi et al., "Adaptive Subgradient Methods", 2011 (diagonal form).
    """

    def init(params):
        return SumOfSquaresState(zeros(params, dtype, real=True, fill=initial))

    def update(updates, state, params=None):
        step = lambda g, s: saturate(s + abs_squared(g))
        new, stored = accumulate("sum_of_squares", step, updates, state.sum_of_squares)
        return new, SumOfSquaresState(stored)

    return optax.GradientTransformation(init, update)


@transformation(leafwise=True, equation="u_max = maximum(u_max, u); u_max", traits=("positive",))
def running_max():
    """x <- max(x, u), passes x on: the largest value seen, from 0.

    State: `maximum`, real, shaped like the parameters, in the unit of u.

    Example:
      >>> from adamw_jax import running_max
      >>> tx = running_max()
      >>> first, state = tx.update(3.0, tx.init(0.0))
      >>> second, state = tx.update(1.0, state)
      >>> second.item()
      3.0

    Reference: Reddi et al., "On the Convergence of Adam and Beyond", 2018, algorithm 2.
    """

    def init(params):
        return RunningMaxState(zeros(params, real=True))

    def update(updates, state, params=None):
        new, stored = accumulate("running_max", jnp.maximum, updates, state.maximum)
        return new, RunningMaxState(stored)

    return optax.GradientTransformation(init, update)


@transformation(
    leafwise=True, equation="d = u - u_prev if t > 1 else 0; u_prev = u; d", traits=("linear",)
)
def difference():
    """g[t] - g[t-1], and 0 at the first update.

    State: `previous`, like the parameters, in the unit of g; `count`.

    Example:
      >>> from adamw_jax import difference
      >>> tx = difference()
      >>> first, state = tx.update(1.0, tx.init(0.0))
      >>> second, state = tx.update(3.0, state)
      >>> first.item(), second.item()
      (0.0, 2.0)

    Reference: Xie et al., "Adan", 2022, algorithm 1.
    """

    def init(params):
        return DifferenceState(jnp.zeros((), jnp.int32), zeros(params))

    def update(updates, state, params=None):
        seen = state.count > 0
        new, _ = accumulate(
            "difference", lambda g, old: jnp.where(seen, g - old, 0), updates, state.previous
        )
        return new, DifferenceState(count_up(state.count), kept(updates, state.previous))

    return optax.GradientTransformation(init, update)
