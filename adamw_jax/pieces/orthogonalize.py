"""Matrices: pieces that see a parameter as a linear map, not as a list of numbers.

JAX kernels are [in, out]: rows are fan-in, columns fan-out.  An array with more
axes is a matrix only through a `View`, which says which axes are stacked
matrices, which are rows and which are columns.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.domains import Count, DType, OfLeaf
from adamw_jax.core.placement import Axis, automatic, deal_out
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import cast
from adamw_jax.pieces.newton_schulz import Table, orthogonalize_stack, table_of


class View(NamedTuple):
    """How the axes of an array make a matrix, or a stack of them.

    Attributes:
      batch: the first `batch` axes count stacked matrices,
      rows: the next `rows` axes are rows (fan-in), all others columns (fan-out).
      blocks: the columns hold this many matrices side by side (a fused QKV
        kernel: 3).

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import View, orthogonalize
      >>> experts = jnp.ones((8, 64, 256))  # eight matrices
      >>> tx = orthogonalize(views=lambda path, leaf: View(batch=1))
      >>> tx.update(experts, tx.init(experts))[0].shape
      (8, 64, 256)
    """

    batch: int = 0
    rows: int = 1
    blocks: int = 1


Views = Annotated[Callable[[str, Any], View | bool | None], OfLeaf]


# What is not a hidden matrix, by name; and what 3-D attention kernels are.
NOT_HIDDEN = r"(?i)embed|wte|wpe|logits|norm|((^|[/_])heads?(_?\d+)?|(^|[/_])(scale|bias))(/|$)"


ATTENTION = (
    (r"(?i)(^|/)(query|key|value|q|k|v)(_proj)?/kernel$", View(rows=1)),  # (in, heads, dim)
    (r"(?i)(^|/)(out|o)(_proj)?/kernel$", View(rows=2)),  # (heads, dim, out)
)


FUSED = r"(?i)(qkv|c_attn)[^/]*(/kernel)?$"


def default_matrices(path: str, leaf: Any) -> View | bool:
    """Which leaves are hidden matrices, and how to see them.

    | leaf | verdict |
    |---|---|
    | 0 or 1 axes; named like an embedding, head, norm or bias | no matrix |
    | 2 axes | rows, columns; a fused qkv kernel is three matrices side by side |
    | 3 axes, an attention kernel `query key value out` | (in, heads dim), (heads dim, out) |
    | 3 axes, anything else; an attention kernel with more | ambiguous: an error |
    | 4 or 5 axes, a convolution | (window and in, out); fed by 4 channels or fewer, no matrix |

    Raises:
      ValueError: the leaf has 3 axes or more, and no rule decides.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import default_matrices
      >>> default_matrices("mlp/kernel", jnp.ones((64, 256)))
      View(batch=0, rows=1, blocks=1)
      >>> default_matrices("mlp/bias", jnp.ones(256))
      False
    """
    axes = jnp.ndim(leaf)
    if axes < 2 or re.search(NOT_HIDDEN, path):
        return False
    shape = jnp.shape(leaf)
    if axes == 2:
        fused = re.search(FUSED, path) and shape[1] == 3 * shape[0]
        return View(blocks=3) if fused else View()
    attention = next((view for pattern, view in ATTENTION if re.search(pattern, path)), None)
    if axes == 3 and attention:
        return attention
    if axes in (4, 5) and not attention:  # heads in layers are no convolution
        return View(rows=axes - 1) if shape[-2] > 4 else False
    raise ValueError(
        f"muon: '{path}' has shape {shape}, which may be a stack of matrices or one matrix. Decide "
        "with matrices=lambda path, leaf: ..., returning View(batch=1) for a stack, View(rows=1) "
        "or View(rows=2) for one matrix, or False for no matrix."
    )


def view_of(function: str, views: Views | None, path: str, leaf: Any) -> View:
    """The view of a leaf, checked against its shape."""
    found = views(path, leaf) if views else True
    found = default_view(leaf) if found is True else found
    axes, out = jnp.ndim(leaf), jnp.shape(leaf)[-1:] or (0,)
    if (
        not isinstance(found, View)
        or not 0 < found.rows < axes - found.batch
        or out[0] % found.blocks
    ):
        raise ValueError(
            f"{function}: '{path}' of shape {jnp.shape(leaf)} has no matrix view "
            f"(got {found!r}). Route it elsewhere, or return a View that fits."
        )
    return found


def default_view(leaf: Any) -> View:
    """The view of a leaf that is known to be one matrix: all axes but the last are rows."""
    return View(rows=max(jnp.ndim(leaf) - 1, 1))


def to_matrices(x: jax.Array, view: View) -> jax.Array:
    """The array as a stack of matrices [n, rows, columns]."""
    batch, rows = x.shape[: view.batch], x.shape[view.batch : view.batch + view.rows]
    n, r, b = _size(batch), _size(rows), view.blocks
    columns = _size(x.shape[view.batch + view.rows :]) // b
    return x.reshape(n, r, b, columns).swapaxes(1, 2).reshape(n * b, r, columns)


def from_matrices(matrices: jax.Array, view: View, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_matrices`."""
    n, r, columns = matrices.shape
    apart = matrices.reshape(n // view.blocks, view.blocks, r, columns)
    return apart.swapaxes(1, 2).reshape(shape)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


@transformation(traits=("scale_invariant", "nonlinear"))
def orthogonalize(
    coefficients: Any = "keller",
    *,
    steps: Count = 5,
    dtype: DType | None = None,
    views: Views | None = None,
    stack_axis: Axis | None = None,
) -> optax.GradientTransformation:
    """U S Vᵀ -> about U Vᵀ: brings every singular value of every matrix near 1.

    Newton-Schulz iteration, no decomposition.  Matrices of equal shape are
    stacked and iterated in one batched call; those at least twice as long as
    wide are iterated on their small Gram matrix.

    Args:
      coefficients: "keller", "polar_express", "speedrun" or "dion"; a tuple of
        rows (a, b, c) of the step X <- aX + b(XXᵀ)X + c(XXᵀ)²X; or a
        `newton_schulz.Table`, which pairs rows with the norm they need.
      steps: how many rows to use, from the first; a single row is repeated.
      dtype: of the iteration; None for the update's own.  "bfloat16" halves
        the traffic and is how the method is usually run.
      views: from path and leaf to the `View` of that leaf; None sees all axes
        but the last as rows.
      stack_axis: an axis of the current mesh (`jax.set_mesh`), or several, over
        which each stack is dealt out.  Every device iterates whole matrices of
        its own, with no communication; before and after, matrices move to
        where they are due.  Name first the axes that shard the matrices.

    Raises:
      ValueError: a leaf has no matrix view, the table has too few rows, or the
        mesh has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import orthogonalize
      >>> u = jnp.diag(jnp.array([3.0, 0.5]))
      >>> tx = orthogonalize("polar_express", steps=8)
      >>> tx.update(u, tx.init(u))[0].round(2).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    Reference: Jordan et al., "Muon", 2024; Amsel et al., "The Polar Express",
    2025 (arXiv 2505.16932), implementations 1-2.
    """
    table = table_of(coefficients, steps)

    def iterate(updates):
        paths, treedef = jax.tree_util.tree_flatten_with_path(updates)
        seen = [view_of("orthogonalize", views, trees.path_text(p), leaf) for p, leaf in paths]
        stacks = [to_matrices(leaf, view) for (_, leaf), view in zip(paths, seen, strict=True)]
        done = _in_batches(stacks, table, dtype, stack_axis)
        leaves = [
            from_matrices(x, view, leaf.shape)
            for x, view, (_, leaf) in zip(done, seen, paths, strict=True)
        ]
        return treedef.unflatten(leaves)

    return optax.stateless(lambda updates, params: automatic(iterate, updates, updates))


def _groups(stacks: list[Any]) -> dict[Any, list[int]]:
    """Which stacks are iterated together: those with matrices of one shape or its transpose."""
    found: dict[Any, list[int]] = {}
    for i, x in enumerate(stacks):
        found.setdefault((tuple(sorted(x.shape[1:])), x.dtype), []).append(i)
    return found


def stack_heights(leaves: list[Any], views: list[View]) -> list[tuple[tuple[int, ...], int]]:
    """The shape [short, long] of the matrices of each stack, and how many it holds."""
    bare = trees.widen([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves])
    stacks = [
        jax.eval_shape(lambda x, view=view: to_matrices(x, view), leaf)
        for leaf, view in zip(bare, views, strict=True)
    ]
    groups = _groups(stacks).items()
    return [(shape, sum(stacks[i].shape[0] for i in group)) for (shape, _), group in groups]


def _in_batches(stacks: list[jax.Array], table: Table, dtype: Any, axis: Any) -> list[jax.Array]:
    """Orthogonalises stacks of matrices, those of one shape (or its transpose) together."""
    wide = [x.swapaxes(1, 2) if x.shape[1] > x.shape[2] else x for x in stacks]
    work = lambda x: orthogonalize_stack(x, table, dtype)
    done: list[Any] = [None] * len(stacks)
    for members in _groups(stacks).values():
        together = jnp.concatenate([wide[i] for i in members])
        result = deal_out("orthogonalize", work, together, axis) if axis else work(together)
        start = 0
        for i in members:
            part = result[start : start + len(wide[i])]
            start += len(wide[i])
            done[i] = part.swapaxes(1, 2) if stacks[i].shape[1] > stacks[i].shape[2] else part
    return done


SHAPE_SCALES: dict[str, Callable[[int, int], float]] = {
    "keller": lambda fan_in, fan_out: max(1.0, fan_out / fan_in) ** 0.5,
    "moonshot": lambda fan_in, fan_out: 0.2 * max(fan_in, fan_out) ** 0.5,
    "spectral": lambda fan_in, fan_out: (fan_out / fan_in) ** 0.5,
}


_WRITTEN_SCALES = {
    "keller": "sqrt(maximum(1, fan_out / fan_in))",
    "moonshot": "0.2 * sqrt(maximum(fan_in, fan_out))",
    "spectral": "sqrt(fan_out / fan_in)",
}


@transformation(
    equation=lambda arguments: f"{_WRITTEN_SCALES[arguments['scale']]} * u", traits=("linear",)
)
def scale_by_shape(
    scale: str = "keller", *, views: Views | None = None
) -> optax.GradientTransformation:
    """u -> factor * u, with a factor from the fan-in and fan-out of each matrix.

    Args:
      scale: "keller" √max(1, out/in); "moonshot" 0.2 √max(in, out), which gives
        an orthogonal matrix the RMS 0.2; "spectral" √(out/in).
      views: as in `orthogonalize`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import scale_by_shape
      >>> u = jnp.ones((2, 8))
      >>> tx = scale_by_shape("keller")
      >>> tx.update(u, tx.init(u))[0][0, 0].item()
      2.0

    Reference: Jordan et al., "Muon", 2024; Liu et al., "Muon is Scalable for
    LLM Training", 2025 (arXiv 2502.16982).
    """
    if scale not in SHAPE_SCALES:
        raise ValueError(
            f"scale_by_shape: scale is {scale!r}. It must be one of: {', '.join(SHAPE_SCALES)}."
        )

    def leaf(path, u):
        view = view_of("scale_by_shape", views, trees.path_text(path), u)
        _, fan_in, fan_out = jax.eval_shape(lambda x: to_matrices(x, view), u).shape
        return u if u.size == 0 else cast(SHAPE_SCALES[scale](fan_in, fan_out), u) * u

    return optax.stateless(lambda u, params: jax.tree_util.tree_map_with_path(leaf, u))
