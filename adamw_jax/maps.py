"""Maps: pieces without memory, each one function of one array.

They work leaf by leaf and keep no state.  Where the textbook function has no
finite value or derivative (the root of zero), the convention is 0.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from adamw_jax.domains import Finite, NonNegative, Positive
from adamw_jax.placement import automatic
from adamw_jax.transform import transformation
from adamw_jax.trees import cast


def leafwise_map(function) -> optax.GradientTransformation:
    """The stateless transformation that applies `function` to every leaf."""
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates))


def largest(x: jax.Array) -> jax.Array:
    """The largest finite number in the dtype of x."""
    return cast(jnp.finfo(x.dtype).max, x)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x, finite for infinite x and with derivative 0 (instead of infinity) at 0."""
    return jnp.sqrt(jnp.minimum(x, largest(x)))


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    y = safe_sqrt(primals[0])
    return y, tangents[0] * jnp.where(y > 0, 0.5 / jnp.where(y > 0, y, 1), 0)


def abs_squared(x: jax.Array) -> jax.Array:
    """x² for real, |x|² for complex arrays; always real."""
    return jnp.real(x * jnp.conj(x))


def add(*terms: jax.Array) -> jax.Array:
    """The sum, for `join(add, ...)`.

    Example:
      >>> from adamw_jax import add, identity, join, scale
      >>> tx = join(add, plain=identity(), twice=scale(2.0))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      9.0
    """
    return sum(terms[1:], terms[0])


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, 0 where the denominator is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import divide
      >>> divide(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])).tolist()
      [0.5, 0.0]
    """
    safe = jnp.where(denominator == 0, jnp.inf, denominator)  # one select, finite derivatives
    return numerator / cast(safe, numerator)


def rotate(x: jax.Array, rotations: tuple[jax.Array | None, ...], back: bool = False) -> jax.Array:
    """x in the basis of the rotations' columns, along every axis; or back from it."""
    return automatic(functools.partial(_rotate, back=back), x, x, rotations)


def _rotate(x, rotations, back):
    for axis, q in enumerate(rotations):
        if q is not None:
            q = q if back else q.conj().T
            turned = jnp.tensordot(q, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(turned, 0, axis)
    return x


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


def clipped(u: jax.Array, max_abs: jax.typing.ArrayLike) -> jax.Array:
    """u with its magnitude limited; a complex u keeps its phase."""
    if not jnp.iscomplexobj(u):
        bound = cast(max_abs, u)
        return jnp.clip(u, -bound, bound)
    size = safe_sqrt(abs_squared(u))
    bound = cast(max_abs, size)
    return u * divide(bound, jnp.maximum(size, bound)).astype(u.dtype)


@transformation(leafwise=True, equation="clip(u, -max_abs, max_abs)", traits=("clip",))
def clip(max_abs: Positive):
    """u -> min(max(u, -max_abs), max_abs); a complex u keeps its phase.

    Args:
      max_abs: the largest magnitude that passes, in the unit of u.

    Example:
      >>> from adamw_jax import clip
      >>> clip(1.0).update(-3.0, clip(1.0).init(0.0))[0].item()
      -1.0
    """
    return leafwise_map(lambda u: clipped(u, max_abs))


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
