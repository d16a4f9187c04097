"""Frugal second moments: v in less memory than one number a parameter."""

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.domains import Decay, NonNegative, OfLeaf, Positive
from adamw_jax.core.numerics import Counter, abs_squared, count_up, divide, saturate
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import cast, real_dtype
from adamw_jax.pieces.moments import second_moment

# What Adam keeps, in fewer numbers.
SecondMomentState: Any = second_moment.State(False)  # type: ignore[attr-defined]


class FactoredSecondMomentState(NamedTuple):
    count: Counter
    row: optax.Updates
    column: optax.Updates


_FACTORED = """
beta = 1 - t ** -power
r = beta * r + (1 - beta) * row_means(u**2 + eps_root)
c = beta * c + (1 - beta) * column_means(u**2 + eps_root)
outer(r, c) / mean(r)
"""  # of a matrix


@transformation(leafwise=True, equation=_FACTORED, traits=("squares",))
def factored_second_moment(
    power: Positive = 0.8, eps_root: NonNegative = 1e-30
) -> optax.GradientTransformation:
    """v ≈ r c / mean(r), from the means r and c of |g|² over columns and over rows.

    r and c are averages whose decay grows as 1 - t^(-power), so the first
    update replaces them.  Arrays with more than two axes are factored over the
    last two; those with fewer keep all of v.

    Args:
      power: how fast the decay approaches 1.
      eps_root: added to |g|² [L²/θ²].

    State: `row`, without the last axis (all of v for vectors); `column`,
    without the one before it (empty for vectors); `count`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import factored_second_moment
      >>> g = jnp.array([[1.0, 2.0], [2.0, 4.0]])
      >>> tx = factored_second_moment()
      >>> state = tx.init(g)
      >>> state.row.shape, state.column.shape
      ((2,), (2,))
      >>> jnp.sqrt(tx.update(g, state)[0]).round(3).tolist()  # exact for rank one
      [[1.0, 2.0], [2.0, 4.0]]

    Reference: Shazeer & Stern, "Adafactor", 2018, algorithm 4.
    """

    def init(params):
        new = lambda p, shape: jnp.zeros(shape, real_dtype(p.dtype))
        row = lambda p: new(p, p.shape[:-1] if p.ndim > 1 else p.shape)
        column = lambda p: new(p, p.shape[:-2] + p.shape[-1:] if p.ndim > 1 else (0,))
        count = jnp.zeros((), jnp.int32)
        return FactoredSecondMomentState(
            count, jax.tree.map(row, params), jax.tree.map(column, params)
        )

    def update(updates, state, params=None):
        count = count_up(state.count)

        def mean(old: jax.Array, squares: jax.Array) -> Any:
            kept = 1 - count.astype(old.dtype) ** -cast(power, old)
            return saturate(kept * old + (1 - kept) * squares)

        def leaf(g, row, column):
            squares = abs_squared(g) + cast(eps_root, row)
            if g.ndim < 2:
                row = mean(row, squares)
                return row, row, column
            row, column = mean(row, _mean(squares, -1)), mean(column, _mean(squares, -2))
            share = divide(row, _mean(row, -1, keepdims=True))
            return share[..., None] * column[..., None, :], row, column

        return _spread(leaf, updates, state.row, state.column, count)

    return optax.GradientTransformation(init, update)


def _mean(x: jax.Array, axis: int, keepdims: bool = False) -> jax.Array:
    """The mean along an axis, 0 along an empty one."""
    return jnp.sum(x, axis, keepdims=keepdims) / max(x.shape[axis], 1)


def _spread(
    leaf: Callable[..., Any], updates: Any, row: Any, column: Any, count: Counter
) -> tuple[Any, FactoredSecondMomentState]:
    done = jax.tree.map(leaf, updates, row, column)
    out = [jax.tree.map(lambda g, d, i=i: d[i], updates, done) for i in range(3)]
    return out[0], FactoredSecondMomentState(count, out[1], out[2])


Blocks = Annotated[Callable[[str, Any], tuple[int, ...]], OfLeaf]


def default_blocks(path: str, leaf: Any) -> tuple[int, ...]:
    """The axes over which neurons share a second moment, for JAX [in, out] kernels.

    | leaf | one v for |
    |---|---|
    | named like an embedding | each row (token) |
    | 3 axes, named like a query or key | each head |
    | any other with 2 axes or more | each output (last axis) |
    | named like a norm's scale | the whole leaf |
    | any other vector or scalar | each element |

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import default_blocks
      >>> default_blocks("layers/0/kernel", jnp.ones((64, 256)))
      (0,)
    """
    axes = tuple(range(jnp.ndim(leaf)))
    if re.search(r"(?i)embed|wte|wpe", path):
        return axes[1:]
    if len(axes) == 3 and re.search(r"(?i)(query|key|(^|/)[qk])(_proj)?/kernel$", path):
        return (0, 2)
    if len(axes) >= 2:
        return axes[:-1]
    return axes if re.search(r"(?i)norm|scale", path) else ()


@transformation(
    equation="v = decay * v + (1 - decay) * block_means(u**2); v", traits=("squares", "average")
)
def block_second_moment(decay: Decay, blocks: Blocks | None = None) -> optax.GradientTransformation:
    """v <- decay * v + (1 - decay) * mean(|g|²), one v for each block of a leaf.

    Args:
      decay: weight of the old value, in [0, 1).
      blocks: from path and leaf to the axes that share one v; () for none.
        None for `default_blocks`.

    State: `second_moment`, with 1 for the length of every shared axis [L²/θ²].

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import block_second_moment
      >>> g = {"kernel": jnp.array([[1.0, 2.0], [1.0, 4.0]])}
      >>> tx = block_second_moment(0.0)
      >>> tx.update(g, tx.init(g))[0]["kernel"].tolist()
      [[1.0, 10.0], [1.0, 10.0]]

    Reference: Zhang et al., "Adam-mini", 2024, algorithm 1.
    """
    chosen = blocks or default_blocks

    def axes(path: tuple[Any, ...], leaf: Any) -> tuple[int, ...]:
        return chosen(trees.path_text(path), leaf)

    def init(params):
        def leaf(path, p):
            shape = [1 if i in axes(path, p) else n for i, n in enumerate(p.shape)]
            return jnp.zeros(shape, real_dtype(p.dtype))

        return SecondMomentState(jax.tree_util.tree_map_with_path(leaf, params))

    def update(updates, state, params=None):
        def leaf(path, g, v):
            b = cast(decay, v)
            shared = axes(path, g)
            squares = abs_squared(g)
            mean = jnp.sum(squares, shared, keepdims=True) / max(g.size // max(v.size, 1), 1)
            return saturate(b * v + (1 - b) * mean)

        new = jax.tree_util.tree_map_with_path(leaf, updates, state.second_moment)
        full = jax.tree.map(lambda g, v: jnp.broadcast_to(v, g.shape), updates, new)
        return full, SecondMomentState(new)

    return optax.GradientTransformation(init, update)
