"""From SGD to Nesterov: the gradient, averaged or accelerated."""

from typing import Any

import jax
import optax

from adamw_jax.core.combinators import chain
from adamw_jax.core.domains import Decay, LearningRate
from adamw_jax.core.transformation import Transformation, transformation
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.nesterov import nesterov_trace
from adamw_jax.pieces.scaling import identity, scale_by_learning_rate


@transformation
def sgd(learning_rate: LearningRate) -> Transformation:
    """θ <- θ - lr g.

    Args:
      learning_rate: lr [θ²/L], a number, array or schedule.

    Example:
      >>> from adamw_jax import sgd
      >>> tx = sgd(0.1)
      >>> round(tx.update(2.0, tx.init(0.5))[0].item(), 6)
      -0.2

    Reference: Robbins & Monro, 1951.
    """
    return chain(direction=identity(), learning_rate=scale_by_learning_rate(learning_rate))


@transformation
def momentum(learning_rate: LearningRate, decay: Decay = 0.9) -> Transformation:
    """m <- decay m + (1 - decay) g;  θ <- θ - lr m.

    The average is not bias-corrected.  With α = lr (1 - decay) and β = decay
    this is `heavy_ball(α, β)`.

    Args:
      learning_rate: lr [θ²/L], a number, array or schedule.
      decay: weight of the old average, in [0, 1).

    Example:
      >>> from adamw_jax import momentum
      >>> tx = momentum(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.002

    Reference: Polyak, 1964, in averaged form.
    """
    return chain(
        direction=scale_by_momentum(decay),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


@transformation
def heavy_ball(learning_rate: LearningRate, momentum: Decay = 0.9) -> Transformation:
    """b <- momentum b + g;  θ <- θ - lr b.

    At a constant rate: θ[t] = θ[t-1] - lr g[t] + momentum (θ[t-1] - θ[t-2]).

    Args:
      learning_rate: α [θ²/L], a number, array or schedule.
      momentum: β, in [0, 1).

    Example:
      >>> from adamw_jax import heavy_ball
      >>> tx = heavy_ball(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.02

    Reference: Polyak, "Some methods of speeding up the convergence of
    iteration methods", 1964.
    """
    return chain(
        direction=scale_by_momentum(momentum, gain=1.0),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


@transformation
def nesterov(learning_rate: LearningRate, momentum: Decay = 0.9) -> Transformation:
    """b <- momentum b + g;  θ <- θ - lr (g + momentum b).

    The parameters this optimizer stores are the look-ahead points at which
    Nesterov's method takes its gradients; `lookahead_params` gives back the
    iterates.  The state holds momentum·b.

    Args:
      learning_rate: lr [θ²/L], a number, array or schedule.
      momentum: in [0, 1).

    Example:
      >>> from adamw_jax import nesterov
      >>> tx = nesterov(0.1)
      >>> round(tx.update(0.2, tx.init(0.5), 0.5)[0].item(), 6)
      -0.038

    Reference: Nesterov, 1983; Sutskever et al., "On the importance of
    initialization and momentum in deep learning", 2013, equations 3-4.
    """
    return chain(
        direction=nesterov_trace(momentum),
        learning_rate=scale_by_learning_rate(learning_rate),
    )


def lookahead_point(params: optax.Params, state: Any) -> optax.Params:
    """Where Nesterov's method takes its next gradient: y = θ - momentum · velocity.

    For `nesterov` these are the stored parameters themselves.

    Args:
      params: the parameters that `nesterov` updates.
      state: its state.

    Example:
      >>> from adamw_jax import lookahead_point, nesterov
      >>> tx = nesterov(0.5, 0.5)
      >>> update, state = tx.update(1.0, tx.init(2.0), 2.0)
      >>> float(lookahead_point(2.0 + update, state))
      1.25
    """
    del state
    return params


def lookahead_params(params: optax.Params, state: Any) -> optax.Params:
    """Nesterov's iterate θ = y + lr · momentum · b, from the look-ahead point y.

    Args:
      params: the parameters that `nesterov` updates, which are look-ahead points.
      state: its state, which holds momentum·b and the learning rate last applied.

    Returns:
      The iterate, exact at a constant learning rate.

    Example:
      >>> import optax
      >>> from adamw_jax import lookahead_params, nesterov
      >>> tx = nesterov(0.1)
      >>> update, state = tx.update(1.0, tx.init(0.5))
      >>> round(lookahead_params(0.5 + update, state).item(), 6)  # 0.5 - 0.1
      0.4
    """
    velocity = state["direction"]["momentum"].momentum
    rate = state["learning_rate"].learning_rate
    displacement = jax.tree.map(lambda b: rate.astype(b.dtype) * b, velocity)
    return optax.apply_updates(params, displacement)
