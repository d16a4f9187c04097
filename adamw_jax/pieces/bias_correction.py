"""Corrections: what makes up for an average that began at 0, or knows only a few gradients.

Symbols: t = 1, 2, ... numbers the updates; 1 - decay^t is the weight that the
average has gathered by then.
"""

from typing import Annotated

import jax

from adamw_jax.core.domains import Decay, Domain, Whole
from adamw_jax.core.flow import AFormula
from adamw_jax.core.numerics import correction, not_gathered, safe_sqrt, where
from adamw_jax.core.saying import named
from adamw_jax.core.transformation import elementwise

FromFour = Annotated[jax.typing.ArrayLike, Domain("a number, at least 4", lambda x: x >= 4)]


@elementwise
def bias_correction(decay: Decay, *, ahead: Whole = 0) -> AFormula:
    """m -> m / (1 - decay^t).

    Undoes the pull towards 0 of an exponential moving average that began there.

    Args:
      decay: the decay of the average upstream.
      ahead: correct as if this many updates later (NAdam looks one ahead).

    State: `count`, the number of updates so far, int32.

    Example:
      >>> from adamw_jax import bias_correction, chain, scale_by_momentum
      >>> tx = chain(scale_by_momentum(0.5), bias_correction(0.5))
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      4.0

    Reference: Kingma & Ba, "Adam", 2015, section 3.
    """
    return lambda u, t: named("u_hat", u / correction(decay, t + ahead))


@elementwise
def root_bias_correction(decay: Decay) -> AFormula:
    """d -> d / √(1 - decay^t): the correction of a root taken before it.

    Args:
      decay: of the second moment under the root.

    State: `count`, the number of updates so far.

    Example:
      >>> from adamw_jax import root_bias_correction
      >>> tx = root_bias_correction(0.75)
      >>> round(tx.update(1.0, tx.init(0.0))[0].item(), 4)
      2.0

    Reference: Kingma & Ba, "Adam", 2015, end of section 2 (the efficient form,
    in which eps shrinks with the correction).
    """
    return lambda u, t: u / safe_sqrt(correction(decay, t))


@elementwise
def rectify(decay: Decay, *, threshold: FromFour = 5.0) -> AFormula:
    """d -> d / r[t] once the variance of Adam's quotient is finite, 1 before.

    Stands at the end of a denominator; decay is that of its second moment.
    ρ∞ = 2 / (1 - decay) - 1,  ρ = ρ∞ - 2 t decay^t / (1 - decay^t),
    r² = (ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ), used where ρ >= threshold.

    Args:
      decay: b2, in [0, 1).
      threshold: of ρ, at least 4, below which r² is negative.

    State: `count`, the number of updates so far.

    Example:
      >>> from adamw_jax import rectify
      >>> tx = rectify(0.999)
      >>> tx.update(4.0, tx.init(0.0))[0].item()  # one gradient: no quotient yet
      1.0

    Reference: Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond", 2020, algorithm 2 (whose threshold is 4).
    """

    def formula(u, t):
        last = named("rho_inf", 2 / (1 - decay) - 1)
        rho = named("rho", last - 2 * t * not_gathered(decay, t) / correction(decay, t))
        finite = rho >= threshold
        safe = where(finite, rho, 5)
        square = (safe - 4) * (safe - 2) * last / ((last - 4) * (last - 2) * safe)
        return named("d", where(finite, u / safe_sqrt(square), 1))

    return formula
