"""Evaluation: the parameters to evaluate, where they are not the ones that are trained."""

from typing import Any

import jax
import optax

from adamw_jax.core import trees
from adamw_jax.core.flow import opened, slots
from adamw_jax.core.routing import assign, masked, routed
from adamw_jax.core.slots import state_of
from adamw_jax.core.transformation import Transformation, foreign, lift
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
    if tx.factory is foreign and _unreached(state):
        raise ValueError(
            "eval_params: schedule_free is inside a transformation of another library, which "
            "cannot be looked into. Use chain, masked, route or skip_nonfinite of adamw_jax "
            "around it, or call eval_params on it with its own state."
        )
    if tx.factory in (masked, routed):
        return _eval_routes(tx, state, params)
    for name, inner in slots(tx).items():
        if _averages(inner):
            params = eval_params(inner, state_of(state, name), params)
    return params


def _unreached(state: Any) -> bool:
    averages = lambda x: isinstance(x, ScheduleFreeState | optax.contrib.ScheduleFreeState)
    return any(map(averages, jax.tree.leaves(state, is_leaf=averages)))


def _averages(tx: Transformation) -> bool:
    """Whether any part says where to evaluate, or is another library's and may know."""
    tx = opened(tx)
    knows = tx.factory is foreign or bool(tx.factory.declared["eval_params"])
    return knows or any(map(_averages, slots(tx).values()))


def _eval_routes(tx, state, params):
    """`eval_params` where each part holds some of the leaves."""
    branches = slots(tx)
    if tx.factory is masked:
        flags = trees.mask_flags("eval_params", tx.arguments["mask"], params)
        owners = ["tx" if flag else "" for flag in flags]
    else:
        owners = assign(tx.arguments["matchers"], tuple(branches), params)
    for name, branch in branches.items():
        flags = [owner == name for owner in owners]
        chosen = eval_params(branch, state[name], trees.select(params, flags))
        params = trees.put_back(chosen, params, flags)
    return params
