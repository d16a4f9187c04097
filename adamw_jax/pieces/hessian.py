"""Curvature: estimates of the diagonal of the Hessian, and their average.

An estimator is a piece that ignores the gradient and returns an estimate of
the diagonal at the current parameters, drawn again at every call.  It needs the
loss (or the logits) as a function, which `update` takes as an extra argument.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Count, Decay, Whole
from adamw_jax.core.numerics import Counter, accumulate, count_up, zeros
from adamw_jax.core.transformation import expect_parts, transformation
from adamw_jax.core.trees import cast
from adamw_jax.core.update import init_part, update_part


class CurvatureState(NamedTuple):
    count: Counter
    curvature: optax.Updates
    estimator: Any


class EstimatorState(NamedTuple):
    key: jax.Array


def _curvature(arguments: Mapping[str, Any]) -> str:
    """h, as it is after or was before the estimate came in."""
    step = "if (t - 1) % every == 0: h = decay * h + (1 - decay) * estimator(u)"
    return f"{step}\nh" if arguments["refresh"] == "before" else f"h_old = h\n{step}\nh_old"


@transformation(equation=_curvature, traits=("estimate", "average"))
def curvature(
    estimator: optax.GradientTransformation,
    decay: Decay,
    *,
    every: Count = 10,
    refresh: str = "before",
) -> optax.GradientTransformation:
    """h <- decay * h + (1 - decay) * estimate at every k-th update, passes h on.

    The estimator runs at updates 1, 1 + k, 1 + 2k, ... and costs nothing in
    between: it stands inside a `lax.cond`.

    Args:
      estimator: a transformation that returns diagonal curvature.
      decay: weight of the old value, in [0, 1).
      every: k, the number of updates from one estimate to the next.
      refresh: pass on h as it is after the estimate was taken in (refreshed
        "before" use, as in the paper) or as it was (refreshed "after" use).

    State: `curvature`, like the parameters [L/θ²], begun at 0 and not
    corrected for that; `count`; `estimator`, the estimator's own state.

    Example:
      >>> from adamw_jax import curvature, identity
      >>> tx = curvature(identity(), 0.5, every=2)
      >>> first, state = tx.update(4.0, tx.init(0.0))
      >>> second, state = tx.update(4.0, state)
      >>> first.item(), second.item()
      (2.0, 2.0)

    Reference: Liu et al., "Sophia", 2023, algorithm 3.
    """
    expect_parts("curvature", {"estimator": estimator})
    if refresh not in ("before", "after"):
        raise ValueError(f'curvature: refresh is {refresh!r}. It must be "before" or "after".')

    def init(params):
        return CurvatureState(jnp.zeros((), jnp.int32), zeros(params), init_part(estimator, params))

    def update(updates, state, params=None, **extra):
        def renew(h, own):
            estimate, own = update_part(estimator, updates, own, params, extra)

            def step(new, old):
                b = cast(decay, new)
                return b * old + (1 - b) * new

            return accumulate("curvature", step, estimate, h)[1], own

        due = state.count % every == 0
        keep = lambda h, own: (h, own)
        h, own = jax.lax.cond(due, renew, keep, state.curvature, state.estimator)
        seen = h if refresh == "before" else state.curvature
        return seen, CurvatureState(count_up(state.count), h, own)

    return optax.GradientTransformationExtraArgs(init, update)


def _required(name: str, argument: str, call: str, extra: Mapping[str, Any], params: Any) -> Any:
    function = extra.get(argument)
    if params is None or not callable(function):
        raise ValueError(
            f"{name}: got {'no parameters' if params is None else f'no {argument}'}. "
            f"Call update(grads, state, params, {argument}=lambda params: {call})."
        )
    return function


def _estimator(seed: int, estimate: Callable[..., Any]) -> optax.GradientTransformation:
    """The piece that calls `estimate(key, params, extra)` with a fresh key each time."""

    def init(params):
        return EstimatorState(jax.random.PRNGKey(seed))

    def update(updates, state, params=None, **extra):
        key, own = jax.random.split(state.key)
        return estimate(own, params, extra), EstimatorState(key)

    return optax.GradientTransformationExtraArgs(init, update)


_DRAWS = {"gaussian": jax.random.normal, "rademacher": jax.random.rademacher}


@transformation(equation="hutchinson(theta)", traits=("estimate",))
def hutchinson(*, seed: Whole = 0, distribution: str = "gaussian") -> optax.GradientTransformation:
    """z ⊙ (H z), an unbiased estimate of the diagonal of the Hessian H.

    One Hessian-vector product, by differentiating forward through the
    gradient; H is never formed.  `update` takes `obj_fn`, a function from
    parameters to the scalar loss on the current batch.

    Args:
      seed: where the random vectors begin.
      distribution: of z, "gaussian" (the paper's) or "rademacher" (±1, exact
        for a diagonal Hessian).

    State: `key`, the random key of the next estimate.

    Raises:
      ValueError: `update` got no `obj_fn` or no parameters.

    Example:
      >>> from adamw_jax import hutchinson
      >>> tx = hutchinson(distribution="rademacher")
      >>> tx.update(6.0, tx.init(1.0), 1.0, obj_fn=lambda x: 3 * x**2)[0].item()
      6.0

    Reference: Hutchinson 1989; Liu et al., "Sophia", 2023, algorithm 1.
    """
    if distribution not in _DRAWS:
        raise ValueError(
            f"hutchinson: distribution is {distribution!r}. It must be one of: {', '.join(_DRAWS)}."
        )

    def estimate(key, params, extra):
        loss = _required("hutchinson", "obj_fn", "loss", extra, params)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, max(len(leaves), 1))
        draw = _DRAWS[distribution]
        z = [draw(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=False)]
        product = jax.jvp(jax.grad(loss), (params,), (treedef.unflatten(z),))[1]
        return jax.tree.map(jnp.multiply, treedef.unflatten(z), product)

    return _estimator(seed, estimate)


@transformation(equation="gauss_newton_bartlett(theta)", traits=("estimate",))
def gauss_newton_bartlett(*, seed: Whole = 0) -> optax.GradientTransformation:
    """B ĝ², where ĝ is the gradient of the mean loss on labels drawn from the model.

    Labels are drawn from softmax(logits), one for each of the B rows of
    logits (tokens, not sequences), without gradient through the draw.
    `update` takes `logits_fn`, a function from parameters to logits
    [..., classes] on the current batch.

    Args:
      seed: where the random labels begin.

    State: `key`, the random key of the next estimate.

    Raises:
      ValueError: `update` got no `logits_fn` or no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import gauss_newton_bartlett
      >>> tx, w = gauss_newton_bartlett(), jnp.zeros(2)
      >>> logits_fn = lambda w: jnp.tile(w, (8, 1))  # eight rows
      >>> estimate, state = tx.update(w, tx.init(w), w, logits_fn=logits_fn)
      >>> bool((estimate >= 0).all())
      True

    Reference: Liu et al., "Sophia", 2023, algorithm 2.
    """

    def estimate(key, params, extra):
        logits_fn = _required("gauss_newton_bartlett", "logits_fn", "logits", extra, params)

        def sampled_loss(params):
            logits = logits_fn(params)
            labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            rows = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(rows, labels[..., None], axis=-1)
            return -jnp.mean(chosen), labels.size

        gradient, rows = jax.grad(sampled_loss, has_aux=True)(params)
        return jax.tree.map(lambda g: cast(rows, g) * g * g, gradient)

    return _estimator(seed, estimate)
