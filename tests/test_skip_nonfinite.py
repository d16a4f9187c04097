"""A step with a NaN or an infinity in its gradients is a step that was not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.experimental import checkify
from jax.sharding import PartitionSpec
from support import assert_equal, avals, nothing, stepper
from test_contexts import problem

import adamw_jax as aj


def spoilt(grads, value=jnp.nan):
    """The gradients with one bad element."""
    return {**grads, "a": grads["a"].at[0, 0].set(value)}


def run(tx, params, grads, extra=nothing):
    step, state = stepper(tx, extra, jitted=True), tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@zoo.rows()
def test_a_bad_step_changes_nothing(row, value):
    params, grads = problem(row)
    tx = aj.skip_nonfinite(row.tx())
    mixed = [grads[0], spoilt(grads[1], value), grads[1], spoilt(grads[2], value), grads[2]]
    after, state = run(tx, params, mixed, row.extra)
    expected, inner = run(tx, params, grads[:3], row.extra)
    assert_equal((after, state.tx), (expected, inner.tx))
    assert (state.skipped, state.in_a_row) == (2, 0)


@zoo.rows()
def test_good_steps_are_those_of_the_optimizer(row):
    params, grads = problem(row)
    after, state = run(aj.skip_nonfinite(row.tx()), params, grads, row.extra)
    expected, inner = run(row.tx(), params, grads, row.extra)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6)
    jax.tree.map(close, (after, state.tx), (expected, inner))
    assert state.skipped == 0


def test_it_gives_up_after_so_many_in_a_row():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    tx = aj.skip_nonfinite(aj.adamw(0.1), max_consecutive=3)
    bad, state = spoilt(params), tx.init(params)
    seen = []
    for g in [bad, bad, params, bad, bad, bad, bad]:
        updates, state = tx.update(g, state, params)
        seen.append((int(state.in_a_row), bool(jnp.all(jnp.isnan(updates["b"])))))
        assert all(bool(jnp.all(updates["b"] == 0)) == (n in (1, 2)) for n, _ in seen[-1:])
    assert seen == [
        (1, False),
        (2, False),
        (0, False),
        (1, False),
        (2, False),
        (3, True),
        (4, True),
    ]
    assert state.skipped == 6
    # what was learnt before is still there
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.tx))
    metrics = aj.metrics(state)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (6, 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_dtypes(dtype):
    params = {"a": jnp.ones((2, 2), dtype), "b": jnp.ones(3, dtype)}
    tx = aj.skip_nonfinite(aj.adam(0.1), max_consecutive=2)
    state = tx.init(params)
    for expected in (0, np.nan):
        updates, state = tx.update(spoilt(params), state, params)
        assert updates["b"].dtype == dtype
        np.testing.assert_array_equal(
            np.real(np.asarray(updates["b"], np.complex64)), np.full(3, expected)
        )


def test_it_belongs_around_accumulation():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}

    def moved(tx):
        state, update, seen = tx.init(params), jax.jit(tx.update), []
        for g in (params, spoilt(params), params, params, params):
            with jax.numpy_dtype_promotion("standard"):  # which Optax needs
                updates, state = update(g, state, params)
            seen.append(bool(jnp.any(updates["b"] != 0)))
        return seen

    around = aj.skip_nonfinite(optax.MultiSteps(aj.sgd(0.1), 2).gradient_transformation())
    assert moved(around) == [False, False, True, False, True]
    inside = optax.MultiSteps(aj.skip_nonfinite(aj.sgd(0.1)), 2)
    assert not any(moved(inside))  # as the docstring says


def test_state_is_constant_and_scans():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    tx = aj.skip_nonfinite(aj.adamw(0.1))
    state = tx.init(params)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), params, spoilt(params), params)
    final, _ = jax.lax.scan(lambda s, g: (tx.update(g, s, params)[1], None), state, stacked)
    assert avals(final) == avals(state)
    assert (final.skipped, final.in_a_row) == (1, 0)


def test_nan_checkers_speak_when_it_gives_up_and_not_before():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    tx = aj.skip_nonfinite(aj.adamw(0.1), max_consecutive=2)
    with jax.numpy_dtype_promotion("standard"):
        checked = checkify.checkify(jax.jit(tx.update), errors=checkify.float_checks)
        error, (_, state) = checked(spoilt(params), tx.init(params), params)
        assert error.get() is None
        error, _ = checked(spoilt(params), state, params)
        assert error.get() is not None


def test_what_it_is():
    tx = aj.skip_nonfinite(aj.adamw(0.1), max_consecutive=3)
    assert repr(tx) == "skip_nonfinite(adamw(0.1), max_consecutive=3)"
    assert aj.swap(tx, "tx.weight_decay", aj.identity()) != tx
    with pytest.raises(ValueError, match="max_consecutive is 0"):
        aj.skip_nonfinite(aj.sgd(0.1), max_consecutive=0)
    lifted = aj.skip_nonfinite(optax.sgd(0.1))
    assert aj.eval_params(lifted, lifted.init(1.0), 1.0) == 1.0


def test_on_a_mesh_of_eight_devices():
    """Every device skips when one shard of one of them holds a NaN."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = lambda tree: jax.device_put(tree, jax.NamedSharding(mesh, PartitionSpec("data")))
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params, *grads = ({"w": draw(16, 4), "b": draw(8)} for _ in range(7))
    for i in (1, 5):
        grads[i]["w"] = grads[i]["w"].at[5, 1].set(jnp.nan)  # on the third device alone
    tx = aj.chain(aj.probe("g"), aj.skip_nonfinite(aj.observe(aj.adamw(0.1), every=2)))
    plain = run(tx, params, grads)
    sharded = run(tx, spread(params), [spread(g) for g in grads])
    assert len(sharded[0]["w"].sharding.device_set) == 8
    found = aj.metrics(sharded[1])
    assert (found["skipped"], found["skipped_in_a_row"]) == (2, 1)
    assert found["g/nonfinite"] == 1
    assert np.isnan(found["g/largest"])
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, plain, sharded)
