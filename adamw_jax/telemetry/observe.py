"""Observing: the sizes and directions of an optimizer's steps, measured from outside.

What is measured is kept in the state, see `adamw_jax.telemetry`.
"""

import ast
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.domains import Count
from adamw_jax.core.flow import Flow, opened, slots
from adamw_jax.core.numerics import abs_squared, count_up, divide, safe_sqrt
from adamw_jax.core.routing import routes, ways
from adamw_jax.core.saying import understood
from adamw_jax.core.slots import parts, state_of
from adamw_jax.core.transformation import Transformation, expect_parts, transformation
from adamw_jax.core.trees import cast
from adamw_jax.core.update import init_part, update_part
from adamw_jax.telemetry.metrics import (
    ObserveState,
    Readings,
    is_always,
    learning_rates,
    scalar,
    when_due,
)


def _branches(tx: Transformation, state: Any, params: Any, name: str = "") -> Iterator[tuple]:
    """The name, transformation and state of each route, as `routes` names them."""
    inside = slots(tx)
    for slot, way in ways(tx, params).items():
        few = trees.select(params, way.flags) if way.split else params
        if way.route or _is_routed(inside[slot], few):
            here = ".".join(filter(None, (name, slot if way.route else "")))
            yield from _branches(inside[slot], state_of(state, slot), few, here)
            if not way.route:
                return
    if not any(way.route for way in ways(tx, params).values()):
        yield name or "all", tx, state


def _is_routed(tx: Transformation, params: Any) -> bool:
    """Whether there are routes in a part."""
    found, inside = ways(tx, params), slots(tx)
    if any(way.route for way in found.values()):
        return True
    few = lambda way: trees.select(params, way.flags) if way.split else params
    return any(_is_routed(inside[slot], few(way)) for slot, way in found.items())


def _first_clip(tx: Transformation, params: Any) -> Any:
    """The norm to which the raw gradient is clipped, None if nothing clips it first."""
    tx = opened(tx)
    if {"clip", "global"} <= set(tx.factory.declared["traits"]):
        return tx.arguments.get("max_norm")
    for slot, way in ways(tx, params).items():
        part = slots(tx)[slot]
        norm = _first_clip(part, params) if way.whole and not way.split and _shows(tx) else None
        if norm is not None or not _passes(part):
            return norm
    return None


def _shows(tx: Transformation) -> bool:
    """Whether the parts of an expression receive what it receives, if they are the first."""
    if isinstance(tx.body, Flow):
        return True
    said = understood(tx)
    shown = said is not None and not said.statements and ast.unparse(said.result) == "tx(u)"
    return shown and not tx.factory.declared["now"]


def _passes(tx: Transformation) -> bool:
    """Whether a piece passes on what it receives."""
    said = understood(opened(tx))
    return said is not None and not said.statements and ast.unparse(said.result) == "u"


def _learning_rate(state: Any) -> Any:
    """The learning rate last applied, where the state knows of exactly one."""
    found = learning_rates(state)
    return scalar(jnp.asarray(found[0][2])) if len(found) == 1 else None


def _table(g: Any, u: Any, p: Any) -> jax.Array:
    """One row a leaf: Σ|g|², Σ|u|², Σ|θ|², Σ g u, and whether the first two are not finite."""
    leaves = zip(*map(jax.tree.leaves, (g, u, p)), strict=True)
    rows = [jnp.stack(_sums(g, u, p)) for g, u, p in leaves]
    sums = jnp.stack(rows) if rows else jnp.zeros((0, 4), float)
    return jnp.concatenate([sums, scalar(~jnp.isfinite(sums[:, :2]))], axis=1)


def _sums(g: jax.Array, u: jax.Array, p: jax.Array) -> list[jax.Array]:
    """Σ|g|², Σ|u|², Σ|θ|² and Σ g u."""
    gu = jnp.real(jnp.conj(g) * cast(u, g))
    return [scalar(jnp.sum(x)) for x in (abs_squared(g), abs_squared(u), abs_squared(p), gu)]


def _readings(table: jax.Array, size: int, state: Any, max_norm: Any) -> Readings:
    gg, uu, pp, gu, bad_g, bad_u = jnp.sum(table, axis=0)
    rms = lambda total: safe_sqrt(total / max(size, 1))
    factor = None
    if max_norm is not None:
        limit = cast(max_norm, gg)
        factor = limit / jnp.maximum(safe_sqrt(gg), limit)
    return Readings(
        grad_rms=rms(gg),
        update_rms=rms(uu),
        param_rms=rms(pp),
        update_to_param=divide(rms(uu), rms(pp)),
        # Norms end at a largest number, and rounding may go beyond 1.
        cosine=jnp.clip(divide(gu, safe_sqrt(gg) * safe_sqrt(uu)), -1, 1),
        grad_nonfinite=bad_g,
        update_nonfinite=bad_u,
        learning_rate=_learning_rate(state),
        clip_factor=factor,
        clip_fraction=None if factor is None else scalar(factor < 1),
    )


def _averaged(new: Any, old: Any, measured: jax.Array) -> Any:
    """The new readings, their clip fractions averaged with those of `measured` steps before."""

    def fold(new: Readings, old: Readings) -> Readings:
        if new.clip_fraction is None or old.clip_fraction is None:
            return new
        change = (new.clip_fraction - old.clip_fraction) / scalar(measured + 1)
        return new._replace(clip_fraction=old.clip_fraction + change)

    return jax.tree.map(fold, new, old, is_leaf=lambda x: isinstance(x, Readings))


def _measure(tx: Transformation, g: Any, u: Any, p: Any, state: Any) -> tuple[Readings, dict]:
    """The readings over all, and by route if there is more than one way to go."""
    table, owners = _table(g, u, p), list(routes(tx, p).values())
    sizes = [x.size for x in jax.tree.leaves(p)]
    overall = _readings(table, sum(sizes), state, _first_clip(tx, p))
    by_route = {}
    for name, branch, own in _branches(tx, state, p):
        rows = [i for i, owner in enumerate(owners) if owner == name != "all"]
        if rows:
            size = sum(sizes[i] for i in rows)
            by_route[name] = _readings(table[jnp.array(rows)], size, own, _first_clip(branch, p))
    return overall, by_route


def _after(readings: Readings, tree: Any) -> Any:
    """The tree to the bit, but computed after the readings.

    An RMS is never negative, but XLA does not know: it has to finish reading
    the old state and parameters before it overwrites them in place, and need
    not copy them first."""
    negative = readings.grad_rms < 0
    leaf = lambda x: jnp.where(negative, jnp.zeros_like(x), x) if jnp.ndim(x) else x
    return jax.tree.map(leaf, tree)


def _is_heavy(step: Any, *operands: Any) -> bool:
    """Whether a step multiplies matrices."""
    program = str(jax.make_jaxpr(step)(*operands))
    return "dot_general" in program or "conv_general" in program


@transformation(equation="tx(u)")
def observe(tx: optax.GradientTransformation, *, every: Count = 1) -> optax.GradientTransformation:
    """u -> tx(u), and keeps what `tx` makes of it.

    Read with `metrics(state)`.  Over all parameters, and for each route of a
    routed optimizer as "<route>/grad_rms" and so on:

    * `grad_rms` [L/θ], `update_rms` [θ] and `param_rms` [θ], before the step;
      they end at √(largest number), about 1.8e19 in float32;
    * `update_to_param`, the ratio of the two, 0 for parameters at 0;
    * `cosine` of update and gradient, -1 for gradient descent; where the gradient
      is too large to be squared, its sign;
    * `grad_nonfinite` and `update_nonfinite`, in how many arrays an element is
      not finite (or too large to be squared);
    * `learning_rate`, the one applied, where there is exactly one;
    * `clip_factor`, by which `clip_by_global_norm` multiplied the gradient (1
      if it did not clip), and `clip_fraction`, the fraction of all measured
      steps in which it did, where that is the first thing `tx` does.

    Between two measurements nothing is computed or copied, but all gradients
    are there at once, as for a global norm.  To that end a measurement makes
    the step a second time and reads it there; if the step multiplies matrices
    (Muon, SOAP, Sophia) it reads the step itself.  Under `vmap` a conditional
    is a select, and every step is measured.  `benchmarks/telemetry.py` says
    what it costs.

    Args:
      tx: the optimizer.
      every: k: measures at updates 1, 1 + k, 1 + 2k, ...

    State: `overall` and `routes`, scalars that are 0 at first; `count`, the
    number of updates so far; `tx`, as it is without `observe`.

    Raises:
      ValueError: `update` got no parameters.

    Example:
      >>> from adamw_jax import metrics, observe, sgd
      >>> tx = observe(sgd(0.5))
      >>> update, state = tx.update(4.0, tx.init(8.0), 8.0)
      >>> round(metrics(state)["update_to_param"].item(), 6)
      0.25
    """
    expect_parts("observe", {"tx": tx})

    def init(params):
        inner = init_part(tx, params)
        blank = jax.eval_shape(functools.partial(_measure, tx), params, params, params, inner)
        overall, by_route = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
        return ObserveState(jnp.zeros((), jnp.int32), overall, by_route, inner)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("observe: got no parameters. Call update(grads, state, params).")
        parts(tx)  # builds every body here, lest a conditional keeps one for itself
        step = lambda g, own, p: update_part(tx, g, own, p, extra)
        due, old = state.count % every == 0, (state.overall, state.routes)
        average = lambda new: _averaged(new, old, state.count // every)
        if is_always(every) or _is_heavy(step, updates, state.tx, params):
            out, new = step(updates, state.tx, params)
            measure = lambda g, u, p, own: average(_measure(tx, g, u, p, own))
            readings = when_due(due, every, measure, old, updates, out, params, new)
        else:
            again = lambda g, own, p: average(_measure(tx, g, *_with(p, step(g, own, p))))
            readings = when_due(due, every, again, old, updates, state.tx, params)
            out, new = step(updates, _after(readings[0], state.tx), params)
        overall, by_route = readings
        out = _after(overall, out)
        return out, ObserveState(count_up(state.count), overall, by_route, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _with(params: Any, stepped: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    return stepped[0], params, stepped[1]
