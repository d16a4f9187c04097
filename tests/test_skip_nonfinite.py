"""A step with a NaN or an infinity in its gradients is a step that was not."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.experimental import checkify
from support import assert_equal, avals, stepper
from test_contexts import problem

import adamw_jax as aj

ROOT = Path(__file__).parent.parent


def spoilt(grads, value=jnp.nan):
    """The gradients with one bad element."""
    return {**grads, "a": grads["a"].at[0, 0].set(value)}


def run(tx, params, grads, extra=lambda params: {}):
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


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np, optax
import adamw_jax as aj
from jax.sharding import NamedSharding, PartitionSpec as P

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
draw = lambda: {"w": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
                "b": jnp.asarray(rng.normal(size=8), jnp.float32)}
params, grads = draw(), [draw() for _ in range(6)]
for i in (1, 5):
    grads[i]["w"] = grads[i]["w"].at[5, 1].set(jnp.nan)  # on the third device alone
tx = aj.chain(aj.probe("g"), aj.skip_nonfinite(aj.observe(aj.adamw(0.1), every=2)))

@jax.jit
def step(params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state

def run(place):
    p = place(params)
    s = jax.jit(tx.init)(p)
    for g in grads:
        p, s = step(p, s, place(g))
    return p, s

plain = run(lambda tree: tree)
sharded = run(lambda tree: jax.device_put(tree, NamedSharding(mesh, P("data"))))
assert len(sharded[0]["w"].sharding.device_set) == 8
found = aj.metrics(sharded[1])
assert found["skipped"] == 2 and found["skipped_in_a_row"] == 1
assert found["g/nonfinite"] == 1 and np.isnan(found["g/largest"])
same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
jax.tree.map(same, plain, sharded)
print("same")
"""


def test_on_a_mesh_of_eight_devices():
    """Every device skips when one shard of one of them holds a NaN."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_A_MESH]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr
