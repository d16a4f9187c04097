"""Schedules are functions of the earlier updates, and data."""

import math
import pickle

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
    "linear 0": (aj.linear(0.3, 0.1, 0), lambda t: 0.1),
    "polynomial": (
        aj.polynomial(0.3, 0.1, 0.5, 7),
        lambda t: 0.1 + 0.2 * max(0, 1 - t / 7) ** 0.5,
    ),
    "exponential": (
        aj.exponential(0.3, 3, 0.5, end=0.05),
        lambda t: max(0.05, 0.3 * 0.5 ** (t / 3)),
    ),
    "piecewise": (
        aj.piecewise(0.3, ((5, 0.5), (9, 0.1))),
        lambda t: 0.3 * (0.5 if t >= 5 else 1) * (0.1 if t >= 9 else 1),
    ),
    "one_cycle": (
        aj.one_cycle(0.3, 13, warmup_steps=4, div_factor=3.0, final_div_factor=2.0),
        lambda t: cosine(4 - t, 0.3, 4, end=0.1) if t < 4 else cosine(t - 4, 0.3, 9, end=0.05),
    ),
    "one_cycle without a rise": (
        aj.one_cycle(0.3, 2, final_div_factor=5.0),
        lambda t: cosine(t, 0.3, 2, end=0.3 / 125),
    ),
    "cosine_restarts without an end": (
        aj.cosine_restarts(0.3, 5, warmup_steps=2, end=0.1, decay=0.9),
        lambda t: cosine(t % 5, 0.3 * 0.9 ** (t // 5), 5, 2, 0.1),
    ),
    "cosine_restarts": (
        aj.cosine_restarts(0.3, (3, 6, 12), decay=0.5, end=0.01),
        lambda t: (
            cosine(t, 0.3, 3, end=0.01)
            if t < 3
            else cosine(t - 3, 0.15, 6, end=0.01)
            if t < 9
            else cosine(t - 9, 0.075, 12, end=0.01)
        ),
    ),
    "join_schedules": (
        aj.join_schedules([aj.linear_warmup(0.3, 4), 0.2, aj.inverse_sqrt(0.3, 2)], [4, 9]),
        lambda t: 0.3 * t / 4 if t < 4 else 0.2 if t < 9 else inverse_sqrt(t - 9, 0.3, 2),
    ),
    "shift": (aj.shift(aj.cosine(0.3, 13), 5), lambda t: cosine(max(t - 5, 0), 0.3, 13)),
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
    "linear": (aj.linear(0.3, 0.02, 7), lambda: optax.linear_schedule(0.3, 0.02, 7)),
    "linear rise": (aj.linear(0.1, 0.3, 7), lambda: optax.linear_schedule(0.1, 0.3, 7)),
    "linear later": (
        aj.shift(aj.linear(0.3, 0.0, 7), 4),
        lambda: optax.linear_schedule(0.3, 0.0, 7, 4),
    ),
    "polynomial": (
        aj.shift(aj.polynomial(0.3, 0.01, 3, 9), 2),
        lambda: optax.polynomial_schedule(0.3, 0.01, 3, 9, 2),
    ),
    "polynomial root": (
        aj.polynomial(0.01, 0.3, 0.5, 9),
        lambda: optax.polynomial_schedule(0.01, 0.3, 0.5, 9),
    ),
    "exponential": (aj.exponential(0.3, 5, 0.4), lambda: optax.exponential_decay(0.3, 5, 0.4)),
    "exponential stairs": (
        aj.shift(aj.exponential(0.3, 5, 0.4, staircase=True, end=0.05), 3),
        lambda: optax.exponential_decay(0.3, 5, 0.4, 3, staircase=True, end_value=0.05),
    ),
    "exponential growth": (
        aj.exponential(0.01, 5, 2.5, end=0.3),
        lambda: optax.exponential_decay(0.01, 5, 2.5, end_value=0.3),
    ),
    "exponential warmup": (
        aj.join_schedules((aj.linear(0.1, 0.3, 4), aj.exponential(0.3, 5, 0.4)), (4,)),
        lambda: optax.warmup_exponential_decay_schedule(0.1, 0.3, 4, 5, 0.4),
    ),
    **{
        f"piecewise {shape}": (
            aj.piecewise(0.3, {9: 0.1, 5: 2.0, 17: 0.0}, shape=shape),
            lambda shape=shape: optax.piecewise_interpolate_schedule(
                shape, 0.3, {9: 0.1, 5: 2.0, 17: 0.0}
            ),
        )
        for shape in ("linear", "cosine")
    },
    "piecewise": (
        aj.piecewise(0.3, {9: 0.1, 5: 2.0, 17: 0.0}),
        lambda: optax.piecewise_constant_schedule(0.3, {9: 0.1, 5: 2.0, 17: 0.0}),
    ),
    "piecewise of none": (
        aj.piecewise(0.3, {}),
        lambda: optax.piecewise_constant_schedule(0.3),
    ),
    "one_cycle": (aj.one_cycle(0.3, 19), lambda: optax.cosine_onecycle_schedule(19, 0.3)),
    "one_cycle with all": (
        aj.one_cycle(0.3, 20, warmup_steps=8, div_factor=5.0, final_div_factor=50.0),
        lambda: optax.cosine_onecycle_schedule(20, 0.3, 0.4, 5.0, 50.0),
    ),
    "one_cycle linear": (
        aj.one_cycle(0.3, 20, cooldown_steps=3, shape="linear"),
        lambda: optax.linear_onecycle_schedule(20, 0.3),
    ),
    "cosine_restarts": (
        aj.cosine_restarts(0.3, (4, 6, 8), warmup_steps=2, end=0.02, decay=0.5),
        lambda: optax.sgdr_schedule(
            [
                {
                    "init_value": 0.0,
                    "peak_value": 0.3 * 0.5**i,
                    "warmup_steps": 2,
                    "decay_steps": n,
                    "end_value": 0.02,
                }
                for i, n in enumerate((4, 6, 8))
            ]
        ),
    ),
    "join_schedules": (
        aj.join_schedules([aj.constant(0.2), aj.cosine(0.3, 6), aj.linear(0.1, 0.3, 5)], [3, 8]),
        lambda: optax.join_schedules(
            [
                optax.constant_schedule(0.2),
                optax.cosine_decay_schedule(0.3, 6),
                optax.linear_schedule(0.1, 0.3, 5),
            ],
            [3, 8],
        ),
    ),
}
STEPS = [*range(30), 10_000]


def of_optax(theirs, dtype):
    with jax.numpy_dtype_promotion("standard"):
        return [float(theirs()(jnp.asarray(t, dtype))) for t in STEPS]


@pytest.mark.parametrize(("schedule", "theirs"), OPTAX.values(), ids=OPTAX)
def test_optax(schedule, theirs, x64):
    ours = [schedule(t) for t in STEPS]
    np.testing.assert_allclose(ours, of_optax(theirs, "float64"), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("schedule", "theirs"), OPTAX.values(), ids=OPTAX)
def test_optax_in_float32(schedule, theirs):
    ours = [schedule(t) for t in STEPS]
    np.testing.assert_allclose(ours, of_optax(theirs, "float32"), rtol=1e-6, atol=1e-7)


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
    aj.linear(0.3, 0.1, 7): [0.3, 0.1, 7],
    aj.polynomial(0.3, 0.1, 2, 7): [0.3, 0.1, 2.0, 7],
    aj.exponential(0.3, 7, 0.5, staircase=True): [0.3, 7, 0.5],
    aj.piecewise(0.3, {5: 0.5, 9: 0.1}, shape="linear"): [0.3, 5, 0.5, 9, 0.1],
    aj.one_cycle(0.3, 13): [0.3, 13, 0, 25.0, 1e4],
    aj.cosine_restarts(0.3, (3, 6)): [0.3, 3, 6, 0, 0.0, 1.0],
    aj.join_schedules([aj.constant(0.3), aj.linear_warmup(0.2, 7), 0.1], [3, 9]): [
        *(0.3, 0.2, 7, 0.1, 3, 9)
    ],
    aj.shift(aj.constant(0.3), 5): [0.3, 5],
}


@pytest.mark.parametrize(("schedule", "leaves"), LEAVES.items(), ids=repr)
def test_numbers_are_leaves(schedule, leaves):
    assert jax.tree.leaves(schedule) == leaves
    assert jax.tree.leaves(aj.adamw(schedule))[: len(leaves)] == leaves


@pytest.mark.parametrize("schedule", LEAVES, ids=repr)
def test_it_is_data(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert aj.parse(repr(aj.sgd(schedule))) == aj.sgd(schedule)
    other = jax.tree.map(lambda x: x + 1, schedule)
    assert other != schedule
    assert jax.tree.structure(other) == jax.tree.structure(schedule)


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
    "linear": lambda n: aj.linear(0.3, 0.1, n),
    "polynomial": lambda n: aj.polynomial(0.1, 0.3, 0.5, n),
    "exponential": lambda n: aj.exponential(0.3, n + 1, 0.5, end=0.1),
    "piecewise": lambda n: aj.piecewise(0.3, {n: 0.5, 2 * n + 1: 0.1}, shape="linear"),
    "one_cycle": lambda n: aj.one_cycle(0.3, n),
    "one_cycle linear": lambda n: aj.one_cycle(0.3, n, cooldown_steps=n // 4, shape="linear"),
    "cosine_restarts": lambda n: aj.cosine_restarts(0.3, n + 1, decay=0.5),
    "join_schedules": lambda n: aj.join_schedules((0.1, aj.linear(0.3, 0.1, 4)), (n,)),
    "shift": lambda n: aj.shift(aj.linear(0.3, 0.1, 4), n),
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
    assert aj.linear(0.1, 0.3, 7).peak == aj.polynomial(0.1, 0.3, 2, 7).peak == 0.3
    assert aj.piecewise(0.3, {3: 2.0, 5: 0.1}).peak == 0.6
    assert aj.exponential(0.1, 7, 2.0).peak is None
    assert aj.exponential(0.1, 7, 2.0, end=0.3).peak == 0.3
    assert aj.join_schedules((0.1, aj.constant(0.3)), (5,)).peak == 0.3
    assert aj.join_schedules((aj.constant(0.3), lambda t: 0.1), (5,)).peak is None
    assert aj.shift(lambda t: 0.1, 5).peak is None


def test_the_peak_of_a_sweep():
    sweep = jax.tree.map(lambda *xs: jnp.array(xs), aj.linear(0.1, 0.3, 7), aj.linear(0.2, 0.0, 7))
    shape = jax.vmap(lambda schedule: aj.relative(schedule)(0))(sweep)
    np.testing.assert_allclose(shape, [1 / 3, 1.0], rtol=1e-6)


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


def test_python_inside_of_a_schedule_sees_python():
    rate = {"now": 0.5}
    ours = aj.join_schedules([aj.constant(0.1), lambda t: rate["now"]], [1])
    tx = aj.sgd(ours)
    _, state = tx.update(1.0, tx.init(1.0))
    for now in (0.5, 0.25):
        rate["now"] = now
        assert tx.update(1.0, state)[0] == -now


# --- arithmetic -----------------------------------------------------------------

RISE, FALL = aj.linear_warmup(0.3, 7), aj.linear(0.3, 0.1, 9)

ARITHMETIC = {  # how it is printed: (the schedule, its values, its peak)
    "0.7 * cosine(0.1, 100)": (
        *(0.7 * aj.cosine(0.1, 100), lambda t: 0.7 * cosine(t, 0.1, 100), 0.7 * 0.1),
    ),
    "linear_warmup(0.3, 7) * linear(0.3, 0.1, 9)": (
        *(RISE * FALL, lambda t: 0.3 * rise(t, 7) * (0.3 - 0.2 * min(1, t / 9)), None),
    ),
    "linear_warmup(0.3, 7) + linear(0.3, 0.1, 9)": (
        *(RISE + FALL, lambda t: 0.3 * rise(t, 7) + 0.3 - 0.2 * min(1, t / 9), None),
    ),
    "linear_warmup(0.3, 7) - linear(0.3, 0.1, 9)": (
        *(RISE - FALL, lambda t: 0.3 * rise(t, 7) - 0.3 + 0.2 * min(1, t / 9), None),
    ),
    "linear_warmup(0.3, 7) / linear(0.3, 0.1, 9)": (
        *(RISE / FALL, lambda t: 0.3 * rise(t, 7) / (0.3 - 0.2 * min(1, t / 9)), None),
    ),
    "linear_warmup(0.3, 7) / 2.0": (RISE / 2, lambda t: 0.15 * rise(t, 7), 0.15),
    "linear_warmup(0.3, 7) + 0.5": (RISE + 0.5, lambda t: 0.3 * rise(t, 7) + 0.5, 0.8),
    "0.5 + linear_warmup(0.3, 7)": (0.5 + RISE, lambda t: 0.3 * rise(t, 7) + 0.5, 0.8),
    "linear_warmup(0.3, 7) - -0.5": (RISE - -0.5, lambda t: 0.3 * rise(t, 7) + 0.5, 0.8),
    "0.5 - linear_warmup(0.3, 7)": (0.5 - RISE, lambda t: 0.5 - 0.3 * rise(t, 7), None),
    "1.0 / linear(0.3, 0.1, 9)": (1 / FALL, lambda t: 1 / (0.3 - 0.2 * min(1, t / 9)), None),
    "-linear_warmup(0.3, 7)": (-RISE, lambda t: -0.3 * rise(t, 7), None),
    "-2.0 * linear_warmup(0.3, 7)": (-2 * RISE, lambda t: -0.6 * rise(t, 7), None),
    "-(linear_warmup(0.3, 7) * 2.0)": (-(RISE * 2), lambda t: -0.6 * rise(t, 7), None),
    "0.5 * (linear_warmup(0.3, 7) + 0.1)": (
        *(0.5 * (RISE + 0.1), lambda t: 0.15 * rise(t, 7) + 0.05, 0.2),
    ),
    "1.0 - (1.0 - linear_warmup(0.3, 7))": (1 - (1 - RISE), lambda t: 0.3 * rise(t, 7), None),
    "shift(2.0 * linear_warmup(0.3, 7), 3) * 2.0": (
        *(aj.shift(2 * RISE, 3) * 2, lambda t: 1.2 * rise(max(t - 3, 0), 7), 1.2),
    ),
}


@pytest.mark.parametrize("written", ARITHMETIC)
def test_arithmetic(written, x64):
    schedule, closed, peak = ARITHMETIC[written]
    np.testing.assert_allclose([schedule(t) for t in COUNTS], list(map(closed, COUNTS)), atol=1e-15)
    assert schedule.peak == (None if peak is None else pytest.approx(peak, rel=1e-12))
    assert repr(schedule) == written
    assert aj.parse(f"sgd({written})") == aj.sgd(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert jax.jit(lambda schedule: schedule(5))(schedule) == pytest.approx(closed(5), rel=1e-12)


def test_the_numbers_of_arithmetic_are_leaves():
    assert jax.tree.leaves(0.7 * aj.cosine(0.1, 100) + 1) == [0.7, 0.1, 100, 0, 0.0, 1.0]


def test_numbers_of_numpy_and_jax():
    for two in (np.float64(2), np.float32(2), np.array(2.0), jnp.float32(2), jnp.array(2.0)):
        assert two * RISE == 2 * RISE
        assert RISE / two == RISE / 2
    assert np.array([1.0, 2.0]) * RISE != 2 * RISE


def test_relative_of_a_product_is_relative():
    shape = aj.relative(0.5 * aj.cosine(0.1, 100))
    np.testing.assert_allclose(shape(30), aj.relative(aj.cosine(0.1, 100))(30), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"^relative: -1.0 \* constant\(0.1\) does not know its peak"
    ):
        aj.relative(-1 * aj.constant(0.1))


def test_arithmetic_with_functions_of_ones_own():
    def mine(t):
        return 2 / (t + 1)

    schedule = mine * aj.constant(0.5)
    assert repr(schedule) == "mine * constant(0.5)"
    assert schedule.peak is None
    tx = aj.sgd(schedule)
    assert tx.update(1.0, tx.init(1.0))[0] == -1.0


# --- Optax's, lifted --------------------------------------------------------------

LIFTED = {  # name: (arguments, keywords)
    "constant_schedule": ((0.3,), {}),
    "linear_schedule": ((0.0, 0.3, 7), {}),
    "polynomial_schedule": ((0.3, 0.1, 2, 7), {"transition_begin": 3}),
    "exponential_decay": ((0.3, 5, 0.4), {"staircase": True, "end_value": 0.05}),
    "cosine_decay_schedule": ((0.3, 13), {"alpha": 0.1}),
    "warmup_constant_schedule": ((0.0, 0.3, 4), {}),
    "warmup_cosine_decay_schedule": ((0.0, 0.3, 4, 13), {}),
    "warmup_exponential_decay_schedule": ((0.1, 0.3, 4, 5, 0.4), {}),
    "piecewise_constant_schedule": ((0.3, {5: 0.5, 9: 0.1}), {}),
    "piecewise_interpolate_schedule": (("cosine", 0.3, {5: 0.5, 9: 0.1}), {}),
    "cosine_onecycle_schedule": ((19, 0.3), {}),
    "linear_onecycle_schedule": ((20, 0.3), {}),
    "sgdr_schedule": (
        ([{"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 2, "decay_steps": 5}] * 2,),
        {},
    ),
    "join_schedules": (([aj.cosine(0.3, 9), aj.constant(0.1)], [5]), {}),
}


def test_every_schedule_of_optax_is_lifted():
    endings = ("_schedule", "_schedules", "_decay")
    public = [x for x in dir(optax.schedules) if x.endswith(endings) and not x.startswith("_")]
    assert set(public) == set(LIFTED)


@pytest.mark.parametrize("name", LIFTED)
def test_lifted(name, x64):
    args, kwargs = LIFTED[name]
    make = getattr(optax, name)
    ours = aj.schedule(make)(*args, **kwargs)
    assert isinstance(ours, aj.Schedule)
    assert repr(ours).startswith(f"{name}(")
    expected = of_optax(lambda: make(*args, **kwargs), "float64")
    traced = jax.jit(lambda schedule, t: schedule(t))
    for found in ([ours(t) for t in STEPS], [traced(ours, t) for t in STEPS]):
        assert {x.dtype.name for x in found} == {"float64"}
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours == aj.schedule(make)(*args, **kwargs)
    assert hash(again) == hash(ours)
    assert aj.parse(repr(aj.sgd(ours)), names={name: aj.schedule(make)}) == aj.sgd(ours)
    tx = aj.sgd(2 * aj.shift(ours, 3))
    state = tx.init(1.0)
    for _ in range(5):
        update, state = tx.update(1.0, state)
    assert update == pytest.approx(-2 * expected[1], rel=1e-12)


def test_the_peak_of_a_lifted_schedule():
    warmup = aj.schedule(optax.warmup_cosine_decay_schedule)(0.0, 0.3, 4, 13)
    assert warmup.peak == aj.schedule(optax.cosine_onecycle_schedule)(19, 0.3).peak == 0.3
    decay = aj.schedule(optax.cosine_decay_schedule)(0.3, 13)
    assert decay.peak is None  # of Optax's words only this one says it
    assert decay != aj.schedule(optax.cosine_decay_schedule)(0.2, 13)


def test_arrays_in_a_lifted_schedule_are_leaves():
    make = aj.schedule(optax.cosine_decay_schedule)
    rates = jnp.array([0.1, 0.2])
    swept = jax.vmap(lambda rate: make(rate, 13)(5))(rates)
    np.testing.assert_allclose(swept, [make(0.1, 13)(5), make(0.2, 13)(5)], rtol=1e-6)
