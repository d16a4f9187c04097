"""Quotients by a root mean square: Adam's two statistics, and the quotient of them."""

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Decay, NonNegative
from adamw_jax.core.numerics import divide, root_mean_square, safe_sqrt
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.core.trees import branches_of, cast
from adamw_jax.pieces.bias_correction import bias_correction
from adamw_jax.pieces.moments import scale_by_momentum, second_moment
from adamw_jax.pieces.scaling import identity, root


@transformation(
    leafwise=True,
    consumes="fork",
    equation="maximum(1, rms(gradient / maximum(sqrt(second_moment), eps)))",
    traits=("first", "scale_invariant", "positive"),
)
def update_rms(eps: NonNegative = 1e-8) -> optax.GradientTransformation:
    """{gradient, second_moment} -> max(1, RMS(g / max(√v, eps))), one number a leaf.

    Above 1 when the gradient is larger than its history says.

    Args:
      eps: least value of √v [L/θ].

    Raises:
      KeyError: what it receives is no fork with both branches.

    Example:
      >>> from adamw_jax import chain, fork, identity, square, update_rms
      >>> tx = chain(fork(gradient=identity(), second_moment=square()), update_rms())
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      1.0

    Reference: Wortsman et al., "Stable and low-precision training for
    large-scale vision-language models", 2023, algorithm 2.
    """

    def leaf(g, v):
        return jnp.maximum(
            1, root_mean_square(divide(g, jnp.maximum(safe_sqrt(v), cast(eps, v))))
        ).astype(g.dtype)

    branches = lambda fork: branches_of("update_rms", fork, "gradient", "second_moment")
    return optax.stateless(lambda fork, params: jax.tree.map(leaf, *branches(fork)))


@transformation
def average(decay: Decay) -> Transformation:
    """m̂: the bias-corrected average of g.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import average
      >>> tx = average(0.5)
      >>> first, state = tx.update(3.0, tx.init(0.0))
      >>> second, state = tx.update(6.0, state)
      >>> first.item(), second.item()
      (3.0, 5.0)

    Reference: Kingma & Ba, "Adam", 2015, algorithm 1.
    """
    return chain(scale_by_momentum(decay), bias_correction(decay))


@transformation
def rms(decay: Decay, eps: NonNegative = 1e-8) -> Transformation:
    """√v̂ + eps: the root of the bias-corrected average of g².

    Args:
      decay: in [0, 1).
      eps: added outside the root [L/θ].

    Example:
      >>> from adamw_jax import rms
      >>> tx = rms(0.75, eps=1.0)
      >>> round(tx.update(-3.0, tx.init(0.0))[0].item(), 4)
      4.0

    Reference: Kingma & Ba, "Adam", 2015, algorithm 1.
    """
    return chain(moment=second_moment(decay), correction=bias_correction(decay), root=root(eps))


@transformation
def scale_by_rms(
    decay: Decay,
    eps: NonNegative = 1e-8,
    *,
    numerator: optax.GradientTransformation | None = None,
    correction: optax.GradientTransformation | None = None,
) -> Transformation:
    """g -> numerator(g) / (√correction(v) + eps), v the average of g².

    Bare it is RMSProp with eps outside the root; with an average for numerator
    and both averages corrected it is Adam's direction.

    Args:
      decay: decay of v, in [0, 1).
      eps: added outside the root [L/θ].
      numerator: what is divided; None for g itself.
      correction: applied to v under the root; None for nothing.

    State: {"numerator": ..., "denominator": {"moment", "correction", "root"}}.

    Example:
      >>> from adamw_jax import scale_by_rms
      >>> tx = scale_by_rms(0.75, eps=0.0)
      >>> tx.update(-4.0, tx.init(0.0))[0].item()
      -2.0

    Reference: Hinton, Srivastava & Swersky, lecture 6e, 2012; Kingma & Ba,
    "Adam", 2015, algorithm 1.
    """
    return precondition(
        numerator or identity(),
        chain(
            moment=second_moment(decay),
            correction=correction or identity(),
            root=root(eps),
        ),
    )
