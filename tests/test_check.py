"""The contract kit: clean on all that is ours, and one finding for one mistake."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.inspect.contract.promises import PROPERTIES
from adamw_jax.inspect.periodic import factories

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
    held: object


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
        return updates, Held(state.held.astype(jnp.bfloat16))

    return piece(lambda params: Held(ones()), update)


def retraces():
    # A Python number is weakly typed, and no longer one after the first step.
    update = lambda u, s, p=None: (u, Held(jnp.asarray(s.held + 1.0, jnp.float32)))
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


@aj.transformation(leafwise=True)
def looks_beyond_its_leaf():
    def update(updates, params):
        norm = optax.tree.norm(updates)
        return jax.tree.map(lambda u: u / jnp.where(norm > 0, norm, 1).astype(u.dtype), updates)

    return optax.stateless(update)


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
    "leafwise": [looks_beyond_its_leaf],
    "donation": [keeps_the_parameters_themselves],
}


PLANTED = [
    pytest.param(name, make, id=f"{name}: {getattr(make, '__name__', '')}")
    for name, makes in MISTAKES.items()
    for make in makes
]


@pytest.mark.parametrize(("name", "make"), PLANTED)
def test_a_mistake_breaks_its_property_and_no_other(name, make):
    with jax.numpy_dtype_promotion("standard"):
        report = aj.check(make(), PARAMS)
    assert report.failed == (name,), str(report)
    assert not report.ok
    (verdict,) = (v for v in report.verdicts if v.name == name)
    assert verdict.why.endswith((".", "'")) or verdict.why.startswith("raises"), verdict.why


def test_most_properties_can_be_broken():
    """What has no mistake of its own above follows from others: scan from jit, a
    checkpoint from purity.  It is judged all the same."""
    names = {prop.name for prop in PROPERTIES}
    assert set(MISTAKES) <= names
    assert names - set(MISTAKES) == {"scan", "checkpoint"}


def test_what_rests_on_a_broken_property_is_not_judged():
    report = aj.check(branches(), PARAMS)
    verdicts = {v.name: v for v in report.verdicts}
    assert verdicts["scan"].passed is None
    assert verdicts["scan"].why == "not judged, since jit is broken"
    assert verdicts["purity"].passed


def test_verdicts_tell_the_value():
    def why(make, name):
        with jax.numpy_dtype_promotion("standard"):
            return {v.name: v.why for v in aj.check(make(), PARAMS).verdicts}[name]

    assert why(drifts, "state dtypes") == "'held' is float32 from init and bfloat16 after a step."
    assert "traced 2 times: 'held' is weakly typed" in why(retraces, "one trace")
    assert why(counts_in_python, "purity").startswith("two updates with the same arguments differ")
    assert "the update of 'bias' is float32, its gradient bfloat16" in why(widens, "half precision")
    assert "'bias' holds 3 elements that are not finite" in why(divides_by_zero, "zero gradients")
    assert "same buffer twice" in why(keeps_the_parameters_themselves, "donation")


# --- what keeps the contract -------------------------------------------------


@pytest.mark.parametrize("name", factories())
def test_every_optimizer_keeps_the_contract(name):
    aj.assert_contract(factories()[name](0.1), PARAMS, extra=EXTRA.get(name))


WRAPPED = {
    "observe": aj.observe(aj.adamw(0.1), every=2),
    "observe every": aj.observe(aj.muon(0.1)),
    "probe": aj.chain(aj.probe("g", every=2), aj.scale(0.5)),
    "skip_nonfinite": aj.skip_nonfinite(aj.adamw(0.1)),
    "all": aj.skip_nonfinite(aj.observe(aj.chain(aj.probe("g"), aj.lion(0.1)), every=2)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_telemetry_keeps_the_contract(name):
    aj.assert_contract(WRAPPED[name], PARAMS)


@pytest.mark.parametrize("params", [jnp.ones((2, 3)), [jnp.ones(2)]], ids=["array", "list"])
def test_parameters_of_other_shapes(params):
    assert aj.check(aj.adamw(0.1), params).ok


def test_complex_parameters_have_no_half_precision():
    params = {"w": jnp.ones(3, jnp.complex64)}
    report = aj.check(aj.adam(0.1), params)
    assert report.ok
    verdict = next(v for v in report.verdicts if v.name == "half precision")
    assert verdict == ("half precision", None, "some parameters are complex.")


def test_optimizers_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        assert aj.check(optax.sgd(0.1, 0.9), PARAMS).ok
        # A float16 Adam of Optax adds an eps that is 0 in float16.
        assert aj.check(optax.adam(0.1), PARAMS).failed in ((), ("half precision",))


def test_typed_keys_in_the_state():
    with jax.numpy_dtype_promotion("standard"):
        assert aj.check(optax.add_noise(0.1, 0.5, key=0), PARAMS).ok


def test_what_is_made_for_one_tree_is_not_tried_on_another():
    labels = {"kernel": "fast", "bias": "slow"}
    tx = optax.partition({"fast": aj.sgd(0.1), "slow": aj.adam(0.1)}, labels)
    report = aj.check(tx, PARAMS)
    assert report.ok, str(report)
    verdict = next(v for v in report.verdicts if v.name == "masked leaves")
    assert verdict == ("masked leaves", None, "it takes no other tree than this one.")


@pytest.mark.parametrize("leaf", [jax.ShapeDtypeStruct((3,), jnp.float32), "kernel", jnp.tanh])
def test_only_arrays_can_be_checked(leaf):
    with pytest.raises(ValueError, match=r"check: params holds no arrays: \{'w'"):
        aj.check(aj.sgd(0.1), {"w": leaf})


def test_the_table_and_the_assertion():
    report = aj.check(aj.scale(0.5), PARAMS)
    lines = str(report).splitlines()
    assert len(lines) == len(PROPERTIES)
    assert lines[0].split()[:3] == [
        "runs",
        "passed",
        "three",
    ]
    assert aj.assert_contract(aj.scale(0.5), PARAMS) is None
    with pytest.raises(AssertionError, match=r"breaks jit\.\n(.*\n)*jit +FAILED +raises Tracer"):
        aj.assert_contract(branches(), PARAMS)
