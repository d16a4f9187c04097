"""Accumulation: `every` small batches are one large one, to every optimizer and reader."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import zoo
from flax import nnx
from jax.extend.core import jaxprs_in_params
from support import assert_equal, avals, stream

import adamw_jax as aj
from adamw_jax.flax import TrainState, evaluation_model

EVERY = 3


def run(tx, params, grads, extra):
    """Parameters and state after some gradients, in one scan."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params, **extra(params))
        return (optax.apply_updates(params, updates), state), updates

    scan = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    return scan((params, tx.init(params)), grads)


@zoo.rows(alike=False)
def test_small_batches_are_a_large_one(row, x64):
    """For every optimizer: two updates, and a call more than a multiple keeps what it has."""
    shape = row.shape
    theta, grads = stream(2 * EVERY + 1, shape)
    grads = jnp.asarray(np.array(grads))
    whole = grads[: 2 * EVERY].reshape(2, EVERY, *shape).mean(1)
    tx = row.tx(aj.cosine(row.learning_rate, 10))
    small, each = run(aj.accumulate(tx, EVERY), jnp.asarray(theta), grads, row.extra)
    large, _ = run(tx, jnp.asarray(theta), whole, row.extra)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)
    close(small[0], large[0])
    jax.tree.map(close, small[1].tx, large[1])
    assert small[1].count == 1
    np.testing.assert_array_equal(small[1].mean, grads[-1])
    assert not np.any(each[np.arange(2 * EVERY + 1) % EVERY != EVERY - 1])
    assert avals(small[1]) == avals(aj.accumulate(tx, EVERY).init(jnp.asarray(theta)))


def test_the_mean_is_kept_in_float32():
    params = jnp.zeros(2, jnp.bfloat16)
    tx = aj.accumulate(aj.sgd(1.0), 3)
    state = tx.init(params)
    for g in (256.0, 1.0, 1.0):
        update, state = tx.update(jnp.full(2, g, jnp.bfloat16), state, params)
        assert state.mean.dtype == jnp.float32
        assert update.dtype == jnp.bfloat16
    np.testing.assert_array_equal(update, jnp.full(2, -86.0, jnp.bfloat16))


def test_a_bad_batch_is_forgotten():
    tx = aj.accumulate(aj.sgd(1.0), 2)
    state = tx.init(0.0)
    for g, expected in ((np.nan, 0), (1.0, np.nan), (2.0, 0), (4.0, -3.0)):
        update, state = tx.update(g, state)
        np.testing.assert_array_equal(update, expected)
    tx = aj.skip_nonfinite(tx)  # outside, it leaves it out of the mean
    state = tx.init(0.0)
    for g, expected in ((np.nan, 0), (1.0, 0), (3.0, -2.0)):
        update, state = tx.update(g, state)
        np.testing.assert_array_equal(update, expected)


def always(jaxpr):
    """The names of the operations that a program does, but for those in a branch."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name != "cond":
            yield from (x for inner in jaxprs_in_params(eqn.params) for x in always(inner))


def test_the_optimizer_runs_at_updates_alone():
    """A schedule that is Python is called out of jit; in it, the work stands in a branch."""
    tx = aj.accumulate(aj.chain(aj.orthogonalize(), aj.scale(-1.0)), 4)
    state = tx.init(jnp.eye(8))
    names = list(always(jax.make_jaxpr(tx.update)(jnp.eye(8), state, jnp.eye(8)).jaxpr))
    assert "cond" in names
    assert "dot_general" not in names
    rate = {"now": 0.5}
    tx = aj.accumulate(aj.sgd(lambda count: rate["now"] if count >= 0 else 0.0), 2)
    state = tx.init(0.0)
    for rate["now"], expected in ((0.5, 0.0), (0.25, -0.25)):
        update, state = tx.update(1.0, state)
        assert update.item() == expected
    foreign = aj.accumulate(optax.sgd(0.5), 2)
    update, state = foreign.update(1.0, foreign.init(0.0))
    assert foreign.update(2.0, state)[0].item() == -0.75


def test_batched():
    tx = aj.accumulate(aj.adamw(0.1), 2)
    params = jnp.arange(3.0)
    states = jax.vmap(tx.init)(params)
    states = states._replace(count=jnp.array([0, 1, 0]))  # each at a place of its own
    updates, states = jax.vmap(tx.update)(params + 1, states, params)
    assert states.count.tolist() == [1, 0, 1]
    assert (np.asarray(updates) != 0).tolist() == [False, True, False]


# --- readers ---------------------------------------------------------------------------------


@zoo.rows(alike=False)
def test_every_reader_looks_through(row):
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((2, 3))}
    tx = row.tx(0.05)
    around = aj.accumulate(tx, EVERY)
    assert aj.parse(repr(around)) == around
    assert aj.lint(around) == aj.lint(tx)
    inner, outer = aj.describe(tx, params), aj.describe(around, params)
    assert outer.bytes_per_parameter == inner.bytes_per_parameter + 4
    seen = lambda x: [(d.weight_decay, d.learning_rate, d.route) for d in x.leaves]
    assert seen(outer) == seen(inner)
    assert outer.warnings == inner.warnings
    state = tx.init(params)
    carried, report = aj.transplant(state, tx, around, params)
    assert len(report.kept) == len(jax.tree.leaves(state)), str(report)
    back = aj.transplant(carried, around, tx, params)
    assert not back.report.reset
    assert_equal(back.state, state)


def test_read_counts_updates():
    tx = aj.accumulate(aj.observe(aj.adamw(aj.cosine(0.1, 10))), 2)
    params = jnp.ones(3)
    state = tx.init(params)
    for i in range(5):
        _, state = tx.update(params, state, params)
        read = aj.read(state)
        assert (read["step"], read["mini_step"]) == ((i + 1) // 2, (i + 1) % 2)
    assert aj.metrics(state)["grad_rms"].item() == 1
    assert read["learning_rate"] == aj.cosine(0.1, 10)(1)
    for tx in (aj.accumulate(aj.scale_by_adam(), 2), aj.accumulate(aj.sgd(0.1), 2)):
        _, state = tx.update(params, tx.init(params), params)
        assert aj.read(state)["step"] == 0
    begun = aj.reset(state)
    assert_equal(begun, tx.init(params))
    assert_equal(aj.reset(state, "mean").mean, jnp.zeros(3))


def test_averages_inside_are_evaluated():
    free = aj.schedule_free_adamw(0.1)
    tx = aj.accumulate(free, 2)
    params = jnp.ones(3)
    state, alone = tx.init(params), free.init(params)
    updates, alone = free.update(params, alone, params)
    expected = aj.eval_params(free, alone, params + updates)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(aj.eval_params(tx, state, moved), expected, rtol=1e-6)


def test_in_flax():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, aj.accumulate(aj.schedule_free_adamw(0.1), 2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: (model(jnp.ones((4, 2))) ** 2).mean()
        optimizer.update(model, nnx.grad(loss)(model))

    before = model.kernel[...].copy()
    step(model, optimizer)
    np.testing.assert_array_equal(model.kernel[...], before)
    for _ in range(3):
        step(model, optimizer)
    assert np.all(model.kernel[...] != before)
    assert np.all(evaluation_model(model, optimizer).kernel[...] != model.kernel[...])
    tx = aj.accumulate(aj.sophia_h(0.1), 2)
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)
    square = lambda params: (params["w"] ** 2).sum()
    for _ in range(2):
        state = state.apply_gradients(grads=jax.grad(square)(state.params), obj_fn=square)
    assert np.all(state.params["w"] < 1)
