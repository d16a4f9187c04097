"""Adam with one part changed."""

from typing import Any

import jax

from adamw_jax.core.combinators import chain, fork, join, merge, pick, precondition
from adamw_jax.core.domains import Decay, Finite, LearningRate, NonNegative
from adamw_jax.core.numerics import add, divide
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.optimizers.adam import scale_by_adam
from adamw_jax.pieces.bias_correction import bias_correction, rectify
from adamw_jax.pieces.cautious import cautious
from adamw_jax.pieces.moments import running_max, scale_by_momentum, second_moment
from adamw_jax.pieces.nesterov import nesterov_average
from adamw_jax.pieces.rms import average, rms, scale_by_rms, update_rms
from adamw_jax.pieces.scaling import identity, root, scale, scale_by_learning_rate
from adamw_jax.pieces.weight_decay import add_decoupled_weight_decay, descend


@transformation
def laprop(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """Divides first, averages after: θ <- θ - lr (m̂ + λθ), m the average of g / (√v̂ + eps).

    Args:
      learning_rate: lr [θ]; the authors' is 4e-4.
      b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import laprop
      >>> tx = laprop(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Ziyin et al., "LaProp", 2020, algorithm 1.
    """
    quotient = scale_by_rms(b2, eps, correction=bias_correction(b2))
    return descend(quotient, learning_rate, weight_decay, mask, after=average(b1))


@transformation
def amsgrad(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """Adam whose v never falls: √(max over time of v / (1 - b2^t)) + eps below the line.

    The maximum is taken before the correction, as PyTorch does.  The paper has
    no correction (swap both for `identity()`); Optax takes the maximum after it
    (exchange the slots `maximum` and `correction`).

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import amsgrad
      >>> tx = amsgrad(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Reddi et al., "On the Convergence of Adam and Beyond", 2018,
    algorithm 2.
    """
    denominator = chain(
        moment=second_moment(b2),
        maximum=running_max(),
        correction=bias_correction(b2),
        root=root(eps),
    )
    return descend(precondition(average(b1), denominator), learning_rate, weight_decay, mask)


@transformation
def nadamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """AdamW with Nesterov's look-ahead in the numerator.

    The momentum is constant, as in Optax; for the paper's schedule, PyTorch's
    form, swap `direction.numerator` for `warming_nesterov(b1)`.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import nadamw
      >>> tx = nadamw(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.147368

    Reference: Dozat, "Incorporating Nesterov Momentum into Adam", 2016,
    algorithm 2.
    """
    direction = precondition(nesterov_average(b1), rms(b2, eps))
    return descend(direction, learning_rate, weight_decay, mask)


@transformation
def radam(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """m̂ alone until the variance of Adam's quotient is finite, then the quotient, rectified.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import radam
      >>> tx = radam(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.02

    Reference: Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond", 2020, algorithm 2.
    """
    denominator = chain(
        moment=second_moment(b2),
        correction=bias_correction(b2),
        root=root(eps),
        rectify=rectify(b2),
    )
    return descend(precondition(average(b1), denominator), learning_rate, weight_decay, mask)


def deviation(gradient: jax.Array, momentum: jax.Array) -> jax.Array:
    """g - m.

    Example:
      >>> from adamw_jax import deviation, identity, join, scale_by_momentum
      >>> tx = join(deviation, gradient=identity(), momentum=scale_by_momentum(0.5))
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      2.0
    """
    return gradient - momentum


@transformation
def adabelief(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    eps_root: NonNegative = 1e-16,
) -> Transformation:
    """Adam with the average of (g - m)² in place of that of g².

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.
      eps_root: added to that average at every update, and kept in it [L²/θ²].

    Example:
      >>> from adamw_jax import adabelief
      >>> tx = adabelief(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.111111

    Reference: Zhuang et al., "AdaBelief", 2020, algorithm 2.
    """
    denominator = chain(
        deviation=merge(deviation),
        moment=second_moment(b2, eps_root=eps_root),
        correction=bias_correction(b2),
        root=root(eps),
    )
    direction = chain(
        fork=fork(gradient=identity(), momentum=scale_by_momentum(b1)),
        quotient=precondition(chain(pick("momentum"), bias_correction(b1)), denominator),
    )
    return descend(direction, learning_rate, weight_decay, mask)


@transformation
def ademamix(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    alpha: Finite = 5.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """θ <- θ - lr ((m̂ + α m_slow) / (√v̂ + eps) + λθ), m_slow with the long decay b3.

    m_slow is not bias-corrected.  To warm α and b3 up, wrap the optimizer in
    `scheduled`, with `path` one of the parts of `direction.numerator.slow`.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.
      b3: decay of the slow average.
      alpha: its weight; 8 in the paper's largest runs.

    Example:
      >>> from adamw_jax import ademamix
      >>> tx = ademamix(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.10005

    Reference: Pagliardini et al., "The AdEMAMix Optimizer", 2024, algorithm 1.
    """
    slow = chain(average=scale_by_momentum(b3), weight=scale(alpha))
    numerator = join(add, fast=average(b1), slow=slow)
    return descend(precondition(numerator, rms(b2, eps)), learning_rate, weight_decay, mask)


@transformation
def cautious_adamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """AdamW without the coordinates in which its direction opposes the gradient.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import cautious_adamw
      >>> tx = cautious_adamw(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Liang et al., "Cautious Optimizers", 2024, algorithm 1.
    """
    branches = fork(update=scale_by_adam(b1, b2, eps), gradient=identity())
    return descend(branches, learning_rate, weight_decay, mask, after=cautious())


@transformation
def stable_adamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transformation:
    """AdamW with lr / max(1, RMS(g / √v̂)), per leaf, in place of lr.

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: as in `adamw`.

    Example:
      >>> from adamw_jax import stable_adamw
      >>> tx = stable_adamw(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.1

    Reference: Wortsman et al., "Stable and low-precision training for
    large-scale vision-language models", 2023, algorithm 2.
    """
    statistics = fork(
        gradient=identity(),
        momentum=average(b1),
        second_moment=chain(moment=second_moment(b2), correction=bias_correction(b2)),
    )
    adam = precondition(pick("momentum"), chain(pick("second_moment"), root(eps)))
    decay = add_decoupled_weight_decay(weight_decay, mask)
    return chain(
        statistics=statistics,
        direction=join(
            divide, update=chain(quotient=adam, weight_decay=decay), rms=update_rms(eps)
        ),
        learning_rate=scale_by_learning_rate(learning_rate),
    )
