"""Scaling: pieces without memory, each one function of one array, and the learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Finite, LearningRate, NonNegative
from adamw_jax.core.numerics import Counter, abs_squared, count_up, root_mean_square, safe_sqrt
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import cast


@transformation(leafwise=True, equation="maximum(minimum, rms(theta)) * u", traits=("linear",))
def scale_by_parameter_rms(minimum: NonNegative = 1e-3):
    """u -> max(minimum, RMS(θ)) · u, for each leaf: steps relative to the parameters.

    Args:
      minimum: the least scale [θ], so that parameters at 0 can leave it.

    Raises:
      ValueError: `update` got no parameters.

    Example:
      >>> from adamw_jax import scale_by_parameter_rms
      >>> tx = scale_by_parameter_rms()
      >>> tx.update(0.5, tx.init(4.0), 4.0)[0].item()
      2.0

    Reference: Shazeer & Stern, "Adafactor", 2018, section 8.
    """

    def update(updates, params):
        if params is None:
            raise ValueError(
                "scale_by_parameter_rms: got no parameters. Call update(grads, state, params)."
            )
        leaf = lambda u, p: (
            cast(jnp.maximum(cast(minimum, root_mean_square(p)), root_mean_square(p)), u) * u
        )
        return jax.tree.map(leaf, updates, params)

    return optax.stateless(update)


def leafwise_map(function) -> optax.GradientTransformation:
    """The stateless transformation that applies `function` to every leaf."""
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates))


@transformation(leafwise=True, equation="u", traits=("linear",))
def identity():
    """u -> u.

    Example:
      >>> from adamw_jax import identity
      >>> identity().update({"w": 2.0}, identity().init({"w": 0.0}))[0]["w"].item()
      2.0
    """
    return optax.stateless(lambda updates, params: updates)


@transformation(leafwise=True, equation="u**2", traits=("squares",))
def square():
    """u -> u², or |u|² for complex u.

    Example:
      >>> from adamw_jax import square
      >>> square().update(-3.0, square().init(0.0))[0].item()
      9.0
    """
    return leafwise_map(abs_squared)


@transformation(leafwise=True, equation="sign(u)", traits=("sign", "scale_invariant"))
def sign():
    """u -> sign(u), with sign(0) = 0; for complex u, u/|u|.

    Example:
      >>> from adamw_jax import sign
      >>> sign().update(-3.0, sign().init(0.0))[0].item()
      -1.0

    Reference: Bernstein et al., "signSGD", 2018, algorithm 1.
    """
    return leafwise_map(jnp.sign)


@transformation(leafwise=True, equation="factor * u", traits=("scale",))
def scale(factor: Finite):
    """u -> factor * u.

    Args:
      factor: a number or array.

    Example:
      >>> from adamw_jax import scale
      >>> scale(-0.5).update(4.0, scale(-0.5).init(0.0))[0].item()
      -2.0
    """
    return leafwise_map(lambda u: cast(factor, u) * u)


@transformation(leafwise=True, equation="sqrt(u + eps_root) + eps", traits=("root",))
def root(eps: NonNegative = 0.0, *, eps_root: NonNegative = 0.0):
    """v -> √(v + eps_root) + eps.

    `eps` bounds the quotient that divides by this root; as a floor at v = 0,
    `eps_root` inside acts like its own square root outside.

    Args:
      eps: added outside the root, in the unit of the root.
      eps_root: added inside the root, in the unit of v.

    Example:
      >>> from adamw_jax import root
      >>> tx = root(1.0, eps_root=9.0)
      >>> tx.update(16.0, tx.init(0.0))[0].item()
      6.0
    """
    return leafwise_map(lambda v: safe_sqrt(v + cast(eps_root, v)) + cast(eps, v))


@transformation(leafwise=True, equation="maximum(u, eps)", traits=("positive",))
def floor(eps: NonNegative):
    """v -> max(v, eps).

    Args:
      eps: the smallest value that leaves, in the unit of v.

    Example:
      >>> from adamw_jax import floor
      >>> floor(0.5).update(0.0, floor(0.5).init(0.0))[0].item()
      0.5
    """
    return leafwise_map(lambda v: jnp.maximum(v, cast(eps, v)))


class ScaleByLearningRateState(NamedTuple):
    count: Counter
    learning_rate: jax.Array


@transformation(leafwise=True, equation="-learning_rate * u", traits=("learning_rate", "negative"))
def scale_by_learning_rate(learning_rate: LearningRate):
    """u -> -learning_rate * u: from a direction of ascent to a step down.

    Args:
      learning_rate: a number, an array, or a schedule from the number of
        updates before this one (0 at first) to a number.

    State: `count`, the number of updates so far; `learning_rate`, the one last
    applied (0 at first).

    Example:
      >>> from adamw_jax import scale_by_learning_rate
      >>> tx = scale_by_learning_rate(0.5)
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      -2.0
    """

    def init(params):
        return ScaleByLearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), float))

    def update(updates, state, params=None):
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        applied = cast(rate, state.learning_rate)
        new = ScaleByLearningRateState(count_up(state.count), applied)
        return jax.tree.map(lambda u: -cast(rate, u) * u, updates), new

    return optax.GradientTransformation(init, update)
