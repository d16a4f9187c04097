"""The contract kit: clean on all that is ours, and one finding for one mistake."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.core.transformation import elementwise
from adamw_jax.inspect.contract.check import _judge
from adamw_jax.inspect.contract.promises import PROPERTIES, Subject
from adamw_jax.inspect.contract.traits import TESTS
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


@aj.transformation(equation="2 * u")
def says_another_factor():
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * 3, updates))


@aj.transformation(equation="m = decay * m + (1 - decay) * u; m")
def says_another_memory(decay):
    return aj.scale_by_momentum(decay, gain=1.0)


@aj.transformation(leafwise=True, equation="u / maximum(1, global_norm(u))")
def says_the_whole_tree():
    norm = lambda u: jnp.maximum(1, jnp.sqrt(jnp.sum(u * u))).astype(u.dtype)
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u / norm(u), updates))


@elementwise
def centres():
    return lambda u: u - jnp.mean(u)


def says(*words, equation=None):
    """u -> 2 u for every tree, and some words that say otherwise."""

    @aj.transformation(traits=words)
    def plain():
        return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * 2, updates))

    return plain


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
    "elementwise": [centres],
    "equation": [
        says_another_factor,
        lambda: aj.chain(aj.clip(1.0), says_another_memory(0.5)),
        says_the_whole_tree,
    ],
    "traits": [says("sign"), says("linear", "clip")],
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


# --- declarations ------------------------------------------------------------

LIES = {
    "average": "has no argument 'decay'",
    "clip": "update 1 makes 0.2515 of 0.1257",
    "correction": "has no argument 'decay'",
    "decay_after_rate": None,
    "decoupled_decay": "",
    "estimate": "",
    "global": "what it makes of a leaf does not depend on the others",
    "learning_rate": "has no argument 'learning_rate'",
    "linear": None,  # the one that is true
    "negative": "update 1 makes",
    "positive": "update 2 makes -",
    "root": "",
    "scale": "has no argument 'factor'",
    "nonlinear": "is proportional to what it receives",
    "scale_invariant": "",
    "sign": "update 1 makes",
    "squares": "update 2 makes -",
    "wrapper": "it has 0 parts",
}


def verdict_of(tx, name, params=PARAMS, extra=None):
    """One verdict of `check`, without the others."""
    (prop,) = (prop for prop in PROPERTIES if prop.name == name)
    return _judge(prop, Subject(tx, params, extra), {})


@pytest.mark.parametrize("word", LIES)
def test_a_word_that_lies(word):
    verdict = verdict_of(says(word)(), "traits")
    if LIES[word] is None:
        assert verdict.passed, verdict
    else:
        assert verdict.passed is False, verdict
        assert f"plain is declared {word!r}, and" in verdict.why
        assert LIES[word] in verdict.why


def test_every_word_is_tried():
    assert set(TESTS) - set(LIES) == {"first", "independent", "l2"}
    verdict = verdict_of(says("fast")(), "traits")
    assert verdict[1:] == (None, "plain: there is no test of the word 'fast'.")


def test_a_lie_is_told_with_the_numbers():
    verdict = verdict_of(says_another_factor(), "equation")
    assert verdict.why == (
        "the equation of says_another_factor gives 0.25146 where update 1 of 'bias' is 0.377191."
    )
    verdict = verdict_of(aj.chain(aj.clip(1.0), says_another_memory(0.5)), "equation")
    assert "the equation of says_another_memory at '1' gives" in verdict.why
    verdict = verdict_of(centres(), "elementwise")
    assert "centres is written as elementwise, and update 1 of 'bias' differs by" in verdict.why


def test_an_equation_that_cannot_be_run_says_why():
    verdict = verdict_of(aj.eigenbasis(0.9), "equation")
    assert verdict.passed is None
    assert verdict.why == "eigenbasis: the function 'eigenvectors' is not known here."
    verdict = verdict_of(aj.chain(aj.scale(2.0), aj.eigenbasis(0.9)), "equation")
    assert verdict.passed
    assert "1 of the parts do what they say; 1 are not judged: eigenbasis at '1'" in verdict.why


def test_nothing_is_promised_of_what_says_nothing():
    for name in ("elementwise", "equation", "traits"):
        assert verdict_of(optax.sgd(0.1), name).why == "it is no expression of this library."
        assert verdict_of(says()(), name).why == "no part declares anything of the kind."


def test_a_stranger_that_tells_the_truth():
    @elementwise(average=0.0)
    def centred(decay, rate):
        def formula(u, theta, t, average):
            average = decay * average + (1 - decay) * u
            return u - average / (1 - decay**t) + rate * theta, {"average": average}

        return formula

    tx = aj.chain(centred(0.5, 0.1), aj.scale_by_learning_rate(aj.cosine(0.1, 10)))
    for name in ("elementwise", "equation"):
        assert verdict_of(tx, name).passed, verdict_of(tx, name)


PIECES = {
    "accumulate": (aj.scale_by_momentum(0.5), 2),
    "add_decoupled_weight_decay": (0.5,),
    "add_l2_gradient": (0.5,),
    "average": (0.5,),
    "bias_correction": (0.5,),
    "block_second_moment": (0.5,),
    "by_distance": (aj.sgd(0.1), 0.1, 0.9),
    "cautious": (),
    "clip": (0.5,),
    "clip_by_age": (),
    "clip_by_global_norm": (0.5,),
    "clip_by_leaf_norm": (0.5,),
    "clip_by_rms": (0.5,),
    "curvature": (aj.identity(), 0.5),
    "delay": (aj.scale_by_momentum(0.5), 2),
    "difference": (),
    "eigenbasis": (0.5,),
    "factored_second_moment": (),
    "floor": (0.5,),
    "identity": (),
    "nesterov_average": (0.5,),
    "nesterov_trace": (0.5,),
    "observe": (aj.scale_by_momentum(0.5),),
    "orthogonalize": (),
    "previous_second_moment": (0.5,),
    "probe": ("g",),
    "proximal_decay": (0.5, aj.cosine(1.0, 10)),
    "rectify": (0.9,),
    "rms": (0.5,),
    "root": (0.1,),
    "root_bias_correction": (0.5,),
    "running_max": (),
    "scale": (-0.5,),
    "scale_by_learning_rate": (0.1,),
    "scale_by_momentum": (0.5,),
    "scale_by_parameter_rms": (),
    "scale_by_rms": (0.5,),
    "scale_by_shape": (),
    "schedule_free": (aj.sgd(0.1), 0.1),
    "second_moment": (0.5,),
    "shrink": (0.5, aj.cosine(1.0, 10)),
    "shrink_after": (0.5,),
    "sign": (),
    "skip_nonfinite": (aj.scale_by_momentum(0.5),),
    "square": (),
    "sum_of_squares": (1.0,),
    "update_rms": (),
    "variance_reduction": (0.5,),
    "warming_nesterov": (0.5,),
}
SILENT = {  # what says nothing that could be run, and why
    "eigenbasis": ("equation", "traits"),
    "orthogonalize": ("equation",),
}


@pytest.mark.parametrize("name", PIECES)
def test_our_pieces_do_what_they_say(name):
    tx = getattr(aj, name)(*PIECES[name])
    found = {kind: verdict_of(tx, kind) for kind in ("elementwise", "equation", "traits")}
    assert all(v.passed is not False for v in found.values()), found
    judged = {kind for kind, v in found.items() if v.passed}
    assert ("equation" in judged) == ("equation" not in SILENT.get(name, ())), found
    if tx.factory.declared["traits"] and "traits" not in SILENT.get(name, ()):
        assert "traits" in judged or aj.parts(tx), found


def test_every_piece_is_among_them():
    others = {"distance_root", "hutchinson", "gauss_newton_bartlett"}  # that need more arguments
    combinators = {"chain", "fork", "join", "merge", "pick", "precondition", "interpolate"}
    combinators |= {"masked", "route", "routed", "scheduled"}
    made = {
        n for n in aj.__all__ if getattr(getattr(aj, n), "declared", {}).get("leafwise") is not None
    }
    assert made - others - combinators - set(factories()) - {"scale_by_adam"} == set(PIECES)


# --- what keeps the contract -------------------------------------------------


@pytest.mark.parametrize("name", factories())
def test_every_optimizer_keeps_the_contract(name):
    aj.assert_contract(factories()[name](0.1), PARAMS, extra=EXTRA.get(name))


WRAPPED = {
    "accumulate": aj.accumulate(aj.adamw(aj.cosine(0.1, 5)), 2),
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
