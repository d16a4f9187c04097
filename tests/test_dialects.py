"""Dialects: forms of an algorithm that other code has, each reached by swapping a part.

And the places where Optax computes something else, so that nobody mistakes the
difference for ours.  Goldens are copied from the specification, section 6.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import references_zoo
from support import GRADIENTS, THETA, stream, walk

import adamw_jax as aj

RATE = 0.1
AS_PRINTED = 5.1e-13  # half a unit of the twelfth decimal, plus float64 rounding


@pytest.fixture(autouse=True)
def everything_in_float64(x64):
    pass


@pytest.fixture
def problem():
    return stream(30, (3, 4), seed=7)


def run(tx, problem):
    theta, grads = problem
    with jax.numpy_dtype_promotion("standard"):  # some of them are Optax's
        return walk(tx, jnp.asarray(theta), [jnp.asarray(g) for g in grads], jitted=True)


def assert_same(a, b, tolerance=1e-12):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def assert_differ(a, b):
    """By far more than the tolerance of `assert_same`."""
    assert np.max(np.abs(np.asarray(a) - np.asarray(b))) > 1e-4


def assert_golden(tx, printed, gradients=GRADIENTS):
    thetas = walk(tx, jnp.asarray(THETA), gradients)
    np.testing.assert_allclose(thetas, [float(x) for x in printed.split()], 0, AS_PRINTED)


def given(*estimates):
    """An estimator of curvature that returns these numbers, one after another."""

    def update(updates, state, params=None):
        estimate = jnp.asarray(estimates)[state]
        return jax.tree.map(lambda g: jnp.full_like(g, estimate), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


# --- Sophia ------------------------------------------------------------------


def test_golden_of_sophia_at_a_given_curvature():
    tx = aj.sophia_g(RATE, weight_decay=0.01, every=2, estimator=given(40.0, 60.0))
    assert_golden(tx, "0.459500000000 0.390640500000 0.343798453878 0.294845241769")
    exact = references_zoo.sophia(
        THETA,
        GRADIENTS,
        learning_rate=RATE,
        weight_decay=0.01,
        gamma=0.05,
        every=2,
        curvature=lambda theta, t: {1: 40.0, 3: 60.0}[t],
    )
    assert_same(walk(tx, jnp.asarray(THETA), GRADIENTS), exact)


def test_sophia_as_in_optax(problem):
    """The momentum corrected, the curvature refreshed after use."""
    estimator = given(*np.geomspace(1e-3, 1e3, 10))
    settings = {"b1": 0.9, "b2": 0.8, "eps": 1e-8, "weight_decay": 0.1, "gamma": 0.5}
    ours = aj.sophia_h(RATE, **settings, every=3, estimator=estimator)
    for slot, piece in (
        ("direction.numerator", aj.average(0.9)),
        ("direction.denominator.moment", aj.curvature(estimator, 0.8, every=3, refresh="after")),
    ):
        before, ours = ours, aj.swap(ours, slot, piece)
        assert_differ(run(before, problem), run(ours, problem))
    theirs = optax.contrib.sophia(
        RATE, **settings, update_interval=3, hessian_diagonal_fn=estimator
    )
    assert_same(run(ours, problem), run(theirs, problem))


# --- Muon --------------------------------------------------------------------


def optax_muon(**settings):
    return optax.contrib.muon(RATE, ns_coeffs=(3.4445, -4.7750, 2.0315), eps=1e-7, **settings)


def test_muon_as_in_optax(problem):
    """Both terms of the look-ahead corrected, which mixes them differently at first."""
    keller = aj.muon(RATE, weight_decay=0.1)
    ours = aj.swap(keller, "muon.direction", aj.nesterov_average(0.95))
    theirs = run(optax_muon(weight_decay=0.1), problem)
    assert_same(run(ours, problem), theirs, 1e-9)  # Optax rounds elsewhere; 485 times a step
    assert_differ(run(keller, problem), theirs)


def test_optax_sends_embeddings_and_heads_to_muon():
    params = {name: jnp.ones((6, 4)) for name in ("embedding", "kernel", "head")}
    assert aj.routes(aj.muon(RATE), params) == {
        "embedding": "adamw",
        "kernel": "muon",
        "head": "adamw",
    }
    inner = optax_muon().init(params).inner_states["muon"].inner_state[0]
    assert not any(isinstance(x, optax.MaskedNode) for x in inner.mu.values())


def test_optax_runs_as_many_steps_as_its_table_has_rows():
    """Three of the five asked for, silently; and it refuses a table that is too long."""
    rows = ((3.4445, -4.7750, 2.0315),) * 8
    direction = lambda rows, steps: optax.contrib.scale_by_muon(ns_coeffs=rows, ns_steps=steps)
    params = jnp.diag(jnp.asarray([3.0, 4.0]))
    step = lambda tx: run(tx, (params, [params]))
    assert_same(step(direction(rows[:3], 5)), step(direction(rows[:3], 3)))
    with pytest.raises(ValueError, match="coeffs"):
        direction(rows, 5).init(params)
    aj.orthogonalize(rows, steps=5)
    with pytest.raises(ValueError, match="3 rows"):
        aj.orthogonalize(rows[:3], steps=5)


# --- Adam with one part changed ----------------------------------------------


def amsgrad_of_corrected(**settings):
    """`maximum` and `correction` exchanged."""
    tx = aj.amsgrad(RATE, **settings)
    slots = [f"direction.denominator.{name}" for name in ("maximum", "correction")]
    pieces = [aj.part(tx, slot) for slot in slots]
    return aj.swap(aj.swap(tx, slots[0], pieces[1]), slots[1], pieces[0])


def test_amsgrad_as_in_optax(problem):
    assert_golden(
        amsgrad_of_corrected(),
        "0.400000001000 0.347368422579 0.310468053944 0.281389833822",
        (1.0, 0.1, 0.1, 0.1),
    )
    for settings in ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-3}):
        ours, theirs = amsgrad_of_corrected(**settings), optax.amsgrad(RATE, **settings)
        assert_same(run(ours, problem), run(theirs, problem))


def test_amsgrad_as_in_its_paper(problem):
    tx = aj.amsgrad(RATE)
    for slot in ("direction.numerator.1", "direction.denominator.correction"):
        tx = aj.swap(tx, slot, aj.identity())
    exact = references_zoo.amsgrad_paper(*problem, learning_rate=RATE)
    assert_same(run(tx, problem), exact)
    assert_differ(run(aj.amsgrad(RATE), problem), exact)


def test_nadam_with_the_schedule_of_its_paper(problem):
    tx = aj.swap(aj.nadamw(RATE), "direction.numerator", aj.warming_nesterov(0.9))
    assert_golden(tx, "0.394354827447 0.326591157758 0.239923161876 0.209926973560")
    assert_same(run(tx, problem), references_zoo.nadam_warming(*problem, learning_rate=RATE))
    assert_differ(run(tx, problem), run(aj.nadamw(RATE), problem))


@pytest.mark.parametrize("b2", [0.95, 0.99, 0.999])
def test_radam_rectifies_from_the_sixth_step_and_in_the_paper_from_the_fifth(b2, problem):
    ours = aj.radam(RATE, b2=b2)
    paper = aj.swap(ours, "direction.denominator.rectify", aj.rectify(b2, threshold=4.0))
    never = aj.swap(ours, "direction.denominator", aj.chain(aj.square(), aj.root(1.0), aj.sign()))
    ours, paper, never = (np.asarray(run(tx, problem)) for tx in (ours, paper, never))
    first = lambda a, b: 1 + int(np.argmax(np.abs(a - b).max((1, 2)) > 1e-9))
    assert first(ours, never) == 6
    assert first(paper, never) == 5


def test_laprop_may_decay_after_the_step(problem):
    """The authors' code: by lambda alone, not times the rate."""
    tx = aj.chain(aj.swap(aj.laprop(RATE), "weight_decay", aj.identity()), aj.shrink_after(0.03))

    @references.path
    def late(theta, g, t, past, lr):
        past.v = references.ema(past.v, g**2, 0.999)
        ratio = g / (np.sqrt(references.hat(past.v, 0.999, t)) + 1e-15)
        past.m = references.ema(past.m, ratio, 0.9)
        return (theta - lr * references.hat(past.m, 0.9, t)) * (1 - 0.03)

    assert_same(run(tx, problem), late(*problem, learning_rate=RATE))


def test_ademamix_warms_up(problem):
    """alpha and b3 rise over the first steps, the latter linearly in its half-life's inverse."""
    steps, b1, b3, alpha = 20, 0.9, 0.9999, 5.0

    def share(count):
        return jnp.minimum((count.astype(float) + 1) / steps, 1)

    def rising(count):
        x, low, high = share(count), jnp.log(b1), jnp.log(b3)
        return jnp.exp(low * high / ((1 - x) * high + x * low))

    slow = "direction.numerator.slow"
    tx = aj.scheduled(
        aj.ademamix(RATE),
        f"{slow}.weight",
        factor=lambda count: alpha * share(count),
    )
    tx = aj.scheduled(tx, f"tx.{slow}.average", decay=rising)
    exact = references_zoo.ademamix(*problem, learning_rate=RATE, warmup=steps)
    assert_same(run(tx, problem), exact)
    assert_differ(run(aj.ademamix(RATE), problem), exact)


# --- Adan --------------------------------------------------------------------


def test_adan_with_the_decoupled_decay(problem):
    tx = aj.swap(aj.adan(RATE), "weight_decay", aj.identity())
    late = aj.chain(aj.add_decoupled_weight_decay(0.3), aj.scale_by_learning_rate(RATE))
    tx = aj.swap(tx, "learning_rate", late)
    exact = references_zoo.adan_decoupled(*problem, learning_rate=RATE, weight_decay=0.3)
    assert_same(run(tx, problem), exact)
    assert_differ(run(aj.adan(RATE, weight_decay=0.3), problem), exact)


def test_adan_of_optax_has_one_minus_b2_where_b2_belongs(problem):
    """In the numerator and under the root: github.com/google-deepmind/optax/pull/1715."""
    theirs = run(optax.adan(RATE, eps_root=0.0), problem)
    assert_differ(run(aj.adan(RATE), problem), theirs)
    ours = aj.adan(RATE)
    for slot in ("direction.numerator.difference.2", "direction.denominator.ahead.difference.1"):
        assert aj.part(ours, slot) == aj.scale(0.92)
        ours = aj.swap(ours, slot, aj.scale(1 - 0.92))
    assert_same(run(ours, problem), theirs)


# --- without a learning rate, or a schedule ----------------------------------


def averages(tx, problem, at=aj.eval_params):
    """The parameters to evaluate after every step."""
    theta, grads = problem
    params, points = jnp.asarray(theta), []
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        points.append(at(tx, state, params))
    return points


def optax_average(tx, state, params):
    return optax.contrib.schedule_free_eval_params(state, params)


def test_schedule_free_is_evaluated_at_its_average(problem):
    tx = aj.schedule_free_adamw(RATE)
    printed = "0.400000005000 0.357570628883 0.302606353606 0.268121819347"
    points = averages(tx, (THETA, GRADIENTS))
    np.testing.assert_allclose(points, [float(x) for x in printed.split()], 0, AS_PRINTED)
    exact = references_zoo.schedule_free_adamw(*problem, learning_rate=RATE, point="x")
    assert_same(averages(tx, problem), exact)


def test_schedule_free_at_a_constant_rate_is_optaxs(problem):
    for settings in ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.3}):
        ours = aj.schedule_free_adamw(RATE, **settings)
        theirs = optax.contrib.schedule_free_adamw(RATE, **settings)
        assert_same(run(ours, problem), run(theirs, problem))
        with jax.numpy_dtype_promotion("standard"):
            assert_same(averages(ours, problem), averages(theirs, problem, optax_average))


def test_schedule_free_of_optax_weighs_a_warm_up_by_the_next_rate(problem):
    """Its first step has the rate 0 and yet a weight; ours weighs by the rate of the step."""
    rates = RATE * np.minimum(np.arange(30) / 4, 1)
    ours = aj.schedule_free_adamw(aj.linear_warmup(RATE, 4))
    exact = references_zoo.schedule_free_adamw(*problem, learning_rate=rates)
    assert_same(run(ours, problem), exact)
    theirs = run(optax.contrib.schedule_free_adamw(RATE, warmup_steps=4), problem)
    assert_differ(theirs, exact)


def kappa(count, b1=0.9, b2=0.999):
    """Adam's corrections, which Optax's Prodigy multiplies the rate by."""
    t = count + 1
    return jnp.sqrt(1 - b2**t) / (1 - b1**t)


@pytest.mark.parametrize("d0", [1e-6, 1e-2])
def test_prodigy_as_in_optax(d0, problem):
    ours = aj.prodigy(kappa, weight_decay=0.1, d0=d0)
    theirs = optax.contrib.prodigy(1.0, weight_decay=0.1, estim_lr0=d0)
    assert_same(run(ours, problem), run(theirs, problem), 1e-11)
    plain = np.asarray(run(aj.prodigy(1.0, weight_decay=0.1, d0=d0), problem))
    assert np.max(np.abs(plain - np.asarray(run(theirs, problem)))) > 1e-6


def test_prodigy_survives_a_first_gradient_of_zeros(problem):
    """Optax's does not: r / s is 0 / 0, and d always a NaN."""
    theta, grads = problem
    quiet = theta, [0 * grads[0], *grads]
    ours, theirs = (run(tx, quiet) for tx in (aj.prodigy(1.0), optax.contrib.prodigy(1.0)))
    assert_same(ours[0], theta)
    assert np.all(np.isfinite(ours))
    assert np.all(np.isnan(theirs[1]))
    exact = references_zoo.prodigy(*quiet, learning_rate=1.0)
    assert_same(ours, exact)


def test_prodigy_sums_over_the_whole_tree(problem):
    """Two leaves are one: the distance is that of all parameters together."""
    theta, grads = problem
    split = lambda x: {"a": jnp.asarray(x[:1]), "b": jnp.asarray(x[1:])}
    tx = aj.prodigy(1.0, d0=1e-2)
    together = walk(tx, split(theta), [split(g) for g in grads], jitted=True)
    assert_same([jnp.concatenate([p["a"], p["b"]]) for p in together], run(tx, problem))
    assert_differ(run(tx, (theta[:1], [g[:1] for g in grads])), [p["a"] for p in together])


# --- less memory -------------------------------------------------------------


def test_adafactor_is_optaxs_up_to_its_exponent(problem):
    """Which is a float32; it factors small matrices only when told to."""
    rate = lambda count: jnp.minimum(0.3, 1 / jnp.sqrt(count.astype(float) + 1))
    ours = run(aj.adafactor(0.3), problem)
    theirs = run(optax.adafactor(rate, min_dim_size_to_factor=1), problem)
    assert_same(ours, theirs, float(jnp.finfo(jnp.float32).eps))
    assert_differ(ours, run(optax.adafactor(rate), problem))


def test_a_16_bit_second_moment_of_optax_stays_where_it_is():
    """0.999 v rounds to v in bfloat16, the dtype of the parameters; ours is a float32."""
    adam, params = aj.scale_by_adam(), jnp.zeros((), jnp.bfloat16)
    fill = lambda x: jnp.full_like(x, 0.5) if jnp.issubdtype(x.dtype, jnp.floating) else x
    theirs, ours = (jax.tree.map(fill, t.init(params)) for t in (optax.scale_by_adam(), adam))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(10):  # towards 1
            _, theirs = optax.scale_by_adam().update(params + 1, theirs)
            _, ours = adam.update(params + 1, ours)
    assert theirs.nu == 0.5
    assert ours["denominator"]["moment"].second_moment > 0.5
