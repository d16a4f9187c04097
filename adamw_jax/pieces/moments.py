"""Moments: pieces that remember.  Averages, sums and maxima of what they see.

Symbols: g is what the piece receives, m and v are averages of g and |g|², and
t = 1, 2, ... numbers the updates.  An average of g keeps the unit of g [L/θ],
an average of |g|² its square [L²/θ²].
"""

from adamw_jax.core.domains import Decay, DType, Finite, NonNegative
from adamw_jax.core.flow import AFormula
from adamw_jax.core.numerics import abs_squared, kept, saturate, weighted_square, where
from adamw_jax.core.numerics import maximum as larger
from adamw_jax.core.saying import named
from adamw_jax.core.transformation import elementwise


@elementwise(second_moment=0.0)
def previous_second_moment(decay: Decay) -> AFormula:
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

    def formula(u, t, second_moment):
        average = decay * second_moment + weighted_square(1 - decay, u)
        return second_moment, {"second_moment": saturate(where(t > 1, average, abs_squared(u)))}

    return formula


@elementwise(previous=0.0)
def variance_reduction(decay: Decay, gamma: Finite = 0.025) -> AFormula:
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

    def formula(u, previous):
        out = named("c", u + gamma * decay / (1 - decay) * (u - previous))
        return out, {"previous": kept(u, previous)}

    return formula


@elementwise(momentum=0.0)
def scale_by_momentum(
    decay: Decay, *, gain: Finite | None = None, read: str = "after", dtype: DType | None = None
) -> AFormula:
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

    def formula(u, momentum):
        new = decay * momentum + (1 - decay if gain is None else gain) * u
        return (new if read == "after" else momentum), {"momentum": new}

    return formula


@elementwise(second_moment=0.0)
def second_moment(
    decay: Decay, *, eps_root: NonNegative | None = None, dtype: DType | None = None
) -> AFormula:
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

    def formula(u, second_moment):
        new = decay * second_moment + weighted_square(1 - decay, u)
        new = saturate(new if eps_root is None else new + eps_root)
        return new, {"second_moment": new}

    return formula


@elementwise(sum_of_squares="initial")
def sum_of_squares(initial: NonNegative = 0.0, *, dtype: DType | None = None) -> AFormula:
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

    def formula(u, sum_of_squares):
        new = saturate(sum_of_squares + abs_squared(u))
        return new, {"sum_of_squares": new}

    return formula


@elementwise(maximum=0.0)
def running_max() -> AFormula:
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

    def formula(u, maximum):
        new = larger(maximum, u)
        return new, {"maximum": new}

    return formula


@elementwise(previous=0.0)
def difference() -> AFormula:
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

    def formula(u, t, previous):
        changed = named("d", where(t > 1, u - previous, 0))
        return changed, {"previous": kept(u, previous)}

    return formula
