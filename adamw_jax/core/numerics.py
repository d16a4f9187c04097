"""Numerics: arithmetic that is safe at zero, at infinity and in any dtype."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.placement import automatic
from adamw_jax.core.trees import cast, in_precision, real_dtype, widest


def correction(decay, count: jax.Array, dtype, *, ahead=0) -> jax.Array:
    """1 - decay^t at t = count + ahead: the weight that an average begun at 0 has gathered.

    Computed as -expm1(t log(decay)), with log1p, since the plain form loses two
    digits in float32 at t = 1."""
    dtype = real_dtype(dtype)
    t = count.astype(dtype) + jnp.asarray(ahead, dtype)
    return -jnp.expm1(t * jnp.log1p(jnp.asarray(decay, dtype) - 1))


def root_mean_square(x: jax.Array) -> jax.Array:
    """The root of the mean of |x|², 0 for an empty array."""
    return safe_sqrt(jnp.sum(abs_squared(x)) / max(x.size, 1))


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


def clipped(u: jax.Array, max_abs: jax.typing.ArrayLike) -> jax.Array:
    """u with its magnitude limited; a complex u keeps its phase."""
    if not jnp.iscomplexobj(u):
        bound = cast(max_abs, u)
        return jnp.clip(u, -bound, bound)
    size = safe_sqrt(abs_squared(u))
    bound = cast(max_abs, size)
    return u * divide(bound, jnp.maximum(size, bound)).astype(u.dtype)


# A 0-d int32 array.  `Any` to a type checker, to which `count` is a method of tuples.
Counter: TypeAlias = Any


def zeros(params, dtype=None, *, real=False, fill=0.0):
    """An accumulator for every parameter; real where it holds squares."""

    def leaf(p):
        zero = jnp.full_like(p, fill, dtype=real_dtype(p.dtype) if real else p.dtype)
        return zero if dtype is None else in_precision(zero, dtype)

    return jax.tree.map(leaf, params)


def accumulate(name, step, updates, old):
    """Maps `step(g, m)` over gradients and accumulators.

    Returns what to pass on, in the precision of g, and what to store, in the
    dtype of the accumulator."""
    if jax.tree.structure(updates) != jax.tree.structure(old):
        raise ValueError(
            f"{name}: the updates are {jax.tree.structure(updates)}, the state was made for "
            f"{jax.tree.structure(old)}. Make it with init, from these parameters."
        )

    def leaf(g, m):
        if g.shape != m.shape:
            raise ValueError(
                f"{name}: an update has shape {g.shape}, its accumulator {m.shape}. "
                "They must be equal; nothing is broadcast."
            )
        finer = widest(g.dtype, m.dtype)
        return step(in_precision(g, finer), in_precision(m, finer))

    new = jax.tree.map(leaf, updates, old)
    passed = jax.tree.map(lambda n, g: in_precision(n, g.dtype), new, updates)
    return passed, jax.tree.map(lambda n, m: n.astype(m.dtype), new, old)


def saturate(x: jax.Array) -> jax.Array:
    """The largest number in place of infinity, which an accumulator would never leave again.

    A select, since XLA:CPU computes twice what ends in a minimum."""
    return jnp.where(x > largest(x), largest(x), x)


def count_up(count: jax.Array) -> jax.Array:
    """count + 1, stopping at the largest integer."""
    return optax.safe_increment(count)
