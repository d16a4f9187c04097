"""Schedules are functions of the earlier updates, and data."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj

# Closed forms in Python's own floats, written from the papers.


def rise(t, warmup):
    return 1.0 if t >= warmup else t / warmup


def cosine(t, peak, total, warmup=0, end=0.0):
    if t < warmup:
        return peak * t / warmup
    if t >= total:
        return end
    return end + (peak - end) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2


def warmup_stable_decay(t, peak, total, warmup=0, decay=0, end=0.0):
    if t >= total:
        return end
    left = 1.0 if t <= total - decay else (total - t) / decay
    return peak * rise(t, warmup) if left == 1 else end + (peak - end) * left


def inverse_sqrt(t, peak, warmup):
    if warmup == 0:
        return peak / math.sqrt(max(t, 1))
    return peak * min(t / warmup, math.sqrt(warmup / t)) if t else 0.0


# (ours, closed form); the values are such that peak, end and the lengths all matter
CLOSED = {
    "constant": (aj.constant(0.3), lambda t: 0.3),
    "constant 0": (aj.constant(0.0), lambda t: 0.0),
    "linear_warmup": (aj.linear_warmup(0.3, 7), lambda t: 0.3 * rise(t, 7)),
    "linear_warmup 1": (aj.linear_warmup(0.3, 1), lambda t: 0.3 * (t > 0)),
    "linear_warmup 0": (aj.linear_warmup(0.3, 0), lambda t: 0.3),
    "linear_warmup 2.5": (aj.linear_warmup(0.3, 2.5), lambda t: 0.3 * rise(t, 2.5)),
    "cosine": (aj.cosine(0.3, 13), lambda t: cosine(t, 0.3, 13)),
    "cosine warmup": (
        aj.cosine(0.3, 13, warmup_steps=4, end=0.02),
        lambda t: cosine(t, 0.3, 13, 4, 0.02),
    ),
    "cosine all warmup": (
        aj.cosine(0.3, 4, warmup_steps=4, end=0.02),
        lambda t: cosine(t, 0.3, 4, 4, 0.02),
    ),
    "cosine 1": (aj.cosine(0.3, 1), lambda t: 0.3 * (t == 0)),
    "cosine 0": (aj.cosine(0.3, 0, end=0.1), lambda t: 0.1),
    "wsd": (
        aj.warmup_stable_decay(0.3, 17, warmup_steps=4, decay_steps=6, end=0.05),
        lambda t: warmup_stable_decay(t, 0.3, 17, 4, 6, 0.05),
    ),
    "wsd no warmup": (
        aj.warmup_stable_decay(0.3, 9, decay_steps=9),
        lambda t: warmup_stable_decay(t, 0.3, 9, 0, 9),
    ),
    "wsd no decay": (
        aj.warmup_stable_decay(0.3, 9, warmup_steps=3, end=0.1),
        lambda t: warmup_stable_decay(t, 0.3, 9, 3, 0, 0.1),
    ),
    "wsd no plateau": (
        aj.warmup_stable_decay(0.3, 9, warmup_steps=3, decay_steps=6),
        lambda t: warmup_stable_decay(t, 0.3, 9, 3, 6),
    ),
    "inverse_sqrt": (aj.inverse_sqrt(0.3, 5), lambda t: inverse_sqrt(t, 0.3, 5)),
    "inverse_sqrt 1": (aj.inverse_sqrt(0.3, 1), lambda t: inverse_sqrt(t, 0.3, 1)),
    "inverse_sqrt 0": (aj.inverse_sqrt(0.3, 0), lambda t: inverse_sqrt(t, 0.3, 0)),
    "relative": (
        aj.relative(aj.cosine(0.3, 13, end=0.06)),
        lambda t: cosine(t, 1.0, 13, 0, 0.2),
    ),
}
COUNTS = [*range(25), 1000, 2**31 - 1]

each_schedule = pytest.mark.parametrize(
    "schedule", [ours for ours, _ in CLOSED.values()], ids=CLOSED
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("schedule", "closed"), CLOSED.values(), ids=CLOSED)
def test_closed_form(schedule, closed):
    expected = [closed(t) for t in COUNTS]
    eager = [schedule(t) for t in COUNTS]
    traced = jax.jit(jax.vmap(schedule))(jnp.array(COUNTS, "int32"))
    assert traced.dtype == eager[0].dtype == "float64"
    np.testing.assert_allclose(eager, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(traced, expected, rtol=1e-12, atol=1e-15)


# Optax's own, given float64 counts: with integers they are float32 even under x64.
OPTAX = {
    "constant": (aj.constant(0.3), lambda: optax.constant_schedule(0.3)),
    "linear_warmup": (aj.linear_warmup(0.3, 7), lambda: optax.linear_schedule(0.0, 0.3, 7)),
    "cosine": (aj.cosine(0.3, 13), lambda: optax.cosine_decay_schedule(0.3, 13)),
    "cosine end": (
        aj.cosine(0.3, 13, end=0.03),
        lambda: optax.cosine_decay_schedule(0.3, 13, alpha=0.1),
    ),
    "cosine warmup": (
        aj.cosine(0.3, 13, warmup_steps=4, end=0.03),
        lambda: optax.warmup_cosine_decay_schedule(0.0, 0.3, 4, 13, end_value=0.03),
    ),
    "wsd": (
        aj.warmup_stable_decay(0.3, 17, warmup_steps=4, decay_steps=6, end=0.05),
        lambda: optax.join_schedules(
            [optax.linear_schedule(0.0, 0.3, 4), optax.linear_schedule(0.3, 0.05, 6)], [11]
        ),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("schedule", "theirs"), OPTAX.values(), ids=OPTAX)
def test_optax(schedule, theirs):
    with jax.numpy_dtype_promotion("standard"):
        theirs = [float(theirs()(jnp.asarray(t, "float64"))) for t in range(25)]
    np.testing.assert_allclose([schedule(t) for t in range(25)], theirs, rtol=1e-12, atol=1e-15)


@each_schedule
def test_float32_by_default(schedule):
    for count in (3, np.int64(3), jnp.int32(3), 3.0):
        assert schedule(count).dtype == "float32"
        assert schedule(count) == schedule(3)


# --- the first update sees 0 --------------------------------------------------


def test_the_first_update_sees_zero():
    warmup = aj.linear_warmup(0.5, 4)
    sgd, decay = aj.sgd(warmup), aj.shrink(1.0, warmup)
    theirs = optax.sgd(optax.linear_schedule(0.0, 0.5, 4))
    states = [tx.init(1.0) for tx in (sgd, decay, theirs)]
    for expected in (0.0, 0.125, 0.25, 0.375, 0.5, 0.5):
        out = [
            tx.update(jnp.asarray(g), state, jnp.asarray(1.0))
            for tx, state, g in zip((sgd, decay, theirs), states, (1.0, 0.0, 1.0), strict=True)
        ]
        assert [float(update) for update, _ in out] == [-expected] * 3
        states = [state for _, state in out]
    assert states[0]["learning_rate"].learning_rate == 0.5


def test_plain_functions_see_the_same_count():
    tx = aj.sgd(lambda count: count.astype(float) + 10.0)
    update, state = tx.update(1.0, tx.init(0.0))
    assert update == -10.0
    assert tx.update(1.0, state)[0] == -11.0


# --- data ---------------------------------------------------------------------

LEAVES = {
    aj.constant(0.3): [0.3],
    aj.linear_warmup(0.3, 7): [0.3, 7],
    aj.cosine(0.3, 13, warmup_steps=4): [0.3, 13, 4, 0.0],
    aj.warmup_stable_decay(0.3, 17, decay_steps=6): [0.3, 17, 0, 6, 0.0],
    aj.inverse_sqrt(0.3, 5): [0.3, 5],
    aj.relative(aj.linear_warmup(0.3, 7)): [0.3, 7],
}


@pytest.mark.parametrize(("schedule", "leaves"), LEAVES.items(), ids=repr)
def test_numbers_are_leaves(schedule, leaves):
    assert jax.tree.leaves(schedule) == leaves
    assert jax.tree.leaves(aj.adamw(schedule))[: len(leaves)] == leaves


def test_no_retrace_when_a_length_changes():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(tx, count):
        state = tx.init(1.0)
        state["learning_rate"] = state["learning_rate"]._replace(count=count)
        return tx.update(1.0, state)[0]

    chex.clear_trace_counter()
    for total in range(10, 30):
        schedule = aj.cosine(0.1, total, warmup_steps=total // 5, end=0.01)
        assert run(aj.sgd(schedule), jnp.int32(8)) == pytest.approx(
            -cosine(8, 0.1, total, total // 5, 0.01), rel=1e-6
        )


SWEEPS = {
    "linear_warmup": lambda n: aj.linear_warmup(0.3, n),
    "cosine": lambda n: aj.cosine(0.3, n, warmup_steps=n // 4, end=0.1),
    "warmup_stable_decay": lambda n: aj.warmup_stable_decay(
        0.3, n, warmup_steps=n // 4, decay_steps=n // 3
    ),
    "inverse_sqrt": lambda n: aj.inverse_sqrt(0.3, n),
    "relative": lambda n: aj.relative(aj.cosine(0.3, n)),
}


@pytest.mark.parametrize("make", SWEEPS.values(), ids=SWEEPS)
@pytest.mark.parametrize("steps_dtype", ["int32", "float32"])
def test_vmap_over_lengths(make, steps_dtype):
    # lengths as arrays of either kind, without weak types: under strict promotion too
    def stacked(*xs):
        whole = all(isinstance(x, int) for x in xs)
        return jnp.array(xs, steps_dtype if whole else "float32")

    lengths = (0, 1, 12, 30)
    sweep = jax.tree.map(stacked, *map(make, lengths))
    for count in (0, 1, 5, 11, 40):
        batch = jax.vmap(lambda schedule, t=count: schedule(jnp.int32(t)))(sweep)
        expected = [make(n)(count) for n in lengths]
        np.testing.assert_allclose(batch, expected, rtol=2e-6, atol=1e-7)


@each_schedule
def test_grad_through_every_count(schedule):
    # at the kinks and edges too: no 0/0 in the branch not taken
    slope = jax.grad(lambda schedule, t: schedule(t))
    numbers = jax.tree.map(lambda x: jnp.asarray(x, float), schedule)
    for count in (0, 1, 4, 5, 13, 17, 50):
        for leaf in jax.tree.leaves(slope(numbers, count)):
            assert np.isfinite(leaf)


def test_gradient_with_respect_to_the_peak():
    slope = jax.grad(lambda schedule: schedule(3))
    numbers = jax.tree.map(float, aj.cosine(0.3, 13, end=0.1))
    assert slope(numbers).arguments["peak"] == pytest.approx(cosine(3, 1.0, 13), rel=1e-5)
    assert slope(numbers).arguments["end"] == pytest.approx(1 - cosine(3, 1.0, 13), rel=1e-5)


def test_peak():
    for schedule, leaves in LEAVES.items():
        if schedule.factory is not aj.relative:
            assert schedule.peak == leaves[0]


def test_relative_has_the_peak_1():
    shape = aj.relative(aj.cosine(1e-3, 10))
    assert shape.peak == aj.ahead(shape).peak == 1.0
    assert aj.relative(shape)(3) == shape(3)


def test_relative_of_zero_is_zero():
    assert aj.relative(aj.constant(0.0))(3) == 0.0
    tx = aj.adamw(aj.constant(0.0), weight_decay=0.1, coupling="independent")
    assert tx.update(1.0, tx.init(1.0), 1.0)[0] == 0.0


def test_lengths_may_be_arrays():
    for total in (jnp.int32(13), np.array(13), jnp.float32(13)):
        assert aj.cosine(0.3, total)(5) == aj.cosine(0.3, 13)(5)


def test_a_schedule_of_ones_own():
    @aj.schedule
    def halving(peak, every=2):
        return lambda t: jnp.asarray(peak, t.dtype) / 2 ** jnp.floor(t / every)

    schedule = halving(0.8)
    assert repr(schedule) == "halving(0.8)"
    assert isinstance(schedule, aj.Schedule)
    assert jax.tree.leaves(schedule) == [0.8, 2]
    assert [float(schedule(t)) for t in (0, 1, 2, 4)] == pytest.approx([0.8, 0.8, 0.4, 0.2])
    assert aj.relative(schedule)(2) == 0.5
    tx = aj.adamw(schedule, coupling="independent", weight_decay=0.5)
    _, state = tx.update(0.0, tx.init(1.0), 1.0)
    assert tx.update(0.0, state, 1.0)[0] == -0.5
