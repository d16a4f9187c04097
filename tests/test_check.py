"""The contract kit: clean on all that is ours, and one finding for one mistake."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import adamw_jax as aj
from adamw_jax.inspect.periodic import factories
from adamw_jax.inspect.promises import PROPERTIES

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32),
    "bias": jnp.arange(3.0),
}


def loss(params):
    return sum(jnp.sum(jnp.square(p) * (1 + jnp.abs(p))) for p in jax.tree.leaves(params))


def logits(params):
    return params["kernel"] * params["bias"]


EXTRA = {"sophia_h": {"obj_fn": loss}, "sophia_g": lambda params: {"logits_fn": logits}}


class Held(NamedTuple):
    value: object


def piece(init, update):
    return optax.GradientTransformation(init, update)


def ones(dtype=jnp.float32):
    return jnp.ones((), dtype)


# --- planted mistakes --------------------------------------------------------


def counts_in_python():
    calls = []

    def update(updates, state, params=None):
        calls.append(0)
        return jax.tree.map(lambda u: u * len(calls), updates), state

    return piece(lambda params: (), update)


def changes_its_input():
    def update(updates, state, params=None):
        updates["bias"] = updates["bias"] * 2
        return dict(updates), state

    return piece(lambda params: (), update)


def grows_its_state():
    def update(updates, state, params=None):
        return updates, Held(ones())

    return piece(lambda params: Held(None), update)


def drifts():
    def update(updates, state, params=None):
        return updates, Held(state.value.astype(jnp.bfloat16))

    return piece(lambda params: Held(ones()), update)


def retraces():
    # A Python number is weakly typed, and no longer one after the first step.
    update = lambda u, s, p=None: (u, Held(jnp.asarray(s.value + 1.0, jnp.float32)))
    return piece(lambda params: Held(1.0), update)


def branches():
    def update(updates, state, params=None):
        if updates["bias"][0] > 0:
            return updates, state
        return jax.tree.map(jnp.negative, updates), state

    return piece(lambda params: (), update)


def widens():
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * ones(), updates))


def divides_by_zero():
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u / abs(u), updates))


def fills_the_holes():
    hole = lambda x: x is None or isinstance(x, optax.MaskedNode)
    fill = lambda u: jnp.zeros(()) if hole(u) else u
    return optax.stateless(lambda updates, params: jax.tree.map(fill, updates, is_leaf=hole))


def mixes_the_batch():
    """A callback that sees the whole batch when it is vectorised."""

    def halve(x):
        return np.asarray(x / np.max(np.abs(x)), np.float32)

    def leaf(u):
        shape = jax.ShapeDtypeStruct(u.shape, jnp.float32)
        out = jax.pure_callback(halve, shape, u.astype(jnp.float32), vmap_method="broadcast_all")
        return jnp.where(u == 0, u, out.astype(u.dtype))

    return optax.stateless(lambda updates, params: jax.tree.map(leaf, updates))


def keeps_the_parameters_themselves():
    return piece(lambda params: Held(params), lambda u, s, p=None: (u, s))


def forgets_a_leaf():
    return optax.stateless(lambda updates, params: {"kernel": updates["kernel"]})


MISTAKES = {
    "runs": [forgets_a_leaf, lambda: optax.sgd("fast")],
    "purity": [counts_in_python, changes_its_input],
    "state structure": [grows_its_state],
    "state dtypes": [drifts],
    "one trace": [retraces],
    "jit": [branches],
    "half precision": [widens],
    "zero gradients": [divides_by_zero],
    "masked leaves": [fills_the_holes],
    "vmap": [mixes_the_batch],
    "donation": [keeps_the_parameters_themselves],
}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, id=make.__name__)
        for name, all_ in MISTAKES.items()
        for make in all_
    ],
)
def test_a_mistake_breaks_its_property_and_no_other(name, make):
    with jax.numpy_dtype_promotion("standard"):
        report = aj.check(make(), PARAMS)
    assert report.failed == (name,), str(report)
    assert not report.ok
