"""Looking ahead and behind: averages that use more than the latest gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.combine import chain, join
from adamw_jax.corrections import bias_correction
from adamw_jax.domains import Decay, Finite, NonNegative
from adamw_jax.maps import abs_squared, add, identity, scale
from adamw_jax.moments import Counter, accumulate, count_up, saturate, scale_by_momentum, zeros
from adamw_jax.transform import transformation
from adamw_jax.trees import cast, kept


class PreviousSecondMomentState(NamedTuple):
    count: Counter
    second_moment: optax.Updates


class VarianceReductionState(NamedTuple):
    previous: optax.Updates


class WarmingNesterovState(NamedTuple):
    count: Counter
    product: jax.Array
    momentum: optax.Updates


@transformation(equation="b = decay * b + u; u + decay * b")
def nesterov_trace(decay: Decay):
    """b <- decay b + g, passes g + decay b on.

    The state holds decay·b, in units of the look-ahead.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import nesterov_trace
      >>> tx = nesterov_trace(0.5)
      >>> first, state = tx.update(2.0, tx.init(0.0))
      >>> second, state = tx.update(2.0, state)
      >>> first.item(), second.item()
      (3.0, 3.5)

    Reference: Sutskever et al., "On the importance of initialization and
    momentum in deep learning", 2013, equations 3-4.
    """
    return join(add, gradient=identity(), momentum=scale_by_momentum(decay, gain=decay))


@transformation
def nesterov_average(decay: Decay):
    """decay m / (1 - decay^(t+1)) + (1 - decay) g / (1 - decay^t), m the average of g.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import nesterov_average
      >>> tx = nesterov_average(0.5)
      >>> round(tx.update(3.0, tx.init(0.0))[0].item(), 4)  # 0.5 · 1.5 / 0.75 + 0.5 · 3 / 0.5
      4.0

    Reference: Dozat, "Incorporating Nesterov Momentum into Adam", 2016,
    algorithm 2 with a constant momentum.
    """
    return join(
        add,
        momentum=chain(scale_by_momentum(decay), bias_correction(decay, ahead=1), scale(decay)),
        gradient=chain(bias_correction(decay), scale(1 - decay)),
    )


_WARMING = """
if t == 1: P = 1
mu = decay * (1 - 0.5 * 0.96 ** (t * psi))
mu_next = decay * (1 - 0.5 * 0.96 ** ((t + 1) * psi))
P = P * mu
m = decay * m + (1 - decay) * u
(1 - mu) * u / (1 - P) + mu_next * m / (1 - P * mu_next)
"""


@transformation(leafwise=True, equation=_WARMING, traits=("average", "corrected"))
def warming_nesterov(decay: Decay, psi: NonNegative = 0.004):
    """(1 - μ[t]) g / (1 - Π[t]) + μ[t+1] m / (1 - Π[t+1]), m the average of g.

    μ[t] = decay (1 - 0.96^(t psi) / 2), and Π[t] is the product of the first t.

    Args:
      decay: of m, and the limit of μ, in [0, 1).
      psi: how fast μ approaches it.

    State: `momentum`, like the parameters; `product`, Π; `count`.

    Example:
      >>> from adamw_jax import warming_nesterov
      >>> tx = warming_nesterov(0.9)
      >>> round(tx.update(1.0, tx.init(0.0))[0].item(), 4)
      1.0565

    Reference: Dozat, "Incorporating Nesterov Momentum into Adam", 2016, algorithm 2.
    """

    def init(params):
        return WarmingNesterovState(jnp.zeros((), jnp.int32), jnp.ones((), float), zeros(params))

    def update(updates, state, params=None):
        count, dtype = count_up(state.count), state.product.dtype
        t = count.astype(dtype)
        rate = lambda t: cast(decay, t) * (1 - 0.5 * 0.96 ** (t * cast(psi, t)))
        mu, ahead = rate(t), rate(t + 1)
        product = state.product * mu

        def step(g, m):
            b = cast(decay, g)
            return b * m + (1 - b) * g

        new, stored = accumulate("warming_nesterov", step, updates, state.momentum)
        now, then = (1 - mu) / (1 - product), ahead / (1 - product * ahead)
        mix = lambda g, m: cast(now, g) * g + cast(then, g) * m
        return jax.tree.map(mix, updates, new), WarmingNesterovState(count, product, stored)

    return optax.GradientTransformation(init, update)


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
