"""Arithmetic at its edges: dtypes, zeros, infinities, empty things, full counters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import zoo
from support import GRADIENTS, THETA, assert_equal, avals, nothing, stepper, stream, walk

import adamw_jax as aj

INT32_MAX = np.iinfo(np.int32).max


def epsilon(dtype):
    return float(jnp.finfo(dtype).eps)


def updates_of(row, params, grads, **hyperparameters):
    """The updates over a stream of gradients, at parameters given for each; and the state."""
    tx = row.tx(**hyperparameters)
    update = lambda g, state, p: tx.update(g, state, p, **row.extra(p))
    update = update if row.extra is nothing else jax.jit(update)  # see support.stepper
    state, updates = tx.init(params[0]), []
    for p, g in zip(params, grads, strict=True):
        u, state = update(g, state, p)
        updates.append(u)
    return updates, state


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


# --- dtypes ------------------------------------------------------------------


@zoo.rows("rounding")
def test_every_dtype_follows_the_reference(row, dtype):
    """To a few units in the last place of the dtype, from the same 16-bit gradients.

    The reference's parameters are fed back at every step, so that only the
    arithmetic of the update is judged, not the rounding of the parameters."""
    if jnp.issubdtype(dtype, jnp.complexfloating) and "complex" in row.skips:
        pytest.skip(row.skips["complex"])
    wide = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    theta, grads = stream(12, row.shape, dtype=wide)
    theta, *grads = (np.asarray(x).astype(jnp.dtype(dtype)) for x in (theta, *grads))
    exact = row.in_float32()
    path = row.path(theta.astype(wide), [g.astype(wide) for g in grads], **exact)
    before = [theta.astype(wide), *path[:-1]]
    params = [jnp.asarray(p.astype(theta.dtype)) for p in before]
    updates, state = updates_of(row, params, [jnp.asarray(g) for g in grads], **exact)
    inside = "float64" if dtype == "float64" else "float32"
    for update, new, old in zip(updates, path, before, strict=True):
        assert update.dtype == dtype
        error = np.max(np.abs(np.asarray(update, wide) - (new - old)))
        # Arithmetic in `inside`, one rounding to the dtype at the end, weight decay
        # reads parameters that were rounded to it; and the reference rounds, too.
        bound = 4 * epsilon(dtype) + 16 * epsilon(inside) + 1e-12
        assert error <= bound * np.max(np.abs(new - old))
    for x in floats(state):
        assert jnp.finfo(x.dtype).dtype == inside


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("given", ["bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("piece", [aj.scale_by_momentum, aj.second_moment, aj.sum_of_squares])
def test_an_accumulator_has_the_dtype_one_asks_for(piece, stored, given, x64):
    """And what is passed on has the gradient's; complex has no 16-bit kind and takes 64 bits."""
    tx = piece(dtype=stored) if piece is aj.sum_of_squares else piece(0.5, dtype=stored)
    params = jnp.ones(3, given)
    out, state = tx.update(params, tx.init(params), params)
    complex_state = given == "complex64" and piece is aj.scale_by_momentum
    finest = "complex128" if stored == "float64" else "complex64"
    assert floats(state)[0].dtype == (finest if complex_state else stored)
    real = piece is not aj.scale_by_momentum
    assert out.dtype == ("float32" if given == "complex64" and real else given)


def test_a_16_bit_second_moment_that_one_asks_for_stays_where_it_is():
    """Why float32 is the default: 0.999 v rounds to v.  From 0.5, towards 1, it should move."""
    for dtype, moves in (("bfloat16", False), (None, True)):
        tx = aj.second_moment(0.999, dtype=dtype)
        state = tx.init(jnp.zeros((), "bfloat16"))
        state = jax.tree.map(lambda v: jnp.full_like(v, 0.5), state)
        for _ in range(10):
            _, state = tx.update(jnp.ones((), "bfloat16"), state)
        assert bool(state.second_moment > 0.5) is moves


def test_the_precision_of_the_slots_can_be_chosen_inside_an_optimizer():
    tx = aj.swap(
        aj.adamw(0.1), "direction.numerator.0", aj.scale_by_momentum(0.9, dtype="bfloat16")
    )
    params = jnp.ones(3)
    update, state = tx.update(params, tx.init(params), params)
    assert update.dtype == jnp.float32
    assert state["direction"]["numerator"][0].momentum.dtype == jnp.bfloat16
    assert state["direction"]["denominator"]["moment"].second_moment.dtype == jnp.float32


@zoo.rows(alike=False)
def test_a_tree_of_many_dtypes(row, x64):
    """Each leaf in its own; nothing is promoted from one leaf to the next."""
    params = {
        name: jnp.ones(row.shape, name) for name in ("bfloat16", "float16", "float32", "float64")
    }
    tx = aj.chain(aj.clip_by_global_norm(1.0), row.tx())
    updates, state = tx.update(params, tx.init(params), params, **row.extra(params))
    assert {name: u.dtype.name for name, u in updates.items()} == {name: name for name in params}
    assert {x.dtype.name for x in floats(state)} <= {"float32", "float64"}


@zoo.rows()
def test_gradients_in_another_dtype_than_the_parameters(row):
    """The update has the gradient's dtype, the state the parameter's, at least float32."""
    for p, g in (("float32", "bfloat16"), ("bfloat16", "float32")):
        params, grads = jnp.ones(row.shape, p), jnp.ones(row.shape, g)
        updates, state = updates_of(row, [params] * 2, [grads] * 2)
        assert {u.dtype.name for u in updates} == {g}
        assert {x.dtype.name for x in floats(state)} <= {"float32"}


# --- zeros -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"], indirect=True)
@zoo.rows("zero")
def test_nothing_comes_of_nothing(row, dtype):
    if dtype == "complex64" and "complex" in row.skips:
        pytest.skip(row.skips["complex"])
    zero = jnp.zeros(row.shape, dtype)
    updates, state = updates_of(row, [zero] * 3, [zero] * 3)
    for u in updates:
        assert_equal(jnp.abs(u), jnp.abs(zero))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in floats(state))


@zoo.rows("zero")
def test_nothing_comes_of_nothing_without_an_eps(row):
    """0 / 0 is 0 here: a parameter that never got a gradient does not move."""
    if "eps" not in row.others:
        pytest.skip("it has no eps")
    zero = jnp.zeros(row.shape)
    updates, _ = updates_of(row, [zero] * 2, [zero] * 2, eps=0.0)
    for u in updates:
        assert_equal(jnp.abs(u), zero)


@zoo.rows("derivative")
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_derivatives_at_a_zero_gradient_are_finite(row, kind):
    """With respect to the gradient, through two updates, forwards and backwards."""
    if kind == "float16" and "float16 derivative" in row.skips:
        pytest.skip(row.skips["float16 derivative"])
    # Adam's slope at 0 is lr / eps, which float16 can hold only for a small rate.
    tx, params, zero = row.tx(1e-4), jnp.ones(row.shape, kind), jnp.zeros(row.shape, kind)

    def moved(grads):
        state, p = tx.init(params), params
        for _ in range(2):
            u, state = tx.update(grads, state, p, **row.extra(p))
            p = p + u
        return p

    @jax.jit
    def slopes():
        return jax.jvp(moved, (zero,), (params,))[1], jax.vjp(moved, zero)[1](params)[0]

    for slope in slopes():
        assert jnp.all(jnp.isfinite(slope))


# --- trees -------------------------------------------------------------------


@zoo.rows(alike=False)
def test_leaves_that_are_not_there(row):
    """None and MaskedNode hold no array, and stay what they are."""
    w = jnp.full(row.shape, 0.5)
    bare = {"w": w}
    holes = {"w": w, "none": None, "masked": optax.MaskedNode()}
    tx = row.tx()
    expected, _ = tx.update(bare, tx.init(bare), bare, **row.extra(bare))
    updates, _ = tx.update(holes, tx.init(holes), holes, **row.extra(holes))
    assert_equal(updates, {**expected, "none": None, "masked": optax.MaskedNode()})


@zoo.rows(alike=False)
@pytest.mark.parametrize("tree", [{}, (), {"a": {}, "b": None}], ids=["dict", "tuple", "nested"])
def test_trees_without_leaves(row, tree):
    tx = row.tx()
    state = tx.init(tree)
    updates, new = tx.update(tree, state, tree, **row.extra(tree))
    assert updates == tree
    assert avals(new) == avals(state)


@zoo.rows(alike=False)
def test_leaves_without_elements_or_axes(row):
    params = {"empty": jnp.ones((0, 3)), "scalar": jnp.ones(()), "w": jnp.ones(row.shape)}
    tx = row.tx()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params, **row.extra(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_tree_all_finite((updates, state))


@zoo.rows("leafwise")
def test_a_tree_is_updated_as_its_leaves_alone_would_be(row):
    """To the bit: the one traced update per leaf shape is the whole-tree update."""
    shapes = {"a": (3,), "b": {"c": (), "d": (3,)}, "e": [(2, 3), (0,), (3,)]}
    is_shape = lambda x: isinstance(x, tuple)
    rng = np.random.default_rng(0)
    draw = lambda: jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=is_shape
    )
    params, grads = draw(), [draw() for _ in range(3)]
    together = walk(row.tx(), params, grads, row.extra)
    for i, leaf in enumerate(jax.tree.leaves(params)):
        alone = walk(row.tx(), leaf, [jax.tree.leaves(g)[i] for g in grads], row.extra)
        inside = [jax.tree.leaves(tree)[i] for tree in together]
        if "bitwise" in row.skips:
            chex.assert_trees_all_close(alone, inside, rtol=1e-6, atol=0)
        else:
            assert_equal(alone, inside)


# --- large, small and not a number -------------------------------------------


@zoo.rows()
def test_full_counters_stay_full(row):
    """At the largest int32 a count stops; the update is still finite."""
    params = jnp.ones(row.shape)
    tx = row.tx()
    state = tx.init(params)
    fill = lambda x: jnp.full_like(x, INT32_MAX) if jnp.issubdtype(x.dtype, jnp.integer) else x
    full = jax.tree.map(fill, state)
    updates, new = tx.update(params, full, params, **row.extra(params))
    chex.assert_tree_all_finite((updates, floats(new)))
    counts = lambda s: [x for x in jax.tree.leaves(s) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert_equal(counts(new), counts(full))


DECAYS = ("b1", "b2", "b3", "decay", "momentum")


def spiked(steps, at=3, size=1e20):
    """Gradients of 0.1 and -0.2, and once a gigantic first one."""
    grads = np.tile(np.float32([0.1, -0.2]), (steps, 1))
    grads[at, 0] = size
    return grads


@zoo.rows()
def test_a_spike_passes(row):
    """A gradient of 1e20, whose square float32 cannot hold: everything stays finite."""
    params = [jnp.ones(2)] * 50
    updates, state = updates_of(row, params, spiked(50))
    chex.assert_tree_all_finite((updates, floats(state)))


@zoo.rows(alike=False)
def test_a_spike_passes_in_a_matrix(row):
    """Also where matrices are multiplied and sums taken over them."""
    grads = np.random.default_rng(0).normal(size=(15, *row.shape)).astype(np.float32)
    grads[3, 0, 0] = 1e20
    updates, state = updates_of(row, [jnp.ones(row.shape)] * 15, grads)
    chex.assert_tree_all_finite((updates, floats(state)))


@zoo.rows("forgets")
def test_a_spike_is_forgotten(row):
    """The same updates in the end as if it had never been (0.999^n takes its time)."""
    longest = {name: min(x, 0.999) for name, x in row.in_float32().items() if name in DECAYS}
    steps, tx, params = 120_000, row.tx(**longest), jnp.ones(2)

    @jax.jit
    def last(grads):
        def body(carry, g):
            state, _ = carry
            update, state = tx.update(g, state, params, **row.extra(params))
            return (state, update), None

        return jax.lax.scan(body, (tx.init(params), jnp.zeros(2)), grads)[0]

    (_, with_spike), (_, without) = last(spiked(steps)), last(spiked(steps, size=0.1))
    # A float32 average comes to rest within eps / (1 - decay) of its limit.
    np.testing.assert_allclose(with_spike, without, rtol=epsilon("float32") / (1 - 0.999))


def test_adamw_follows_the_reference_through_a_spike():
    """Not only finite: float32 AdamW is right in every step, where Optax's freezes for good."""
    adamw = next(row for row in zoo.ROWS if row.name == "adamw")
    # 1e37 is stored; over 1 - 0.999^t it fits into float32 from t = 30 on.  A spike before
    # that gives steps a few times too large until then.
    for at, right_from in ((100, 0), (3, 30)):
        grads = spiked(150, at)
        exact = np.asarray(adamw.path(np.zeros(2), grads.astype(float)))
        params = [jnp.asarray(p, jnp.float32) for p in (np.zeros(2), *exact[:-1])]
        updates = np.asarray(updates_of(adamw, params, grads)[0])
        moves = np.diff(exact, axis=0, prepend=0)
        np.testing.assert_allclose(
            updates[right_from:], moves[right_from:], rtol=1e-5, atol=1e-8 * adamw.learning_rate
        )
        assert np.max(np.abs(updates)) < 4 * adamw.learning_rate
    with jax.numpy_dtype_promotion("standard"):
        theirs = walk(optax.adamw(0.1, weight_decay=0.0), jnp.zeros(2), jnp.asarray(spiked(60)))
    assert theirs[-1][0] == theirs[4][0]  # the complaint this answers: it never moves again


@zoo.rows("elementwise")
def test_a_nan_stays_in_its_element(row):
    theta, grads = stream(5, row.shape)
    theta, clean = theta.astype(np.float32), np.asarray(grads, np.float32)
    dirty = clean.copy()
    dirty[1].flat[1] = np.nan
    ours, same = (walk(row.tx(), jnp.asarray(theta), g, row.extra) for g in (dirty, clean))
    ill = np.isnan(np.asarray(ours))
    expected = np.zeros_like(ill)
    expected.reshape(5, -1)[1:, 1] = True  # from the second step on, element 1 and no other
    np.testing.assert_array_equal(ill, expected)
    np.testing.assert_array_equal(np.asarray(ours)[~ill], np.asarray(same)[~ill])


@zoo.rows("tiny")
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_tiny_gradients(row, kind):
    """Denormal ones, and ones whose square is: as the reference, to the size of a step.

    A flushed denormal may count as 0, so the error is measured against the
    learning rate, of which an update is at most a few times."""
    info = jnp.finfo(kind)
    sizes = [info.smallest_subnormal, info.tiny, np.sqrt(info.tiny.astype(float)) / 4]
    grads = [np.full(row.shape, s).astype(kind) for s in sizes]
    theta = np.zeros(row.shape)
    path = row.path(theta, [g.astype(float) for g in grads])
    before = [theta, *path[:-1]]
    updates, _ = updates_of(row, [jnp.asarray(p, kind) for p in before], grads)
    for update, new, old in zip(updates, path, before, strict=True):
        np.testing.assert_allclose(
            np.asarray(update, float),
            new - old,
            rtol=4 * epsilon(kind),
            atol=1e-6 * row.learning_rate,
        )


# --- precision and constancy -------------------------------------------------


def test_float32_is_four_times_as_accurate_as_optax():
    """On the worked example, against float64; expm1 against 1 - b**t makes the difference."""
    exact = references.adamw(THETA, GRADIENTS, learning_rate=0.1, weight_decay=0.01)
    ours = walk(aj.adamw(0.1, weight_decay=0.01), jnp.float32(THETA), GRADIENTS)
    with jax.numpy_dtype_promotion("standard"):
        theirs = walk(optax.adamw(0.1, weight_decay=0.01), jnp.float32(THETA), GRADIENTS)
    error = lambda path: np.max(np.abs(np.asarray(path, float) - exact))
    assert error(theirs) > 1e-7
    assert error(ours) <= error(theirs) / 4


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_bias_correction_is_exact_to_the_last_digits_of_float32(decay):
    tx = aj.bias_correction(decay)
    for t in (1, 2, 10, 1000, 100_000):
        state = jax.tree.map(lambda c, t=t: jnp.full_like(c, t - 1), tx.init(jnp.ones(())))
        out, _ = tx.update(jnp.ones(()), state)
        # the decay is one float32, so the reference takes that float32
        exact = 1 / -np.expm1(t * np.log(np.float64(np.float32(decay))))
        np.testing.assert_allclose(out, exact, rtol=4 * epsilon("float32"))


@zoo.rows()
@pytest.mark.parametrize(
    ("kind", "rate"), [("bfloat16", 0.1), ("float32", aj.linear_warmup(0.1, 10))]
)
def test_the_state_never_changes_its_type(row, kind, rate):
    """Structure, shapes, dtypes and weak types: from init, eager, and over a scan of 100."""
    params = {"a": jnp.ones(row.shape, kind), "b": [jnp.ones((), kind)]}
    tx = row.tx(rate)
    step = stepper(tx, row.extra)
    start = params, tx.init(params)
    once = step(*start, params)
    assert avals(once) == avals(start)
    assert avals(step(*once, params)) == avals(start)
    body = lambda carry, _: (step(*carry, params), None)
    end, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, length=100))(start)
    assert avals(end) == avals(start)


@zoo.rows()
def test_python_numbers_are_parameters_too(row):
    """Weakly typed at first sight, never in the state."""
    if row.shape == () or "leafwise" in row.skips:
        pytest.skip("it needs a parameter with axes")
    tx = row.tx()
    state = tx.init(0.5)
    assert not any(x.weak_type for x in jax.tree.leaves(state))
    update, new = tx.update(0.2, state, 0.5, **row.extra(0.5))
    assert avals(new) == avals(state)
    p = jnp.float32(0.5)
    array, _ = tx.update(jnp.float32(0.2), tx.init(p), p, **row.extra(p))
    assert update == array


def test_numpy_parameters_in_float64_warn_of_nothing():
    """What NumPy makes by default; JAX holds it in float32, and warnings are errors here."""
    params = {"k": np.ones((4, 3)), "b": np.ones(3)}
    for tx in (aj.adamw(0.1), aj.soap(0.1), aj.prodigy(1.0), aj.adafactor(0.1), aj.sophia_h(0.1)):
        loss = lambda p: jnp.sum(p["k"] ** 2)
        updates, _ = tx.update(params, tx.init(params), params, obj_fn=loss)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_a_block_of_nothing_keeps_its_shape():
    tx = aj.adam_mini(0.1)
    for shape in ((0, 3), (3, 0)):
        state = tx.init(jnp.ones(shape))
        assert avals(tx.update(jnp.ones(shape), state, jnp.ones(shape))[1]) == avals(state)
