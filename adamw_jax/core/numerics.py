"""Numerics: arithmetic that is safe at zero, at infinity and in any dtype."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.placement import automatic
from adamw_jax.core.symbols import operation
from adamw_jax.core.trees import cast, in_precision, real_dtype, widest


def largest(x: jax.Array) -> jax.Array:
    """The largest finite number in the dtype of x."""
    return cast(jnp.finfo(x.dtype).max, x)


# Each of these runs on arrays, and on symbols, where it is written as the text says.


@operation("number")
def like(number: Any, x: jax.Array) -> jax.Array:
    """A hyperparameter in the dtype of the array it is about to meet."""
    return cast(number, x)


@operation("sqrt(x)")
def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x, finite for infinite x and with derivative 0 (instead of infinity) at 0."""
    zero = x == 0
    y = jnp.sqrt(jnp.minimum(jnp.where(zero, 1, x), largest(x)))
    return jnp.where(zero, 0, y)


@operation("x**2")
def abs_squared(x: jax.Array) -> jax.Array:
    """x² for real, |x|² for complex arrays; always real."""
    return jnp.real(x * jnp.conj(x))


@operation("weight * x**2")
def weighted_square(weight: Any, x: jax.Array) -> jax.Array:
    """weight |x|², as (weight x) x: the product overflows later than the square."""
    return jnp.real((weight * x) * jnp.conj(x))


@operation("numerator / denominator")
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


@operation("x if condition else y")
def where(condition: Any, x: Any, y: Any) -> jax.Array:
    """x where the condition holds, y elsewhere."""
    return jnp.where(condition, x, y)


@operation("maximum(x, y)")
def maximum(x: Any, y: Any) -> jax.Array:
    """The larger of two."""
    return jnp.maximum(x, y)


@operation("minimum(x, y)")
def minimum(x: Any, y: Any) -> jax.Array:
    """The smaller of two."""
    return jnp.minimum(x, y)


@operation("sign(x)")
def sign_of(x: jax.Array) -> jax.Array:
    """sign(x), with sign(0) = 0; for complex x, x/|x|."""
    return jnp.sign(x)


@operation("clip(x, -bound, bound)")
def clipped(x: jax.Array, bound: Any) -> jax.Array:
    """x with its magnitude limited; a complex x keeps its phase."""
    if not jnp.iscomplexobj(x):
        return jnp.clip(x, -bound, bound)
    size = safe_sqrt(abs_squared(x))
    return x * divide(cast(bound, size), jnp.maximum(size, bound)).astype(x.dtype)


@operation("x")
def saturate(x: jax.Array) -> jax.Array:
    """The largest number in place of infinity, which an accumulator would never leave again.

    A select, since XLA:CPU computes twice what ends in a minimum."""
    return jnp.where(x > largest(x), largest(x), x)


@operation("x")
def kept(x: jax.Array, old: jax.Array) -> jax.Array:
    """x, to be kept in the place of an old state.

    Through a select that always takes it: what only passes by XLA copies in a pass over
    memory of its own; what it thinks is computed it writes together with the rest."""
    return jnp.where(jnp.real(x) > jnp.inf, old, x)


@operation("1 - decay**t")
def correction(decay: Any, t: Any) -> Any:
    """1 - decay^t: the weight that an average begun at 0 has gathered by update t.

    Computed as -expm1(t log(decay)), with log1p, since the plain form loses two
    digits in float32 at t = 1."""
    return -jnp.expm1(t * jnp.log1p(decay - 1))


@operation("decay**t")
def not_gathered(decay: Any, t: Any) -> Any:
    """decay^t: the weight that such an average still lacks."""
    return 1 - correction(decay, t)


def add(*terms: jax.Array) -> jax.Array:
    """The sum, for `join(add, ...)`.

    Example:
      >>> from adamw_jax import add, identity, join, scale
      >>> tx = join(add, plain=identity(), twice=scale(2.0))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      9.0
    """
    return sum(terms[1:], terms[0])


def root_mean_square(x: jax.Array) -> jax.Array:
    """The root of the mean of |x|², 0 for an empty array."""
    return safe_sqrt(jnp.sum(abs_squared(x)) / max(x.size, 1))


@operation("rotations_left.T @ x @ rotations_right")
def rotate(x: jax.Array, rotations: tuple[jax.Array | None, ...]) -> Any:
    """x in the basis of the rotations' columns, along every axis."""
    return automatic(functools.partial(_rotate, back=False), x, x, rotations)


@operation("rotations_left @ x @ rotations_right.T")
def rotate_back(x: jax.Array, rotations: tuple[jax.Array | None, ...]) -> Any:
    """x back from the basis of the rotations' columns."""
    return automatic(functools.partial(_rotate, back=True), x, x, rotations)


def _rotate(x: jax.Array, rotations: tuple[jax.Array | None, ...], back: bool) -> jax.Array:
    for axis, q in enumerate(rotations):
        if q is not None:
            q = q if back else q.conj().T
            turned = jnp.tensordot(q, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(turned, 0, axis)
    return x


# A 0-d int32 array.  `Any` to a type checker, to which `count` is a method of tuples.
Counter: TypeAlias = Any


def zeros(params: Any, dtype: Any = None, *, real: bool = False, fill: Any = 0.0) -> Any:
    """An accumulator for every parameter; real where it holds squares."""

    def leaf(p: jax.Array) -> jax.Array:
        zero = jnp.full_like(p, fill, dtype=real_dtype(p.dtype) if real else p.dtype)
        return zero if dtype is None else in_precision(zero, dtype)

    return jax.tree.map(leaf, params)


def accumulate(
    name: str, step: Callable[..., jax.Array], updates: Any, old: Any
) -> tuple[Any, Any]:
    """Maps `step(g, m)` over gradients and accumulators.

    Returns what to pass on, in the precision of g, and what to store, in the
    dtype of the accumulator."""
    if jax.tree.structure(updates) != jax.tree.structure(old):
        raise ValueError(
            f"{name}: the updates are {jax.tree.structure(updates)}, the state was made for "
            f"{jax.tree.structure(old)}. Make it with init, from these parameters."
        )

    def leaf(g: jax.Array, m: jax.Array) -> jax.Array:
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


def count_up(count: Counter) -> Counter:
    """count + 1, stopping at the largest integer."""
    return optax.safe_increment(count)
