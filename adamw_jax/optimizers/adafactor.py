"""Less memory: Adafactor and Adam-mini."""

from typing import Any

from adamw_jax.core.combinators import chain, precondition
from adamw_jax.core.domains import Decay, LearningRate, NonNegative, Positive
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.bias_correction import bias_correction
from adamw_jax.pieces.clipping import clip_by_rms
from adamw_jax.pieces.factored_moments import Blocks, block_second_moment, factored_second_moment
from adamw_jax.pieces.rms import average
from adamw_jax.pieces.scaling import identity, root, scale_by_parameter_rms
from adamw_jax.pieces.weight_decay import descend
from adamw_jax.schedules import capped_inverse_sqrt


@transformation
def adafactor(
    learning_rate: LearningRate,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    power: Positive = 0.8,
    eps_root: NonNegative = 1e-30,
    minimum_scale: NonNegative = 1e-3,
    threshold: Positive = 1.0,
) -> Transformation:
    """Steps relative to RMS(θ), from a second moment kept as rows and columns.

    θ <- θ - ρ max(minimum, RMS(θ)) u / max(1, RMS(u)) - ρ λθ,  u = g / √v

    Args:
      learning_rate: a number or array caps ρ = min(learning_rate, 1/√t), the
        paper with 1e-2; a schedule is ρ itself.
      weight_decay: decoupled λ [1/θ].
      mask: True where to decay; None decays every leaf.
      power: the decay of v is 1 - t^(-power).
      eps_root: added to g² [L²/θ²].
      minimum_scale: least RMS(θ) a step is relative to [θ].
      threshold: largest RMS of u.

    Example:
      >>> from adamw_jax import adafactor
      >>> tx = adafactor(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.05

    Reference: Shazeer & Stern, "Adafactor", 2018, algorithms 4-6.
    """
    rate = learning_rate if callable(learning_rate) else capped_inverse_sqrt(learning_rate)
    moment = factored_second_moment(power, eps_root)
    return descend(
        precondition(identity(), chain(moment=moment, root=root())),
        rate,
        weight_decay,
        mask,
        clip=clip_by_rms(threshold),
        after=scale_by_parameter_rms(minimum_scale),
    )


@transformation
def adam_mini(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    blocks: Blocks | None = None,
) -> Transformation:
    """AdamW with one second moment for each neuron instead of each weight.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.
      blocks: from path and leaf to the axes that share one v; None for
        `default_blocks`, which tells embeddings, heads and norms by name.

    Example:
      >>> from adamw_jax import adam_mini
      >>> tx = adam_mini(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Zhang et al., "Adam-mini", 2024, algorithm 1.
    """
    denominator = chain(
        moment=block_second_moment(b2, blocks),
        correction=bias_correction(b2),
        root=root(eps),
    )
    return descend(precondition(average(b1), denominator), learning_rate, weight_decay, mask)
