"""SOAP: Adam in the eigenbasis of the gradient's second moment matrices."""

from typing import Any

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Count, Decay, LearningRate, NonNegative
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.core.wrappers import delay
from adamw_jax.pieces.bias_correction import root_bias_correction
from adamw_jax.pieces.eigenbasis import eigenbasis
from adamw_jax.pieces.moments import second_moment
from adamw_jax.pieces.rms import average
from adamw_jax.pieces.scaling import identity, root, scale_by_learning_rate
from adamw_jax.pieces.weight_decay import shrink_after


@transformation
def soap(
    learning_rate: LearningRate,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    b3: Decay | None = None,
    every: Count = 10,
    max_dim: Count = 10000,
) -> Transformation:
    """θ <- θ - lr Q (Qᵀ m̂ R / (√v + eps) · √c2) Rᵀ, v the average of (Qᵀ g R)².

    Q and R are eigenvectors of the averages of g gᵀ and gᵀ g.  The first update
    only finds them: parameters stay.  Decay follows the step, as in the
    authors' code.

    Args:
      learning_rate: lr [θ]; the authors' is 3e-3.
      b1: decay of m, the average of g.
      b2: decay of v.
      eps: added outside the root [L/θ].
      weight_decay: λ [1/θ].
      mask: True where to decay; None decays every leaf.
      b3: decay of the averages of g gᵀ; None for b2.
      every: updates from one renewal of the basis to the next.
      max_dim: longer axes are not rotated.

    Example:
      >>> from adamw_jax import soap
      >>> tx = soap(0.1)
      >>> abs(tx.update(0.2, tx.init(0.5), 0.5)[0].item())
      0.0

    Reference: Vyas et al., "SOAP", 2024, algorithms 3-4.
    """
    denominator = chain(
        moment=second_moment(b2), root=root(eps), correction=root_bias_correction(b2)
    )
    return chain(
        direction=precondition(
            delay(average(b1)),
            delay(denominator),
            basis=eigenbasis(b2 if b3 is None else b3, every=every, max_dim=max_dim),
        ),
        learning_rate=scale_by_learning_rate(learning_rate),
        weight_decay=shrink_after(weight_decay, learning_rate, mask),
        start=delay(identity()),
    )
