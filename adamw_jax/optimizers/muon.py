"""Muon: orthogonal steps for matrices, AdamW for everything else."""

import optax

from adamw_jax.core.combinators import chain
from adamw_jax.core.domains import Decay, Flag, LearningRate, NonNegative
from adamw_jax.core.routing import routed
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.optimizers.adam import adamw
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.nesterov import nesterov_trace
from adamw_jax.pieces.orthogonalize import Views, default_matrices, orthogonalize, scale_by_shape
from adamw_jax.pieces.scaling import scale_by_learning_rate
from adamw_jax.pieces.weight_decay import add_decoupled_weight_decay


@transformation
def muon(
    learning_rate: LearningRate,
    momentum: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    *,
    nesterov: Flag = True,
    scale: str = "keller",
    orthogonalizer: optax.GradientTransformation | None = None,
    matrices: Views | None = None,
    others: optax.GradientTransformation | None = None,
) -> Transformation:
    """W <- W - lr (s · orthogonal(g + μ b) + λW), b <- μ b + g, for hidden matrices.

    Embeddings, heads, norms, biases and vectors go to another optimizer; which
    leaf goes where is decided by name and shape (`default_matrices` holds the
    table) and listed by `routes(tx, params)`.

    Args:
      learning_rate: lr of the matrices, about 0.02 with scale "keller".
      momentum: μ, in [0, 1).
      weight_decay: decoupled λ of the matrices.
      nesterov: look ahead as above, or step along b alone.
      scale: s, from the shape of each matrix: see `scale_by_shape`.
      orthogonalizer: None for `orthogonalize()`, Keller's five steps.
      matrices: from path and leaf to False, or True or the `View` of a matrix;
        None for `default_matrices`.
      others: the optimizer of all other leaves; None for
        `adamw(3e-4, 0.9, 0.95, 1e-10)`.

    State: {"muon": ..., "adamw": ...}.

    Raises:
      ValueError: a leaf may be one matrix or several (three axes and an unknown
        name); or `matrices` finds none.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import muon, routes
      >>> params = {"up": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> routes(muon(0.02), params)
      {'up/bias': 'adamw', 'up/kernel': 'muon'}

    Reference: Jordan et al., "Muon", 2024; Liu et al., "Muon is Scalable for
    LLM Training", 2025 (arXiv 2502.16982).
    """
    views = matrices or default_matrices
    steps = chain(
        direction=nesterov_trace(momentum) if nesterov else scale_by_momentum(momentum, gain=1.0),
        orthogonalize=orthogonalizer or orthogonalize(views=views),
        scale=scale_by_shape(scale, views=views),
        weight_decay=add_decoupled_weight_decay(weight_decay),
        learning_rate=scale_by_learning_rate(learning_rate),
    )
    # A tree of vectors alone is no mistake; a predicate that finds no matrix is.
    optional = () if matrices else ("muon",)
    rest = others or adamw(3e-4, 0.9, 0.95, 1e-10)
    return routed((views,), optional, muon=steps, adamw=rest)
