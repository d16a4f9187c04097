"""Eigenbasis: the rotations in which gradients of a matrix are least correlated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Count, Decay
from adamw_jax.core.numerics import Counter, count_up
from adamw_jax.core.placement import automatic
from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import cast


class EigenbasisState(NamedTuple):
    count: Counter
    gram: Any
    vectors: Any


_EQUATION = """
if t == 1:
    Q_L = eye(u @ u.T)
    Q_R = eye(u.T @ u)
L = decay * L + (1 - decay) * (u @ u.T)
R = decay * R + (1 - decay) * (u.T @ u)
Q_L_old = Q_L
Q_R_old = Q_R
Q_L = eigenvectors(L) if t == 1 else orthogonal_iteration(L, Q_L) if (t - 1) % every == 0 else Q_L
Q_R = eigenvectors(R) if t == 1 else orthogonal_iteration(R, Q_R) if (t - 1) % every == 0 else Q_R
{"left": Q_L_old, "right": Q_R_old}
"""  # of a matrix; other arrays have more such Q or none


@transformation(equation=_EQUATION, traits=("squares",))
def eigenbasis(
    decay: Decay, *, every: Count = 10, max_dim: Count = 10000
) -> optax.GradientTransformation:
    """g -> for every axis, the eigenvectors of the average of g gᵀ along it.

    The basis of `precondition(..., basis=...)`.  The first update decomposes;
    after that every k-th takes one step of orthogonal iteration, a product and
    a QR factorisation.  An update is answered with the vectors from before it.

    Columns keep their places when the iteration reorders them by size, so a
    second moment kept in this basis needs no reordering.

    Args:
      decay: of the averages, in [0, 1).
      every: k, updates from one renewal to the next.
      max_dim: longer axes, and arrays with one axis or none, are left alone.

    State: `gram` and `vectors`, a tuple with one tree for every axis, each with
    a square matrix for every leaf, empty where the axis is left alone; `count`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import eigenbasis
      >>> g = jnp.diag(jnp.array([1.0, 2.0]))
      >>> tx = eigenbasis(0.9)
      >>> state = tx.update(g, tx.init(g))[1]
      >>> abs(state.vectors[0]).tolist()  # the largest first
      [[0.0, 1.0], [1.0, 0.0]]

    Reference: Vyas et al., "SOAP", 2024, algorithms 3-4.
    """

    def squares(make: Callable[..., jax.Array], params: Any) -> tuple[Any, ...]:
        """A matrix for every axis of every leaf.  Not a tuple in the place of a leaf,
        where Flax NNX keeps parameters in boxes that hold arrays alone."""

        def matrix(p: jax.Array, axis: int) -> jax.Array:
            turned = p.ndim > max(axis, 1) and p.shape[axis] <= max_dim
            return make(p.shape[axis] if turned else 0, dtype=p.dtype)

        axes = max((p.ndim for p in jax.tree.leaves(params)), default=0)
        return tuple(jax.tree.map(lambda p, i=i: matrix(p, i), params) for i in range(axes))

    def init(params):
        zeros = lambda n, dtype: jnp.zeros((n, n), dtype)
        count = jnp.zeros((), jnp.int32)
        return EigenbasisState(count, squares(zeros, params), squares(jnp.eye, params))

    rotations = lambda g, *q: tuple(x if x.size else None for x in q[: g.ndim])

    def renew(updates, state):
        grams = tuple(
            jax.tree.map(lambda g, m, i=i: _average(m, g, i, cast(decay, g)), updates, tree)
            for i, tree in enumerate(state.gram)
        )
        first = lambda m, q: jax.tree.map(_eigenvectors, m)
        again = lambda m, q: jax.tree.map(_iterate, m, q)
        keep = lambda m, q: q
        case = jnp.where(state.count == 0, 0, jnp.where(state.count % every == 0, 1, 2))
        vectors = jax.lax.switch(case, (first, again, keep), grams, state.vectors)
        return EigenbasisState(count_up(state.count), grams, vectors)

    def update(updates, state, params=None):
        seen = jax.tree.map(rotations, updates, *state.vectors)
        return seen, automatic(renew, state, updates, state)

    return optax.GradientTransformation(init, update)


_HIGHEST = jax.lax.Precision.HIGHEST


def _gram(g: jax.Array, axis: int) -> jax.Array:
    rows = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return jnp.matmul(rows, rows.conj().T, precision=_HIGHEST)


def _average(gram: jax.Array, g: jax.Array, axis: int, decay: jax.Array) -> jax.Array:
    if not gram.size:
        return gram
    new = decay * gram + (1 - decay) * _gram(g, axis)
    # Products that overflow say nothing of directions, and would always stay.
    return jnp.where(jnp.all(jnp.isfinite(new)), new, gram)


def _eigenvectors(gram: jax.Array) -> jax.Array:
    return jnp.linalg.eigh(gram)[1][:, ::-1] if gram.size else gram  # largest first


def _iterate(gram: jax.Array, vectors: jax.Array) -> jax.Array:
    if not gram.size:
        return vectors
    product = jnp.matmul(gram, vectors, precision=_HIGHEST)
    order = jnp.argsort(-jnp.real(jnp.sum(vectors.conj() * product, axis=0)))
    renewed = jnp.linalg.qr(product[:, order])[0]
    return renewed[:, jnp.argsort(order)]
