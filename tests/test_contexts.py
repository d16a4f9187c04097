"""Where optimizers live: inside Optax's wrappers, JAX's transforms, Flax, and checkpoints."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import zoo
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec
from support import assert_equal, avals, nothing, stepper, stream, walk

import adamw_jax as aj
from adamw_jax.flax import TrainState as ExtraTrainState


def problem(row, steps=4):
    """A tree of two leaves, float32, and gradients for it."""
    draws = [stream(steps, row.shape, seed, np.float32) for seed in (0, 1)]
    params = {name: jnp.asarray(theta) for name, (theta, _) in zip("ab", draws, strict=True)}
    grads = [
        {name: jnp.asarray(g) for name, g in zip("ab", pair, strict=True)}
        for pair in zip(*(gs for _, gs in draws), strict=True)
    ]
    return params, grads


def assert_close(tree, other):
    """Equal up to what fusing differently may change in float32."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


# --- Optax -------------------------------------------------------------------


@zoo.rows(alike=False)
def test_in_optax_chain(row):
    params, grads = problem(row)
    tx = optax.chain(optax.scale(2.0), row.tx())
    doubled = [jax.tree.map(lambda x: 2 * x, g) for g in grads]
    assert_equal(walk(tx, params, grads, row.extra), walk(row.tx(), params, doubled, row.extra))


@zoo.rows("leafwise", alike=False)
def test_in_optax_partition_and_masked(row):
    """The optimizer on one leaf only, beside another one or beside none."""
    params, grads = problem(row)
    alone = walk(row.tx(), params["a"], [g["a"] for g in grads], row.extra)
    sgd = walk(aj.sgd(0.5), params["b"], [g["b"] for g in grads])
    both = optax.partition({"x": row.tx(), "y": aj.sgd(0.5)}, {"a": "x", "b": "y"})
    masked = optax.chain(
        optax.masked(row.tx(), {"a": True, "b": False}),
        optax.masked(aj.sgd(0.5), {"a": False, "b": True}),
    )
    for tx in (both, masked):
        path = walk(tx, params, grads, row.extra)
        assert_equal([p["a"] for p in path], alone)
        assert_equal([p["b"] for p in path], sgd)


@zoo.rows("inject", alike=False)
def test_in_optax_inject_hyperparams(row):
    """The rate can be read from the state, and changed there between two steps."""
    params, grads = problem(row)
    tx = optax.inject_hyperparams(row.make)(row.learning_rate, **row.settings)
    state = tx.init(params)
    assert state.hyperparams["learning_rate"] == np.float32(row.learning_rate)
    step = stepper(tx, row.extra, jitted=True)
    plain = stepper(row.tx(), row.extra, jitted=True)
    params_plain, state_plain = params, row.tx().init(params)
    for g in grads:
        params, state = step(params, state, g)
        params_plain, state_plain = plain(params_plain, state_plain, g)
    assert_close(params, params_plain)
    state.hyperparams["learning_rate"] = jnp.asarray(row.learning_rate / 2)
    halved = stepper(row.tx(row.learning_rate / 2), row.extra, jitted=True)
    params, _ = step(params, state, grads[0])
    assert_close(params, halved(params_plain, state_plain, grads[0])[0])


@zoo.rows(alike=False)
def test_in_optax_multi_steps(row):
    """Every second step moves, by the mean gradient."""
    params, grads = problem(row)
    means = [jax.tree.map(lambda x, y: (x + y) / 2, *pair) for pair in (grads[:2], grads[2:])]
    expected = walk(row.tx(), params, means, row.extra)
    with jax.numpy_dtype_promotion("standard"):
        path = walk(optax.MultiSteps(row.tx(), 2), params, grads, row.extra, jitted=True)
    assert_close(path, [params, expected[0], expected[0], expected[1]])


@zoo.rows(alike=False)
def test_in_optax_apply_if_finite(row):
    """A NaN leaves parameters and state as if the step had not been."""
    params, grads = problem(row)
    ill = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), grads[0])
    tx = optax.apply_if_finite(row.tx(), max_consecutive_errors=3)
    path = walk(tx, params, [grads[0], ill, grads[1]], row.extra, jitted=True)
    expected = walk(row.tx(), params, grads[:2], row.extra)
    assert_close(path, [expected[0], expected[0], expected[1]])


# --- JAX ---------------------------------------------------------------------


@zoo.rows()
def test_scan_jit_and_donation(row):
    """One answer: stepwise, jitted with donated buffers, and in a scan."""
    params, grads = problem(row)
    tx = row.tx()
    start = params, tx.init(params)
    step = stepper(tx, row.extra)
    expected = walk(tx, params, grads, row.extra)[-1]

    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *grads)
    body = lambda carry, g: (step(*carry, g), None)
    scanned, _ = jax.jit(lambda carry, gs: jax.lax.scan(body, carry, gs))(start, stacked)
    assert_close(scanned[0], expected)

    donating = jax.jit(step, donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, start)
    given = [x for x in jax.tree.leaves(state) if x.ndim]
    for g in grads:
        params, state = donating(params, state, g)
    assert all(x.is_deleted() for x in given)  # an unusable donation would also warn
    assert_close(params, expected)


@zoo.rows("vmap", alike=False)
def test_vmap_over_problems(row):
    """A batch of parameters, each with gradients and a state of its own."""
    params, grads = problem(row)
    tx = row.tx()
    stack = lambda *xs: jax.tree.map(lambda *leaves: jnp.stack(leaves), *xs)
    other = jax.tree.map(lambda x: 2 * x + 1, params)
    batch = stack(params, other)
    state = jax.vmap(tx.init)(batch)
    step = jax.jit(jax.vmap(stepper(tx, row.extra)))
    for g in grads:
        batch, state = step(batch, state, stack(g, jax.tree.map(jnp.negative, g)))
    negated = [jax.tree.map(jnp.negative, g) for g in grads]
    expected = (
        walk(tx, params, grads, row.extra)[-1],
        walk(tx, other, negated, row.extra)[-1],
    )
    assert_close(batch, stack(*expected))


@zoo.rows()
def test_init_without_memory(row):
    """eval_shape of init and update: what they return, and no array made."""
    params, _ = problem(row)
    tx = row.tx()
    abstract = jax.eval_shape(lambda: params)
    state = jax.eval_shape(tx.init, abstract)
    assert avals(state) == avals(tx.init(params))
    step = stepper(tx, row.extra)
    assert avals(jax.eval_shape(step, abstract, state, abstract)) == avals(
        (params, tx.init(params))
    )


@zoo.rows(alike=False)
def test_on_a_mesh(row):
    """Parameters sharded over an axis: under jit, and each device on its own in shard_map."""
    params, grads = problem(row, steps=2)
    tx = row.tx()
    expected = walk(tx, params, grads, row.extra)[-1]
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = lambda tree: jax.device_put(tree, jax.NamedSharding(mesh, PartitionSpec("x")))
    path = walk(tx, spread(params), map(spread, grads), row.extra, jitted=True)
    assert_close(path[-1], expected)
    if "shard_map" in row.skips:
        return

    def both(params, *grads):
        return walk(tx, params, grads, row.extra)[-1]

    spec = PartitionSpec("x")
    mapped = jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec)
    assert_close(jax.jit(mapped)(params, *grads), expected)


@zoo.rows(alike=False)
def test_threads(row):
    """Eight threads, each with its own problem and one optimizer between them."""
    params, grads = problem(row)
    tx, barrier = row.tx(), threading.Barrier(8)

    def work(i):
        barrier.wait()
        return walk(tx, jax.tree.map(lambda x: x * i, params), grads, row.extra)[-1]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for i, result in enumerate(results):
        scaled = jax.tree.map(lambda x, i=i: x * i, params)
        assert_equal(result, walk(tx, scaled, grads, row.extra)[-1])


# --- Flax --------------------------------------------------------------------


def features(row):
    """Inputs and targets of a small regression."""
    rng = np.random.default_rng(5)
    return (jnp.asarray(rng.normal(size=(8, n)), jnp.float32) for n in (3, 2))


class Net(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


def plain(state):
    """An nnx state as nested dicts of arrays."""
    return nnx.to_pure_dict(state)


def nnx_walk(tx, steps, xs, ys, extra=nothing):
    """Parameters before and after training a Net with nnx.Optimizer, and the gradients."""
    model = Net()
    before, grads = jax.tree.map(jnp.copy, plain(nnx.state(model, nnx.Param))), []
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        g = nnx.grad(lambda model: jnp.mean((model(xs) - ys) ** 2))(model)
        optimizer.update(model, g, **extra(plain(nnx.state(model, nnx.Param))))
        return g

    for _ in range(steps):
        grads.append(plain(step(model, optimizer)))
    return before, grads, plain(nnx.state(model, nnx.Param))


@zoo.rows(alike=False)
def test_in_nnx_optimizer(row):
    before, grads, after = nnx_walk(row.tx(), 3, *features(row), row.extra)
    assert_close(after, walk(row.tx(), before, grads, row.extra)[-1])


KERNELS = {
    "hidden": {"kernel": True, "bias": False},
    "head": {"kernel": True, "bias": False},
}


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(KERNELS, id="tree"),
        pytest.param(lambda params: jax.tree.map(lambda p: p.ndim > 1, params), id="function"),
        pytest.param({"hidden": {"kernel": True, "bias": False}, "head": False}, id="prefix"),
    ],
)
@pytest.mark.parametrize("factory", [aj.adamw, aj.adam_l2], ids=lambda f: f.__name__)
def test_a_decay_mask_in_nnx_optimizer(factory, mask):
    """Parameters are boxed at init (path l1/bias/value) and plain afterwards (l1/bias)."""
    xs, ys = features(None)
    tx = factory(0.1, weight_decay=0.5, mask=mask)
    before, grads, after = nnx_walk(tx, 3, xs, ys)
    masked, bare = (walk(factory(0.1, weight_decay=w), before, grads)[-1] for w in (0.5, 0.0))
    kernel_of_head = bare if isinstance(mask, dict) and mask["head"] is False else masked
    expected = {
        "hidden": {"kernel": masked["hidden"]["kernel"], "bias": bare["hidden"]["bias"]},
        "head": {"kernel": kernel_of_head["head"]["kernel"], "bias": bare["head"]["bias"]},
    }
    assert_close(after, expected)


@pytest.mark.parametrize("factory", [aj.adamw, aj.adam_l2], ids=lambda f: f.__name__)
def test_a_decay_mask_made_from_boxed_parameters(factory):
    """Its leaves lie at l1/bias/value; they mean the parameters at l1/bias."""
    boxed = nnx.state(Net(), nnx.Param)
    params = plain(boxed)
    update = lambda tx: tx.update(params, tx.init(params), params)[0]
    mask = jax.tree.map(lambda p: p.ndim > 1, boxed)
    assert_equal(update(factory(0.1, mask=mask)), update(factory(0.1, mask=KERNELS)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(jax.nn.relu(linen.Dense(4)(x)))


@zoo.rows(alike=False)
def test_in_linen_train_state(row):
    xs, ys = features(row)
    net = LinenNet()
    params = net.init(jax.random.key(0), xs)["params"]
    extra = row.extra(params)
    kind = ExtraTrainState if extra else TrainState  # Flax's passes nothing on
    state = kind.create(apply_fn=net.apply, params=params, tx=row.tx())

    @jax.jit
    def step(state):
        loss = lambda p: jnp.mean((state.apply_fn({"params": p}, xs) - ys) ** 2)
        grads = jax.grad(loss)(state.params)
        return state.apply_gradients(grads=grads, **row.extra(state.params)), grads

    grads = []
    for _ in range(3):
        state, g = step(state)
        grads.append(g)
    assert int(state.step) == 3
    assert_close(state.params, walk(row.tx(), params, grads, row.extra)[-1])


# --- checkpoints -------------------------------------------------------------


def trained(row, kind="bfloat16"):
    """Parameters and state after two steps, in 16 bits with 32-bit accumulators."""
    params, grads = problem(row)
    params, *grads = jax.tree.map(lambda x: x.astype(kind), (params, *grads))
    step = stepper(row.tx(), row.extra)
    state = row.tx().init(params)
    for g in grads[:2]:
        params, state = step(params, state, g)
    return step, params, state, grads[2]


@zoo.rows()
def test_flax_bytes_round_trip(row):
    """To the bit, and into a freshly made state."""
    step, params, state, g = trained(row)
    data = serialization.to_bytes((params, state))
    fresh = jax.tree.map(jnp.zeros_like, params)
    restored = serialization.from_bytes((fresh, row.tx().init(fresh)), data)
    assert_equal(restored, (params, state))
    assert_equal(step(*jax.tree.map(jnp.asarray, restored), g), step(params, state, g))


def test_orbax_round_trip(tmp_path):
    """To the bit, all rows in one checkpoint."""
    runs = {row.name: trained(row) for row in zoo.ROWS}
    tree = {name: {"params": run[1], "state": run[2]} for name, run in runs.items()}
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        restored = manager.restore(0, args=ocp.args.StandardRestore(abstract))
    assert_equal(restored, tree)
    for name, (step, params, state, g) in runs.items():
        again = restored[name]
        assert_equal(step(again["params"], again["state"], g), step(params, state, g))
