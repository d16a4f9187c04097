"""Scaling: pieces without memory, each one function of one array, and the learning rate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Finite, LearningRate, NonNegative
from adamw_jax.core.flow import AFormula, per_tree
from adamw_jax.core.numerics import abs_squared, maximum, root_mean_square, safe_sqrt, sign_of
from adamw_jax.core.transformation import elementwise, transformation
from adamw_jax.core.trees import cast


@transformation(leafwise=True, equation="maximum(minimum, rms(theta)) * u", traits=("linear",))
def scale_by_parameter_rms(minimum: NonNegative = 1e-3) -> optax.GradientTransformation:
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


def leafwise_map(function: Callable[..., jax.Array]) -> optax.GradientTransformation:
    """The stateless transformation that applies `function` to every leaf."""
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates))


@elementwise
def identity() -> AFormula:
    """u -> u.

    Example:
      >>> from adamw_jax import identity
      >>> identity().update({"w": 2.0}, identity().init({"w": 0.0}))[0]["w"].item()
      2.0
    """
    return lambda u: u


@elementwise
def square() -> AFormula:
    """u -> u², or |u|² for complex u.

    Example:
      >>> from adamw_jax import square
      >>> square().update(-3.0, square().init(0.0))[0].item()
      9.0
    """
    return lambda u: abs_squared(u)


@elementwise
def sign() -> AFormula:
    """u -> sign(u), with sign(0) = 0; for complex u, u/|u|.

    Example:
      >>> from adamw_jax import sign
      >>> sign().update(-3.0, sign().init(0.0))[0].item()
      -1.0

    Reference: Bernstein et al., "signSGD", 2018, algorithm 1.
    """
    return lambda u: sign_of(u)


@elementwise
def scale(factor: Finite) -> AFormula:
    """u -> factor * u.

    Args:
      factor: a number or array.

    Example:
      >>> from adamw_jax import scale
      >>> scale(-0.5).update(4.0, scale(-0.5).init(0.0))[0].item()
      -2.0
    """
    return lambda u: factor * u


@elementwise
def root(eps: NonNegative = 0.0, *, eps_root: NonNegative = 0.0) -> AFormula:
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
    return lambda u: safe_sqrt(u + eps_root) + eps


@elementwise
def floor(eps: NonNegative) -> AFormula:
    """v -> max(v, eps).

    Args:
      eps: the smallest value that leaves, in the unit of v.

    Example:
      >>> from adamw_jax import floor
      >>> floor(0.5).update(0.0, floor(0.5).init(0.0))[0].item()
      0.5
    """
    return lambda u: maximum(u, eps)


@elementwise(learning_rate=per_tree(0.0))
def scale_by_learning_rate(learning_rate: LearningRate) -> AFormula:
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
    return lambda u: (-learning_rate * u, {"learning_rate": learning_rate})
