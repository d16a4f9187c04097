"""Guards: pieces that hold an update back when it looks wrong."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.domains import Decay, Domain, NonNegative, Positive
from adamw_jax.maps import abs_squared, clipped, divide, leafwise_map, safe_sqrt
from adamw_jax.moments import BiasCorrectionState, Counter, correction, count_up
from adamw_jax.transform import transformation
from adamw_jax.trees import cast, real_dtype

FromFour = Annotated[jax.typing.ArrayLike, Domain("a number, at least 4", lambda x: x >= 4)]


class CountState(NamedTuple):
    count: Counter


def rms(x: jax.Array) -> jax.Array:
    """The root of the mean of |x|², 0 for an empty array."""
    return safe_sqrt(jnp.sum(abs_squared(x)) / max(x.size, 1))


def _of_branches(function: str, leaf, **examples: str) -> optax.GradientTransformation:
    """leaf(*branches) of a fork that has branches named like the examples of them."""

    def update(fork, params):
        if not isinstance(fork, dict) or not set(examples) <= set(fork):
            call = ", ".join(f"{name}={piece}" for name, piece in examples.items())
            raise TypeError(
                f"{function}: got no branches {' and '.join(examples)}. Put fork({call}) before it."
            )
        return jax.tree.map(leaf, *(fork[name] for name in examples))

    return optax.stateless(update)


@transformation(
    leafwise=True,
    consumes="fork",
    equation="k = update * gradient > 0; update * k / maximum(mean(k), 0.001)",
    traits=("first",),
)
def cautious():
    """{update, gradient} -> u · k / max(mean(k), 1e-3), where k = 1 if u g > 0, else 0.

    Drops the coordinates in which the update and the gradient disagree, and
    makes up for their number, one mean for each leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import cautious
      >>> u, g = jnp.array([1.0, 1.0]), jnp.array([1.0, -1.0])
      >>> cautious().update({"update": u, "gradient": g}, cautious().init(g))[0].tolist()
      [2.0, 0.0]

    Reference: Liang et al., "Cautious Optimizers", 2024, algorithm 1; scale as
    in the authors' package C-Optim.
    """

    def leaf(u, g):
        agree = (jnp.real(u * jnp.conj(g)) > 0).astype(u.dtype)
        share = jnp.sum(agree) / max(u.size, 1)
        return u * agree / jnp.maximum(jnp.real(share), 1e-3).astype(u.dtype)

    return _of_branches("cautious", leaf, update="scale_by_adam()", gradient="identity()")


@transformation(
    leafwise=True,
    consumes="fork",
    equation="maximum(1, rms(gradient / maximum(sqrt(second_moment), eps)))",
    traits=("first", "scale_invariant", "positive"),
)
def update_rms(eps: NonNegative = 1e-8):
    """{gradient, second_moment} -> max(1, RMS(g / max(√v, eps))), one number a leaf.

    Above 1 when the gradient is larger than its history says.

    Args:
      eps: least value of √v [L/θ].

    Reference: Wortsman et al., "Stable and low-precision training for
    large-scale vision-language models", 2023, algorithm 2.
    """

    def leaf(g, v):
        return jnp.maximum(1, rms(divide(g, jnp.maximum(safe_sqrt(v), cast(eps, v))))).astype(
            g.dtype
        )

    return _of_branches(
        "update_rms", leaf, gradient="identity()", second_moment="second_moment(0.99)"
    )


@transformation(leafwise=True, equation="u / maximum(1, rms(u) / threshold)", traits=("clip",))
def clip_by_rms(threshold: Positive = 1.0):
    """u -> u / max(1, RMS(u) / threshold), for each leaf.

    Args:
      threshold: the largest RMS that passes, in the unit of u.

    Reference: Shazeer & Stern, "Adafactor", 2018, section 6.
    """
    return leafwise_map(lambda u: u / cast(jnp.maximum(1, rms(u) / cast(threshold, rms(u))), u))


@transformation(leafwise=True, equation="u * minimum(1, max_norm / norm(u))", traits=("clip",))
def clip_by_leaf_norm(max_norm: Positive):
    """u -> u · min(1, max_norm / ‖u‖), for each leaf.

    Args:
      max_norm: the largest norm that passes, in the unit of u.

    Reference: Yuan et al., "MARS", 2024, algorithm 2.
    """

    def leaf(u):
        norm = safe_sqrt(jnp.sum(abs_squared(u)))
        limit = cast(max_norm, norm)
        return u * cast(limit / jnp.maximum(norm, limit), u)

    return leafwise_map(leaf)


@transformation(leafwise=True, equation="maximum(minimum, rms(theta)) * u", traits=("linear",))
def scale_by_parameter_rms(minimum: NonNegative = 1e-3):
    """u -> max(minimum, RMS(θ)) · u, for each leaf: steps relative to the parameters.

    Args:
      minimum: the least scale [θ], so that parameters at 0 can leave it.

    Raises:
      ValueError: `update` got no parameters.

    Reference: Shazeer & Stern, "Adafactor", 2018, section 8.
    """

    def update(updates, params):
        if params is None:
            raise ValueError(
                "scale_by_parameter_rms: got no parameters. Call update(grads, state, params)."
            )
        leaf = lambda u, p: cast(jnp.maximum(cast(minimum, rms(p)), rms(p)), u) * u
        return jax.tree.map(leaf, updates, params)

    return optax.stateless(update)


@transformation(
    leafwise=True, equation="clip(u, -((t - 1) ** power), (t - 1) ** power)", traits=("clip",)
)
def clip_by_age(power: Positive = 0.25):
    """u -> clip(u, -b, b) with b = (t - 1)^power: nothing passes the first time.

    Args:
      power: how fast the bound grows.

    State: `count`, the number of updates so far.

    Reference: Taniguchi et al., "ADOPT", 2024, algorithm 2.
    """

    def init(params):
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        def leaf(u):
            t = state.count.astype(real_dtype(u.dtype))
            return clipped(u, t ** cast(power, t))

        return jax.tree.map(leaf, updates), CountState(count_up(state.count))

    return optax.GradientTransformation(init, update)


_RECTIFIED = """
rho_inf = 2 / (1 - decay) - 1
rho = rho_inf - 2 * t * decay**t / (1 - decay**t)
if rho >= threshold:
    r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
d = u / r if rho >= threshold else 1
d
"""


@transformation(leafwise=True, equation=_RECTIFIED, traits=("linear",))
def rectify(decay: Decay, *, threshold: FromFour = 5.0):
    """d -> d / r[t] once the variance of Adam's quotient is finite, 1 before.

    Stands at the end of a denominator; decay is that of its second moment.
    ρ∞ = 2 / (1 - decay) - 1,  ρ = ρ∞ - 2 t decay^t / (1 - decay^t),
    r² = (ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ), used where ρ >= threshold.

    Args:
      decay: b2, in [0, 1).
      threshold: of ρ, at least 4, below which r² is negative.

    State: `count`, the number of updates so far.

    Reference: Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond", 2020, algorithm 2 (whose threshold is 4).
    """

    def init(params):
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        count = count_up(state.count)

        def leaf(d):
            b = cast(decay, d)
            last = 2 / (1 - b) - 1
            gathered = correction(decay, count, d.dtype)
            rho = last - 2 * count.astype(d.dtype) * (1 - gathered) / gathered
            finite = rho >= cast(threshold, d)
            safe = jnp.where(finite, rho, 5)
            square = (safe - 4) * (safe - 2) * last / ((last - 4) * (last - 2) * safe)
            return jnp.where(finite, d / jnp.sqrt(square), 1)

        return jax.tree.map(leaf, updates), CountState(count)

    return optax.GradientTransformation(init, update)


@transformation(leafwise=True, equation="u / sqrt(1 - decay**t)", traits=("correction",))
def root_bias_correction(decay: Decay):
    """d -> d / √(1 - decay^t): the correction of a root taken before it.

    Args:
      decay: of the second moment under the root.

    State: `count`, the number of updates so far.

    Reference: Kingma & Ba, "Adam", 2015, end of section 2 (the efficient form,
    in which eps shrinks with the correction).
    """

    def init(params):
        return BiasCorrectionState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        count = count_up(state.count)
        leaf = lambda d: d / jnp.sqrt(correction(decay, count, d.dtype))
        return jax.tree.map(leaf, updates), BiasCorrectionState(count)

    return optax.GradientTransformation(init, update)
