"""Measuring an optimizer: what is measured, where it is found, and that nothing else changes."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx, serialization
from flax.training.train_state import TrainState
from strangers import around, box, mean, then
from support import assert_equal, avals, nothing, stepper, stream
from test_contexts import Net, assert_close, problem

import adamw_jax as aj


def rms(*arrays):
    flat = np.concatenate([np.abs(np.asarray(x)).ravel() for x in arrays])
    return np.sqrt(np.mean(np.square(flat)))


def vector(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def cosine(tree, other):
    x, y = vector(tree), vector(other)
    length = np.linalg.norm(x) * np.linalg.norm(y)
    return np.sum(x * y) / length if length else 0


def read(tree):
    return {name: float(value) for name, value in aj.metrics(tree).items()}


def traced(tx, params, grads, extra=nothing):
    """Parameters and states after each step, jitted."""
    step, state, path = stepper(tx, extra, jitted=True), tx.init(params), []
    for g in grads:
        params, state = step(params, state, g)
        path.append((params, state))
    return path


# --- probe -------------------------------------------------------------------


def test_probe_measures_what_passes():
    tx = aj.chain(aj.scale(2.0), aj.probe("doubled"), aj.scale(-1.0))
    u = {"a": jnp.array([1.0, -4.0]), "b": jnp.array([0.5])}
    updates, state = tx.update(u, tx.init(u))
    assert_equal(updates, jax.tree.map(lambda x: -2 * x, u))
    expected = {"doubled/rms": rms([2, 8, 1]), "doubled/largest": 8, "doubled/nonfinite": 0}
    assert read(state) == pytest.approx(expected)


def test_probe_counts_arrays_that_are_not_finite():
    tx = aj.probe("g")
    u = {"a": jnp.array([jnp.nan, 1.0]), "b": jnp.array([jnp.inf, -jnp.inf]), "c": jnp.ones(2)}
    found = read(tx.update(u, tx.init(u))[1])
    assert found["g/nonfinite"] == 2
    assert np.isnan(found["g/rms"])
    assert np.isnan(found["g/largest"])


def test_probe_measures_every_so_often():
    tx = aj.probe("g", every=3)
    update, state, seen = jax.jit(tx.update), tx.init(0.0), []
    for g in range(1, 8):
        _, state = update(jnp.float32(g), state)
        seen.append(read(state)["g/rms"])
    assert seen == [1, 1, 1, 4, 4, 4, 7]


def test_probe_inside_an_optimizer_changes_nothing():
    params, grads = problem(zoo.ROWS[0])
    plain = aj.adamw(0.1)
    tx = aj.swap(
        plain,
        "direction.numerator",
        aj.chain(aj.part(plain, "direction.numerator"), aj.probe("m", every=2)),
    )
    after = traced(tx, params, grads)[-1]
    assert_close(after[0], traced(plain, params, grads)[-1][0])
    assert set(read(after[1])) == {"m/rms", "m/largest", "m/nonfinite"}


@pytest.mark.parametrize("name", ["", 3, None])
def test_probe_needs_a_name(name):
    with pytest.raises(ValueError, match="probe: name is"):
        aj.probe(name)


# --- observe -----------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
@zoo.rows()
def test_observing_changes_nothing(row, every):
    params, grads = problem(row)
    plain = traced(row.tx(), params, grads, row.extra)
    tx = aj.observe(row.tx(), every=every)
    observed = traced(tx, params, grads, row.extra)
    for (p, s), (q, t) in zip(observed, plain, strict=True):
        assert_close((p, s.tx), (q, t))
        assert avals(s) == avals(tx.init(params))


@pytest.mark.parametrize(
    "tx",
    [aj.adamw(0.1, weight_decay=0.5), aj.muon(0.1), aj.soap(0.1), aj.prodigy(1.0)],
    ids=lambda tx: tx.factory.__name__,
)
@pytest.mark.parametrize("every", [1, 2])
def test_what_is_measured(tx, every):
    """Against NumPy, in both ways that a measurement is made."""
    theta, grads = stream(4, (4, 3), dtype=np.float32)
    params = {"kernel": jnp.asarray(theta), "bias": jnp.asarray(theta[0])}
    grads = [{"kernel": jnp.asarray(g), "bias": jnp.asarray(g[0])} for g in grads]
    watched, expected = aj.observe(tx, every=every), None
    state, inner = watched.init(params), tx.init(params)
    for t, g in enumerate(grads):
        u, inner = tx.update(g, inner, params)
        _, state = jax.jit(watched.update)(g, state, params)
        if t % every == 0:
            expected = {
                "grad_rms": rms(*g.values()),
                "update_rms": rms(*u.values()),
                "param_rms": rms(*params.values()),
                "update_to_param": rms(*u.values()) / rms(*params.values()),
                "cosine": cosine(u, g),
                "grad_nonfinite": 0,
                "update_nonfinite": 0,
            }
        found = read(state)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        params = optax.apply_updates(params, u)


def test_by_route():
    theta, (g, *_) = stream(1, (4, 3), dtype=np.float32)
    params = {"kernel": jnp.asarray(theta), "bias": jnp.asarray(theta[0])}
    grads = {"kernel": jnp.asarray(g), "bias": jnp.asarray(g[0])}
    tx = aj.observe(aj.chain(aj.clip_by_global_norm(0.5), aj.muon(0.02)))
    updates, state = tx.update(grads, tx.init(params), params)
    found = read(state)
    for route, leaf in (("muon", "kernel"), ("adamw", "bias")):
        assert found[f"{route}/grad_rms"] == pytest.approx(rms(grads[leaf]), rel=1e-5)
        assert found[f"{route}/update_rms"] == pytest.approx(rms(updates[leaf]), rel=1e-5)
        assert found[f"{route}/cosine"] == pytest.approx(cosine(updates[leaf], grads[leaf]), 1e-4)
    assert found["muon/learning_rate"] == pytest.approx(0.02)
    assert found["adamw/learning_rate"] == pytest.approx(3e-4)
    assert "learning_rate" not in found  # there are two
    norm = np.linalg.norm(vector(grads))
    assert found["clip_factor"] == pytest.approx(0.5 / norm, rel=1e-5)
    assert "muon/clip_factor" not in found  # the clip sees all


def test_routes_within_routes():
    inner = aj.route([("fast", "^a", aj.sgd(1.0))], default=("slow", aj.sgd(0.1)))
    tx = aj.observe(aj.route([("frozen", "z", optax.set_to_zero())], default=("rest", inner)))
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "z": jnp.ones(4)}
    found = read(tx.update(params, tx.init(params), params)[1])
    assert found["rest.fast/update_rms"] == 1
    assert found["rest.slow/update_rms"] == pytest.approx(0.1)
    assert found["frozen/update_rms"] == 0
    assert found["frozen/cosine"] == 0  # no direction
    assert found["update_rms"] == pytest.approx(rms([1, 1, 0.1, 0.1, 0.1, 0, 0, 0, 0]))


def test_the_learning_rate_applied():
    schedule = aj.linear_warmup(1.0, 4)
    for tx, rates in (
        (aj.adamw(schedule), [0, 0.25, 0.5]),
        (optax.inject_hyperparams(aj.sgd)(schedule), [0, 0.25, 0.5]),
        (aj.chain(aj.sgd(0.1), aj.identity()), [0.1] * 3),
    ):
        watched, seen = aj.observe(tx), []
        state = watched.init(jnp.ones(2))
        for _ in rates:
            _, state = watched.update(jnp.ones(2), state, jnp.ones(2))
            seen.append(read(state)["learning_rate"])
        assert seen == pytest.approx(rates)
    assert "learning_rate" not in read(aj.observe(aj.scale(2.0)).init(jnp.ones(2)))


def test_the_clip_factor():
    clipped = aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.1))
    for tx, factor in (
        (clipped, 0.25),
        (aj.chain(aj.probe("raw"), clipped), 0.25),
        (aj.skip_nonfinite(clipped), 0.25),
        (aj.chain(aj.clip_by_global_norm(9.0), aj.adamw(0.1)), 1.0),
        (aj.chain(aj.scale(2.0), aj.clip_by_global_norm(1.0)), None),
        (aj.adamw(0.1), None),
    ):
        watched, g = aj.observe(tx), jnp.full(4, 2.0)
        assert read(watched.update(g, watched.init(g), g)[1]).get("clip_factor") == factor


def test_a_cosine_is_one_of_large_gradients_too():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: 1e25 * p, params)
    tx = aj.observe(aj.adam(1e-3))
    _, state = tx.update(grads, tx.init(params), params)
    assert aj.metrics(state)["cosine"] == -1
    assert aj.metrics(state)["grad_nonfinite"] == 2


@pytest.mark.parametrize("make", [aj.sgd, aj.muon])  # measured again, and as the step is made
def test_how_often_may_be_traced(make):
    params = {"kernel": jnp.ones((3, 2))}
    grads = {"kernel": jnp.arange(6.0).reshape(3, 2)}

    def run(every):
        tx = aj.observe(make(0.1), every=every)
        state, seen = aj.observe(make(0.1)).init(params), []
        for i in range(4):
            _, state = tx.update(jax.tree.map(lambda g, i=i: g + i, grads), state, params)
            seen.append(aj.metrics(state)["grad_rms"])
        return seen

    many = jax.vmap(run)(jnp.array([1, 3]))
    for i, every in enumerate((1, 3)):
        np.testing.assert_allclose([x[i] for x in many], run(every), rtol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("inner", ["adamw", "muon"])  # measured again, and as the step is made
def test_the_clip_fraction_is_that_of_the_measured_steps(every, inner):
    optimizer = {"adamw": aj.adamw(0.1), "muon": aj.muon(0.1)}[inner]
    tx = aj.observe(aj.chain(aj.clip_by_global_norm(1.0), optimizer), every=every)
    params = jnp.ones((2, 2))
    state, update = tx.init(params), jax.jit(tx.update)
    clipped, fractions = [], []
    for size in (3.0, 4.0, 0.1, 5.0, 0.2, 6.0, 0.3):
        _, state = update(jnp.full((2, 2), size), state, params)
        clipped.append(size > 0.5)  # the norm of four equal elements is twice as large
        measured = clipped[::every]
        fractions.append((read(state)["clip_fraction"], sum(measured) / len(measured)))
    found, expected = zip(*fractions, strict=True)
    assert found == pytest.approx(expected, rel=1e-6)


def test_nonfinite_arrays_are_counted():
    params = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.full(3, 1e15)}
    grads = {"a": jnp.array([jnp.nan, 1, 1]), "b": jnp.array([1, 1, jnp.inf]), "c": params["c"]}
    tx = aj.observe(aj.scale(0.5))
    found = read(tx.update(grads, tx.init(params), params)[1])
    assert (found["grad_nonfinite"], found["update_nonfinite"]) == (2, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_dtypes(dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    g = jnp.full((2, 3), 3 + 4j if dtype == "complex64" else 5, dtype)
    tx = aj.observe(aj.sgd(0.5), every=2)
    state = tx.init(g)
    updates, new = tx.update(g, state, g)
    assert updates.dtype == dtype
    assert avals(new) == avals(state)
    found = read(new)
    assert (found["grad_rms"], found["update_rms"], found["cosine"]) == pytest.approx((5, 2.5, -1))


def test_empty_trees_and_arrays():
    for params in ({}, {"a": jnp.zeros((0, 3))}, {"a": optax.MaskedNode()}):
        tx = aj.chain(aj.probe("g"), aj.observe(aj.scale_by_adam()))
        assert all(v == 0 for v in read(tx.update(params, tx.init(params), params)[1]).values())


def test_observing_needs_parameters():
    tx = aj.observe(aj.sgd(0.1))
    with pytest.raises(ValueError, match="observe: got no parameters"):
        tx.update(1.0, tx.init(1.0))


def test_nothing_is_copied_between_measurements():
    """The program holds no copy of an array: buffers are updated in place as without it."""
    params = {"w": jnp.ones((64, 64))}
    tx = aj.observe(aj.adamw(0.1), every=10)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    program = step.lower(params, tx.init(params), params).compile().as_text()
    main = program[program.index("\nENTRY") :]
    assert " conditional(" in main
    assert not [line for line in main.splitlines() if "[64,64]" in line and " copy(" in line]


def test_vmap_and_donation():
    params, grads = problem(zoo.ROWS[0], steps=3)
    tx = aj.observe(aj.chain(aj.probe("g", every=2), aj.adamw(0.1)), every=2)
    stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)
    step = jax.jit(jax.vmap(stepper(tx)), donate_argnums=(0, 1))
    batch, state = stack(params), jax.vmap(tx.init)(stack(params))
    for g in grads:
        batch, state = step(batch, state, stack(g))
    alone = read(traced(tx, params, grads)[-1][1])
    found = aj.metrics(state)
    assert {k: float(v[0]) for k, v in found.items()} == pytest.approx(alone, rel=1e-5)
    assert all(v.shape == (2,) for v in found.values())


# --- metrics -----------------------------------------------------------------

NAMES = {
    *("grad_rms", "update_rms", "param_rms", "update_to_param", "cosine", "grad_nonfinite"),
    *("update_nonfinite", "learning_rate", "g/rms", "g/largest", "g/nonfinite"),
}
TX = aj.observe(aj.chain(aj.probe("g"), aj.adamw(0.1)), every=2)


def test_metrics_are_there_from_the_start():
    found = read(TX.init({"w": jnp.ones(3)}))
    assert set(found) == NAMES
    assert set(found.values()) == {0}
    assert aj.metrics({"nothing": jnp.ones(3)}) == {}


def test_metrics_in_the_states_of_optax():
    params = {"w": jnp.ones(3)}
    with jax.numpy_dtype_promotion("standard"):
        for tx in (
            optax.chain(optax.scale(2.0), TX),
            optax.MultiSteps(TX, 2),
            optax.masked(TX, {"w": True}),
            optax.apply_if_finite(TX, 3),
        ):
            state = tx.init(params)
            for _ in range(2):
                _, state = tx.update(params, state, params)
            found = read(state)
            assert set(found) == NAMES
            assert found["param_rms"] == 1


def test_metrics_in_nnx():
    model = Net()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((2, 3))) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(2):
        step(model, optimizer)
    found = read(optimizer.opt_state)
    assert set(found) == NAMES
    assert found["grad_rms"] > 0


def test_metrics_in_a_train_state_and_through_bytes():
    params = {"w": jnp.ones(3)}
    state = TrainState.create(apply_fn=None, params=params, tx=TX)
    state = jax.jit(lambda state: state.apply_gradients(grads=params))(state)
    assert set(read(state)) == set(read(state.opt_state)) == NAMES
    fresh = TrainState.create(apply_fn=None, params=params, tx=TX)
    restored = serialization.from_bytes(fresh, serialization.to_bytes(state))
    assert read(restored) == read(state)


def test_metrics_of_two_models_go_by_their_paths():
    tx = aj.observe(aj.sgd(0.1))
    state = {"g": tx.init(1.0), "d": tx.init(1.0), "c": aj.probe("x").init(1.0)}
    found = set(read(state))
    assert {"g/grad_rms", "d/grad_rms", "x/rms"} <= found
    assert "grad_rms" not in found


def test_metrics_under_jit():
    step = jax.jit(lambda g, s, p: aj.metrics(TX.update(g, s, p)[1]))
    assert set(step(jnp.ones(3), TX.init(jnp.ones(3)), jnp.ones(3))) == NAMES


# --- writers -----------------------------------------------------------------


def test_jsonl(tmp_path):
    path = tmp_path / "run.jsonl"
    values = {"a": jnp.float32(0.5), "n": np.int32(3), "x": jnp.array([1.0, jnp.inf]), "s": "ok"}
    with aj.JSONLWriter(path) as writer:
        writer.write(0, values)
        line = path.read_text(encoding="utf-8")  # there before the file is closed
        writer.write(jnp.int32(1), {"a": jnp.nan, "b": -jnp.inf})
    with aj.JSONLWriter(path) as writer:  # a resumed run
        writer.write(2, {"a": 1})
    never = lambda constant: pytest.fail(f"{constant} is not JSON")
    lines = [json.loads(x, parse_constant=never) for x in path.read_text("utf-8").splitlines()]
    assert lines[0] == {"step": 0, "a": 0.5, "n": 3, "x": [1.0, "Infinity"], "s": "ok"}
    assert lines[1] == {"step": 1, "a": "NaN", "b": "-Infinity"}
    assert lines[2] == {"step": 2, "a": 1}
    assert json.loads(line) == lines[0]
    assert np.isnan(float(lines[1]["a"]))


def test_jsonl_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1, "lo')  # a run was killed, or a disk was full
    with aj.JSONLWriter(path) as writer:
        writer.write(1, {"loss": 0.5})
    *_, torn, last = path.read_text("utf-8").splitlines()
    assert torn == '{"step": 1, "lo'
    assert json.loads(last) == {"step": 1, "loss": 0.5}


def test_jsonl_writes_metrics(tmp_path):
    with aj.JSONLWriter(tmp_path / "run.jsonl") as writer:
        writer.write(0, aj.metrics(TX.init(1.0)))
    assert set(json.loads((tmp_path / "run.jsonl").read_text("utf-8"))) == NAMES | {"step"}


def test_tensorboard(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, directory):
            written.append(directory)

        def add_scalar(self, *args):
            written.append(args)

        def close(self):
            written.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    with aj.TensorBoardWriter(tmp_path) as writer:
        writer.write(jnp.int32(3), {"loss": jnp.float32(0.5)})
    assert written == [str(tmp_path), ("loss", 0.5, 3), "closed"]


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"Run: pip install 'adamw-jax\[tensorboard\]'\.$"):
        aj.TensorBoardWriter(tmp_path)


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboardX")
    with aj.TensorBoardWriter(tmp_path) as writer:
        writer.write(0, aj.metrics(TX.init(1.0)))
    assert next(tmp_path.iterdir()).stat().st_size > 0


# --- what strangers write ----------------------------------------------------


def test_routes_and_clips_are_seen_through_what_strangers_write():
    routed = aj.route([("a", "a", aj.sgd(0.1))], ("rest", aj.chain(aj.clip(9.0), aj.sgd(0.2))))
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    clipped = then(aj.identity(), aj.clip_by_global_norm(1.0))
    grads = jax.tree.map(lambda p: 3 * p, params)
    for tx in (
        aj.chain(aj.clip_by_global_norm(1.0), routed),
        then(aj.clip_by_global_norm(1.0), around(routed)),
        around(then(clipped, then(aj.probe("clipped"), routed))),
    ):
        watched = aj.observe(tx)
        _, state = watched.update(grads, watched.init(params), params)
        found = aj.metrics(state)
        assert found["clip_factor"] == pytest.approx(1 / np.sqrt(9 * 10))
        assert found["a/learning_rate"] == pytest.approx(0.1)
        assert found["rest/learning_rate"] == pytest.approx(0.2)
    inner = mean(aj.clip_by_global_norm(1.0), aj.identity())  # not all that comes in is clipped
    for tx in (inner, box(aj.clip_by_global_norm(1.0))):
        watched = aj.observe(then(tx, routed))
        assert "clip_factor" not in aj.metrics(watched.init(params))


def test_metrics_inside_of_what_strangers_write():
    tx = then(aj.probe("raw"), box(around(aj.observe(aj.skip_nonfinite(aj.sgd(0.1))))))
    params = {"a": jnp.ones((2, 3))}
    _, state = tx.update(params, tx.init(params), params)
    found = aj.metrics(state)
    assert (found["raw/rms"], found["grad_rms"], found["skipped"]) == (1, 1, 0)
