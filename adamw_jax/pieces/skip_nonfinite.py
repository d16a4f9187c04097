"""Steps that did not happen: what to do with a gradient that is not a number."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Count
from adamw_jax.core.numerics import Counter, count_up
from adamw_jax.core.transformation import expect_parts, transformation
from adamw_jax.core.update import init_part, update_part


class SkipNonfiniteState(NamedTuple):
    skipped: Counter
    in_a_row: Counter
    tx: Any


def all_finite(tree: Any) -> jax.Array:
    """Whether every element is finite, one bool for the whole tree.

    On a sharded mesh the reduction spans all shards, so every device decides
    alike.  It is a conjunction: a maximum taken across devices may lose a NaN."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


@transformation(equation="tx(u)")
def skip_nonfinite(
    tx: optax.GradientTransformation, *, max_consecutive: Count = 10
) -> optax.GradientTransformation:
    """u -> tx(u) where every element of u is finite; otherwise 0, and tx keeps its state.

    One NaN or infinity anywhere skips the whole step: parameters and every
    part of the state of `tx`, counts included, are as if it had not been.
    `tx` itself is shown zeros, so a NaN never enters it and NaN checkers
    (`jax_debug_nans`, `checkify.nan_checks`) stay quiet about a skipped step.

    At the `max_consecutive`-th bad step in a row, and at every one that
    follows, the update is NaN instead of 0.  An update cannot raise under
    `jit`; a NaN in every parameter is what nobody overlooks.  The state of
    `tx` is still that of the last good step.  Stop earlier by watching
    `skipped_in_a_row` of `metrics(state)`.

    Put it around `optax.MultiSteps`, not inside, whose running sum keeps a NaN for
    good.  Under `jit` gradients may be sharded in any way.  Inside `shard_map` a
    device sees its own shard alone: sum the gradients first, or use `jit`.

    Args:
      tx: the optimizer.
      max_consecutive: bad steps in a row after which to give up.

    State: `skipped`, the number of bad steps so far; `in_a_row`, of those since
    the last good one; `tx`.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import sgd, skip_nonfinite
      >>> tx = skip_nonfinite(sgd(0.5))
      >>> update, state = tx.update(jnp.nan, tx.init(0.0))
      >>> update.item(), state.skipped.item()
      (0.0, 1)
    """
    expect_parts("skip_nonfinite", {"tx": tx})

    def init(params):
        # Two arrays: a buffer that is donated must not be there twice.
        return SkipNonfiniteState(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), init_part(tx, params)
        )

    def update(updates, state, params=None, **extra):
        good = all_finite(updates)
        shown = jax.tree.map(lambda u: jnp.where(good, u, 0), updates)
        out, new = update_part(tx, shown, state.tx, params, extra)
        in_a_row = jnp.where(good, 0, count_up(state.in_a_row))
        skipped = jnp.where(good, state.skipped, count_up(state.skipped))
        # A division, and not a constant NaN: checkify looks at operations.
        instead = jnp.zeros((), float) / (in_a_row < max_consecutive).astype(float)
        out = jax.tree.map(lambda u: jnp.where(good, u, instead.astype(u.dtype)), out)
        kept = jax.tree.map(lambda x, old: jnp.where(good, x, old), new, state.tx)
        return out, SkipNonfiniteState(skipped, in_a_row, kept)

    return optax.GradientTransformationExtraArgs(init, update)
