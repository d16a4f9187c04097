"""Signs of averages: Signum and Lion."""

from typing import Any

from adamw_jax.core.combinators import interpolate
from adamw_jax.core.domains import Decay, LearningRate, NonNegative
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.scaling import sign
from adamw_jax.pieces.weight_decay import descend


@transformation
def signum(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """θ <- θ - lr (sign(m) + λθ), m the average of g.

    Args:
      learning_rate: lr [θ], a number, array or schedule.
      b1: decay of m, in [0, 1).
      weight_decay: decoupled λ [1/θ].
      mask: True where to decay; None decays every leaf.

    Example:
      >>> from adamw_jax import signum
      >>> tx = signum(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Bernstein et al., "signSGD", 2018, algorithm 2.
    """
    return descend(scale_by_momentum(b1), learning_rate, weight_decay, mask, after=sign())


@transformation
def lion(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    weight_decay: NonNegative = 1e-3,
    mask: Any = None,
) -> Transformation:
    """θ <- θ - lr (sign(b1 m + (1 - b1) g) + λθ);  then m <- b2 m + (1 - b2) g.

    The direction mixes the gradient with the average from before this update;
    with b1 = b2 it is Signum.

    Args:
      learning_rate: lr [θ], 3 to 10 times smaller than AdamW's.
      b1: share of the average in the direction.
      b2: decay of the average; 0.98 with b1 = 0.95 for language models.
      weight_decay: decoupled λ [1/θ], 3 to 10 times larger than AdamW's.
      mask: True where to decay; None decays every leaf.

    Example:
      >>> from adamw_jax import lion
      >>> tx = lion(0.1, weight_decay=0.5)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.125

    Reference: Chen et al., "Symbolic Discovery of Optimization Algorithms",
    2023, algorithm 2.
    """
    direction = interpolate(b1, scale_by_momentum(b2, read="before"))
    return descend(direction, learning_rate, weight_decay, mask, after=sign())
