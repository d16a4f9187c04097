"""Without a schedule, or without a learning rate: Schedule-Free AdamW and Prodigy."""

from typing import Any

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Decay, Finite, LearningRate, NonNegative, OpenFraction, Positive
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.bias_correction import bias_correction
from adamw_jax.pieces.moments import scale_by_momentum, second_moment
from adamw_jax.pieces.prodigy import by_distance, distance_root
from adamw_jax.pieces.rms import scale_by_rms
from adamw_jax.pieces.schedule_free import schedule_free
from adamw_jax.pieces.weight_decay import descend


@transformation
def schedule_free_adamw(
    learning_rate: LearningRate,
    b1: OpenFraction = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    power: Finite = 0.0,
) -> Transformation:
    """AdamW without momentum on z, trained at y, evaluated at the average x of z.

    Evaluate with `eval_params(tx, state, params)`.  The decay reads y.  For a
    warm-up give `ahead(linear_warmup(lr, steps))`, whose first value is not 0.

    Args:
      learning_rate: lr [θ]; the authors' is 2.5e-3.
      b1: how close y is to the average, in (0, 1); takes the place of momentum.
      b2, eps, weight_decay, mask: as in `adamw`.
      power: 0 weighs all steps alike, larger values the late ones more.

    Example:
      >>> from adamw_jax import eval_params, schedule_free_adamw
      >>> tx = schedule_free_adamw(0.1)
      >>> update, state = tx.update(0.2, tx.init(0.5), 0.5)
      >>> round(eval_params(tx, state, 0.5 + update).item(), 6)
      0.4

    Reference: Defazio et al., "The Road Less Scheduled", 2024, algorithm 1, as
    the authors' code runs it.
    """
    quotient = scale_by_rms(b2, eps, correction=bias_correction(b2))
    step = descend(quotient, learning_rate, weight_decay, mask)
    return schedule_free(step, learning_rate, b1, power=power)


@transformation
def prodigy(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    d0: Positive = 1e-6,
    growth: Positive = 1.0,
) -> Transformation:
    """AdamW that finds its learning rate: steps of lr · d, d the estimated distance to go.

    Args:
      learning_rate: a factor on d, 1.0 in the paper, or a schedule.
      b1, b2, eps, weight_decay, mask: as in `adamw`.
      b3: decay of the sums that estimate d; None for √b2.
      d0: the first estimate [θ].
      growth: multiplies every new estimate.

    Example:
      >>> from adamw_jax import prodigy
      >>> tx = prodigy(1.0, d0=0.01)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.031623

    Reference: Mishchenko & Defazio, "Prodigy", 2023, algorithm 4.
    """
    denominator = chain(moment=second_moment(b2), root=distance_root(eps))
    direction = precondition(scale_by_momentum(b1), denominator)
    step = descend(direction, learning_rate, weight_decay, mask)
    memory = b2**0.5 if b3 is None else b3
    return by_distance(step, learning_rate, memory, d0=d0, growth=growth)
