"""Weight decay, in its three kinds.

* `add_l2_gradient` before the moments: the gradient of λ/2 ‖θ‖².
* `add_decoupled_weight_decay` after the quotient, before the learning rate:
  the step shrinks θ by lr·λ.
* `shrink` after the learning rate: the step shrinks θ by λ alone, times a
  schedule without the peak learning rate in it.

For plain SGD the first two coincide; nowhere else.  All read θ as it was
before the update.
"""

from typing import Any

import optax

from adamw_jax.core.combinators import chain
from adamw_jax.core.domains import LearningRate, NonNegative
from adamw_jax.core.flow import AFormula
from adamw_jax.core.routing import masked
from adamw_jax.core.transformation import Transformation, elementwise
from adamw_jax.pieces.scaling import scale_by_learning_rate


@elementwise(traits=("decoupled_decay",))
def add_decoupled_weight_decay(
    weight_decay: NonNegative, mask: Any = None
) -> AFormula | Transformation:
    """u -> u + weight_decay * θ, to stand between the quotient and the learning rate.

    Args:
      weight_decay: λ [1/θ once multiplied by the learning rate].
      mask: True where to decay: a tree of bools, or a function from parameters
        to one; None decays every leaf.

    Raises:
      ValueError: `update` got no parameters, or the mask does not fit them.

    Example:
      >>> from adamw_jax import add_decoupled_weight_decay
      >>> tx = add_decoupled_weight_decay(0.5)
      >>> tx.update(1.0, tx.init(4.0), 4.0)[0].item()
      3.0

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization",
    2019, algorithm 2.
    """
    if mask is not None:
        return masked(add_decoupled_weight_decay(weight_decay), mask)
    return lambda u, theta: u + weight_decay * theta


@elementwise(traits=("l2",))
def add_l2_gradient(weight_decay: NonNegative, mask: Any = None) -> AFormula | Transformation:
    """g -> g + weight_decay * θ, to stand before every moment.

    Args:
      weight_decay: λ of the penalty λ/2 ‖θ‖² in the loss [L/θ²].
      mask: as in `add_decoupled_weight_decay`.

    Raises:
      ValueError: `update` got no parameters, or the mask does not fit them.

    Example:
      >>> from adamw_jax import add_l2_gradient
      >>> tx = add_l2_gradient(0.5)
      >>> tx.update(1.0, tx.init(4.0), 4.0)[0].item()
      3.0

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization",
    2019, algorithm 2 (the coupled line).
    """
    if mask is not None:
        return masked(add_l2_gradient(weight_decay), mask)
    return lambda u, theta: u + weight_decay * theta


def _factor(weight_decay: Any, schedule: Any) -> Any:
    """What a timed decay multiplies θ by at this update."""
    return weight_decay if schedule is None else schedule * weight_decay


@elementwise(traits=("independent",))
def shrink(
    weight_decay: NonNegative, schedule: LearningRate | None = None, mask: Any = None
) -> AFormula | Transformation:
    """u -> u - schedule(t) * weight_decay * θ, to stand after the learning rate.

    Args:
      weight_decay: λ, the fraction of θ that one step takes off (no unit).
      schedule: multiplier as a number or a function of the number of earlier
        updates, 1 at its peak; None for 1.
      mask: as in `add_decoupled_weight_decay`.

    State: `count`, the number of updates so far.

    Raises:
      ValueError: `update` got no parameters, or the mask does not fit them.

    Example:
      >>> from adamw_jax import chain, scale_by_learning_rate, shrink
      >>> tx = chain(scale_by_learning_rate(0.5), shrink(0.25))
      >>> tx.update(1.0, tx.init(4.0), 4.0)[0].item()
      -1.5

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization",
    2019, algorithm 2, line 12.
    """
    if mask is not None:
        return masked(shrink(weight_decay, schedule), mask)

    def formula(u, theta):
        factor = _factor(weight_decay, schedule)
        return u - factor * theta

    return formula


@elementwise
def shrink_after(
    weight_decay: NonNegative, schedule: LearningRate | None = None, mask: Any = None
) -> AFormula | Transformation:
    """u -> u - schedule(t) * weight_decay * (θ + u): `shrink` of the parameters after the step.

    Args:
      weight_decay, schedule, mask: as in `shrink`; give the learning rate for
        `schedule` to couple the two.

    State: `count`, the number of updates so far.

    Raises:
      ValueError: `update` got no parameters, or the mask does not fit them.

    Example:
      >>> from adamw_jax import chain, scale_by_learning_rate, shrink_after
      >>> tx = chain(scale_by_learning_rate(0.5), shrink_after(0.25))
      >>> tx.update(4.0, tx.init(4.0), 4.0)[0].item()  # to 4 - 2, and a quarter of that
      -2.5

    Reference: the authors' code of Vyas et al., "SOAP", 2024.
    """
    if mask is not None:
        return masked(shrink_after(weight_decay, schedule), mask)

    def formula(u, theta):
        factor = _factor(weight_decay, schedule)
        return u - factor * (theta + u)

    return formula


@elementwise
def proximal_decay(
    weight_decay: NonNegative, schedule: LearningRate | None = None, mask: Any = None
) -> AFormula | Transformation:
    """u -> (u - k θ) / (1 + k), k = schedule(t) * weight_decay: the step of an implicit decay.

    With θ + u the parameters after the step, they become (θ + u) / (1 + k).

    Args:
      weight_decay, schedule, mask: as in `shrink`; give the learning rate for
        `schedule` to couple the two.

    State: `count`, the number of updates so far.

    Raises:
      ValueError: `update` got no parameters, or the mask does not fit them.

    Example:
      >>> from adamw_jax import chain, proximal_decay, scale_by_learning_rate
      >>> tx = chain(scale_by_learning_rate(0.5), proximal_decay(1.0))
      >>> tx.update(4.0, tx.init(4.0), 4.0)[0].item()  # to (4 - 2) / 2
      -3.0

    Reference: Xie et al., "Adan", 2022, algorithm 1.
    """
    if mask is not None:
        return masked(proximal_decay(weight_decay, schedule), mask)

    def formula(u, theta):
        factor = _factor(weight_decay, schedule)
        return (u - factor * theta) / (1 + factor)

    return formula


def descend(
    direction: optax.GradientTransformation,
    learning_rate: LearningRate,
    weight_decay: NonNegative,
    mask: Any,
    **after: optax.GradientTransformation,
) -> Transformation:
    """θ <- θ - lr (after(direction) + λθ): how most optimizers end."""
    return chain(
        direction=direction,
        **after,
        weight_decay=add_decoupled_weight_decay(weight_decay, mask),
        learning_rate=scale_by_learning_rate(learning_rate),
    )
