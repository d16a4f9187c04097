"""Evaluation: the parameters to evaluate, where they are not the ones that are trained."""

from typing import Any

import jax
import optax

from adamw_jax.core import trees
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.routing import ways
from adamw_jax.core.slots import state_of
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.pieces.schedule_free import ScheduleFreeState


def eval_params(tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
    """The parameters to evaluate: those that are trained, unless a part averages.

    One function for all optimizers; it finds the part that knows better.

    Args:
      tx: the optimizer.
      state: its state.
      params: the parameters it trains.

    Raises:
      ValueError: a part that averages is inside a transformation of Optax's.

    Example:
      >>> from adamw_jax import adamw, eval_params
      >>> tx = adamw(1e-3)
      >>> eval_params(tx, tx.init(0.5), 0.5)
      0.5
    """
    tx = opened(lift(tx, "eval_params"))
    own = tx.factory.declared["eval_params"]
    if own:
        return own(tx.arguments, state, params)
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    parts = slots(tx)
    inside = {slot: _state_in(state, slot) for slot in parts}
    if any(x is _NOWHERE for x in (*inside.values(), *[_NOWHERE] * tx.is_foreign)):
        if not _averages_in(state):
            return params
        raise ValueError(
            "eval_params: schedule_free is inside a transformation of another library, which "
            "cannot be looked into. Use chain, masked, route or skip_nonfinite of adamw_jax "
            "around it, or call eval_params on it with its own state."
        )
    for slot, way in ways(tx, params).items():
        if _averages(parts[slot]):
            few = trees.select(params, way.flags) if way.split else params
            chosen = eval_params(parts[slot], inside[slot], few)
            params = trees.put_back(chosen, params, way.flags) if way.split else chosen
    return params


_NOWHERE = object()


def _state_in(state: Any, slot: str) -> Any:
    """The state of the part in a slot; `_NOWHERE` if what holds it keeps it elsewhere."""
    try:
        return state_of(state, slot)
    except (AttributeError, IndexError, KeyError, TypeError):
        return _NOWHERE


def _averages_in(state: Any) -> bool:
    averages = lambda x: isinstance(x, ScheduleFreeState | optax.contrib.ScheduleFreeState)
    return any(map(averages, jax.tree.leaves(state, is_leaf=averages)))


def _averages(tx: Transformation) -> bool:
    """Whether any part says where to evaluate, or is another library's and may know."""
    tx = opened(tx)
    knows = tx.is_foreign or bool(tx.factory.declared["eval_params"])
    return knows or any(map(_averages, slots(tx).values()))
