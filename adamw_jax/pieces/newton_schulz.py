"""Newton-Schulz: the orthogonal factor of a matrix from products alone.

One step maps every singular value s of X to a s + b s³ + c s⁵.  A table holds
the (a, b, c) of each step, and the norm that must bring X into its range first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax.core.numerics import abs_squared, divide, safe_sqrt
from adamw_jax.core.trees import cast, in_precision

Rows = tuple[tuple[float, float, float], ...]


class Table(NamedTuple):
    """Coefficients and the norm they are made for: X = q / (norm_factor ‖q‖ + eps).

    Attributes:
      rows: (a, b, c) of each step.
      norm_factor: how far inside the unit ball X must begin.
      eps: added to the norm.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import Table, orthogonalize
      >>> cubic = Table(rows=((1.5, -0.5, 0.0),))  # the classical iteration
      >>> u = jnp.diag(jnp.array([3.0, 0.5]))
      >>> tx = orthogonalize(cubic, steps=12)
      >>> tx.update(u, tx.init(u))[0].round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """

    rows: Rows
    norm_factor: float = 1.0
    eps: float = 1e-7


def _safer(rows: Rows, cushion: float = 1.01) -> Rows:
    """Coefficients for singular values up to `cushion`: s -> p(s / cushion)."""
    return tuple((a / cushion, b / cushion**3, c / cushion**5) for a, b, c in rows)


# Amsel et al., arXiv 2505.16932, implementation 1 (l = 1e-3, cushion 0.0241); the
# last row is the fixed point of the construction, always repeated.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)


TABLES = {
    # Jordan et al., "Muon", 2024
    "keller": Table(((3.4445, -4.7750, 2.0315),)),
    "polar_express": Table((*_safer(_POLAR_EXPRESS), (1.875, -1.25, 0.375)), 1.01),
    # the same construction for five steps, with the safety 1.02 folded in
    "speedrun": Table(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        1.02,
        1e-6,
    ),
    "dion": Table(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        )
    ),
}


MOST_STEPS = 1000  # a table is written out; five steps are usual


_REPEATS = ("keller", "polar_express")  # whose last row may be used again and again


def table_of(coefficients: Any, steps: int) -> Table:
    """The first `steps` rows of a table, given by name, as rows, or as a `Table`.

    Raises:
      ValueError: there is no such table, or it has too few rows.
    """
    if isinstance(coefficients, str) and coefficients not in TABLES:
        raise ValueError(
            f"orthogonalize: coefficients is {coefficients!r}. Choose one of: "
            f"{', '.join(TABLES)}, or give rows (a, b, c)."
        )
    if steps > MOST_STEPS:
        raise ValueError(f"orthogonalize: steps is {steps}. It must be at most {MOST_STEPS}.")
    named = isinstance(coefficients, str)
    table = TABLES[coefficients] if named else coefficients
    rows = table.rows if isinstance(table, Table) else table
    try:
        rows = tuple(tuple(row) for row in rows)
        triples = all(len(row) == 3 for row in rows)
    except TypeError:  # no rows at all
        triples = False
    if not triples:
        raise ValueError(
            f"orthogonalize: coefficients are {rows!r}. Every row must be a triple (a, b, c)."
        )
    table = table._replace(rows=rows) if isinstance(table, Table) else Table(rows)
    if len(rows) == 1 or (named and coefficients in _REPEATS):
        rows += rows[-1:] * (steps - len(rows))
    if len(rows) < steps:
        raise ValueError(
            f"orthogonalize: steps is {steps}, but the table has {len(rows)} rows. "
            "Ask for fewer steps or give more rows."
        )
    return table._replace(rows=rows[:steps])


@jax.named_scope("newton_schulz")
def orthogonalize_stack(q: jax.Array, table: Table, dtype: Any = None) -> jax.Array:
    """Orthogonalises a stack of wide matrices [n, rows <= columns, columns].

    Args:
      q: the matrices.
      table: coefficients of every step.
      dtype: of the products; None for that of q.
    """
    if q.size == 0:
        return q
    x = in_precision(q, dtype or q.dtype)
    norm = _norm(x.astype(q.dtype))
    divisor = cast(table.norm_factor, norm) * norm + cast(table.eps, norm)
    x = (x.astype(q.dtype) / cast(divisor, q)).astype(x.dtype)
    rows = jnp.stack([jnp.stack([cast(k, x) for k in row]) for row in table.rows])
    # A Gram matrix squares the singular values, which bfloat16 has no digits for.
    long = x.shape[2] >= 2 * x.shape[1] and jnp.finfo(x.dtype).bits >= 32
    return (_on_gram(x, rows) if long else _plain(x, rows)).astype(q.dtype)


def _norm(x: jax.Array) -> jax.Array:
    """The Frobenius norm of every matrix; squares of x over its maximum do not overflow."""
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    return largest * safe_sqrt(jnp.sum(abs_squared(divide(x, largest)), axis=(1, 2), keepdims=True))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _adjoint(x: jax.Array) -> jax.Array:
    return x.swapaxes(-1, -2).conj()


def _plain(x: jax.Array, rows: jax.Array) -> jax.Array:
    """X <- aX + (bA + cA²)X with A = XXᵀ (or XXᴴ), for every row of coefficients."""

    def step(x, row):
        a, b, c = row
        gram = _product(x, _adjoint(x))
        return a * x + _product(b * gram + c * _product(gram, gram), x), None

    return jax.lax.scan(step, x, rows)[0]


def _on_gram(x: jax.Array, rows: jax.Array, restart: int = 2) -> jax.Array:
    """The same map on the small side: Q <- PQ, G <- PGP with P = aI + bG + cG², X <- QX.

    Every step commutes with G, so two products with the long X are enough, one
    to make G and one at the end.  Rounding in G grows with each step, so it is
    made again from X after `restart` of them."""
    for chunk in (rows[:restart], rows[restart:]):
        if len(chunk):
            x = _product(_accumulated(_product(x, _adjoint(x)), chunk), x)
    return x


def _accumulated(gram: jax.Array, rows: jax.Array) -> jax.Array:
    """The product of all steps' P for a Gram matrix."""
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)

    def polynomial(gram: jax.Array, row: jax.Array) -> Any:
        a, b, c = row
        return a * eye + b * gram + c * _product(gram, gram)

    def step(carry, row):
        gram, q = carry
        p = polynomial(gram, row)
        return (_product(p, _product(gram, p)), _product(p, q)), None

    first: jax.Array = polynomial(gram, rows[0])
    if len(rows) == 1:
        return first
    gram = _product(first, _product(gram, first))
    (gram, q), _ = jax.lax.scan(step, (gram, first), rows[1:-1])
    return _product(polynomial(gram, rows[-1]), q)
