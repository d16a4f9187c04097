"""State by name: carried across a swap, read, reset."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import zoo
from flax import nnx, serialization
from flax.training.train_state import TrainState
from strangers import around, box, centred, mean, quotient, soft_clip, then, twice
from support import assert_equal, avals, nothing, stepper, walk
from test_contexts import Net, problem

import adamw_jax as aj

PARAMS = {
    "embed": {"embedding": jnp.linspace(-1, 1, 15).reshape(5, 3)},
    "layer": {"kernel": jnp.linspace(1, 2, 12).reshape(3, 4), "bias": jnp.ones(4)},
}
GRADS = [jax.tree.map(lambda p, k=k: jnp.sin(p * (k + 1)), PARAMS) for k in range(6)]


def trained(tx, params=PARAMS, grads=GRADS, extra=nothing):
    """The state after a few steps, the parameters left where they are."""
    step, state = stepper(tx, extra, jitted=True), tx.init(params)
    for g in grads:
        _, state = step(params, state, g)
    return state


def moved(old, new, state=None, params=PARAMS):
    """What a transplant makes of the state of `old`: it always has the structure of `new`."""
    result = aj.transplant(trained(old, params) if state is None else state, old, new, params)
    fresh = new.init(params)
    assert avals(result.state) == avals(fresh)
    kept = {(m.new, m.leaf) for m in result.report.kept}
    reset = {(m.new, m.leaf) for m in result.report.reset}
    assert not kept & reset
    assert len(result.report.kept) + len(result.report.reset) == len(jax.tree.leaves(fresh))
    return result


def names(moves, leaf=...):
    return {m.new or m.old for m in moves if leaf is ... or m.leaf == leaf}


# --- transplant --------------------------------------------------------------


@zoo.rows(alike=False)
def test_around_and_back(row):
    """Whatever is put around an optimizer, its state is found in it, to the bit."""
    params, grads = problem(row)
    tx = row.tx()
    state = trained(tx, params, grads, row.extra)
    around = [
        tx,
        aj.chain(aj.clip_by_global_norm(1.0), tx),
        aj.chain(first=aj.add_l2_gradient(0.1), second=tx),
        aj.skip_nonfinite(tx),
        aj.observe(tx),
        aj.route([("all", "", tx)], optax.set_to_zero()),
        aj.chain(aj.clip_by_global_norm(1.0), aj.skip_nonfinite(aj.route([("x", "", tx)], tx))),
    ]
    for new in around:
        there = moved(tx, new, state, params)
        assert not there.report.dropped
        assert len(there.report.kept) >= len(jax.tree.leaves(state))
        back = moved(new, tx, there.state, params)
        assert not back.report.reset
        assert_equal(back.state, state)


@pytest.mark.parametrize(
    ("tx", "jitted"),
    [(aj.adamw(0.1), False), (aj.amsgrad(aj.cosine(0.1, 9)), True), (aj.muon(0.1), True)],
    ids=["adamw", "amsgrad", "muon"],
)
def test_the_trajectory_goes_on(tx, jitted):
    """As if the clip, which clips nothing, had been there from the start."""
    new = aj.chain(aj.clip_by_global_norm(1e9), tx)
    whole = walk(tx, PARAMS, GRADS, jitted=jitted)
    params, state = PARAMS, tx.init(PARAMS)
    step = stepper(tx, jitted=jitted)
    for g in GRADS[:3]:
        params, state = step(params, state, g)
    state, step = moved(tx, new, state, params).state, stepper(new, jitted=jitted)
    for g, expected in zip(GRADS[3:], whole[3:], strict=True):
        params, state = step(params, state, g)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6), params, expected)


def test_another_hyperparameter_is_noted():
    old, new = aj.adamw(0.1), aj.adamw(0.2, b2=0.95)
    result = moved(old, new)
    assert_equal(result.state, trained(old))
    notes = {m.new: m.note for m in result.report.kept}
    assert notes["direction.denominator.moment.second_moment"] == "decay: 0.999 -> 0.95"
    assert notes["learning_rate.count"] == "learning_rate: 0.1 -> 0.2"
    assert notes["direction.numerator.0.momentum"] == ""


@pytest.mark.parametrize("new", [aj.nadamw(0.1), aj.lion(0.1), aj.signum(0.1), aj.radam(0.1)])
def test_a_momentum_that_moved(new):
    state = trained(aj.adamw(0.1))
    result = moved(aj.adamw(0.1), new)
    (name,) = (n for n in names(result.report.kept) if n.endswith("momentum"))
    place = result.state
    for slot in name.split(".")[:-1]:
        place = place[int(slot)] if slot.isdigit() else place[slot]
    assert_equal(place.momentum, state["direction"]["numerator"][0].momentum)
    # Every count goes on: that of nadamw's uncorrected gradient, too.
    for path, leaf in jax.tree_util.tree_leaves_with_path(result.state):
        if path[-1] == jax.tree_util.GetAttrKey("count"):
            assert leaf == len(GRADS)


def test_to_muon_leaf_by_leaf():
    old = aj.adamw(0.1)
    new = aj.muon(0.1, others=aj.adamw(0.1))
    state = trained(old)
    result = moved(old, new, state)
    m, v = state["direction"]["numerator"][0], state["direction"]["denominator"]["moment"]
    rest = result.state["adamw"]["direction"]
    for group, name in (("embed", "embedding"), ("layer", "bias")):
        assert_equal(rest["numerator"][0].momentum[group][name], m.momentum[group][name])
        kept = rest["denominator"]["moment"].second_moment[group][name]
        assert_equal(kept, v.second_moment[group][name])
    assert rest["numerator"][1].count == result.state["muon"]["learning_rate"].count == len(GRADS)
    # An average that becomes a sum, begun with the gain 0.1 and continued with 0.95.
    matrix = result.state["muon"]["direction"]["momentum"].momentum["layer"]["kernel"]
    np.testing.assert_allclose(matrix, 9.5 * m.momentum["layer"]["kernel"], rtol=1e-6)
    assert not result.report.reset
    dropped = {(m.old, m.leaf) for m in result.report.dropped}
    assert dropped == {("direction.denominator.moment.second_moment", "layer/kernel")}


def test_averages_and_sums_convert(x64):
    """`heavy_ball(lr (1 - b), b)` is `momentum(lr, b)`: one goes on where the other stopped."""
    start, gradients = jax.tree.map(lambda x: x.astype(jnp.float64), (PARAMS, GRADS))
    average, total = aj.momentum(0.5, 0.8), aj.heavy_ball(0.5 * (1 - 0.8), 0.8)
    whole = walk(average, start, gradients)[-1]
    for old, new in ((average, total), (total, average)):
        params, state = start, old.init(start)
        for g in gradients[:3]:
            params, state = stepper(old)(params, state, g)
        state = moved(old, new, state, params).state
        for g in gradients[3:]:
            params, state = stepper(new)(params, state, g)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-13), params, whole)
    nesterov = moved(aj.heavy_ball(0.1, 0.9), aj.nesterov(0.1, 0.9))
    assert {m.note for m in nesterov.report.kept if m.leaf} == {"gain: 1.0 -> 0.9, times 0.9"}


def test_what_is_averaged_matters():
    """LaProp averages normalized gradients: another thing, a thousand times as big."""
    result = moved(aj.laprop(0.1), aj.adamw(0.1))
    assert names(result.report.reset) >= {"direction.numerator.0.momentum"}
    note = next(m.note for m in result.report.reset if m.new == "direction.numerator.0.momentum")
    assert note.startswith("after.0.momentum had precondition, second_moment")
    assert "direction.denominator.moment.second_moment" in names(result.report.kept)
    assert result.state["direction"]["numerator"][1].count == 0
    assert result.state["direction"]["denominator"]["correction"].count == len(GRADS)


def test_the_ambiguous_is_reset():
    one = aj.chain(direction=aj.scale_by_momentum(0.9), learning_rate=aj.sgd(0.1))
    twins = {"a": aj.scale_by_momentum(0.5), "b": aj.scale_by_momentum(0.6)}
    two = aj.chain(direction=aj.join(aj.add, **twins), learning_rate=aj.sgd(0.1))
    for old, new in ((one, two), (two, one)):
        result = moved(old, new)
        arrays = [m for m in result.report.reset if m.leaf]
        assert arrays
        assert all(m.note.startswith("ambiguous: direction.") for m in arrays)
        assert "direction.a.momentum or direction.b.momentum" in arrays[0].note or old is one
    # Unless one of them is the very same piece.
    same = aj.swap(two, "direction.b", aj.scale_by_momentum(0.9))
    result = moved(one, same)
    assert names(result.report.kept, "layer/bias") == {"direction.b.momentum"}
    assert names(result.report.reset, "layer/bias") == {"direction.a.momentum"}


def test_a_correction_is_as_old_as_its_average():
    """A second moment of another shape begins again; the old count would make steps 30 times
    too large, and so would the old momentum over the new root."""
    result = moved(aj.adamw(0.1), aj.adam_mini(0.1))
    assert names(result.report.kept) == {"learning_rate.count", "learning_rate.learning_rate"}
    shapes = {m.leaf: m.note for m in result.report.reset if "second_moment" in m.new}
    assert shapes["layer/kernel"] == "was float32[3,4], is float32[1,4]"
    assert shapes["layer/bias"].startswith("shares direction.denominator.correction.count")


def test_parameters_that_join_later():
    """One count cannot tell two ages: a route of their own keeps what there is."""
    head = aj.route([("head", "layer", aj.adamw(0.1))], ("frozen", optax.set_to_zero()))
    shared = moved(head, aj.adamw(0.1))
    assert not [m for m in shared.report.kept if m.leaf]
    apart = aj.route([("head", "layer", aj.adamw(0.1))], ("rest", aj.adamw(0.1)))
    result = moved(head, apart)
    assert_equal(result.state["head"], trained(head)["head"])
    assert_equal(result.state["rest"]["direction"], apart.init(PARAMS)["rest"]["direction"])


def test_of_another_dtype():
    """bfloat16 in place of float32 is another array: nothing is rounded silently."""
    path = "direction.numerator.0"
    half = aj.swap(aj.adamw(0.1), path, aj.scale_by_momentum(0.9, dtype=jnp.bfloat16))
    result = moved(aj.adamw(0.1), half)
    assert {m.note for m in result.report.reset if m.new.endswith("momentum")} == {
        f"was float32[{','.join(map(str, x.shape))}], is bfloat16[{','.join(map(str, x.shape))}]"
        for x in jax.tree.leaves(PARAMS)
    }


def test_optimizers_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        old = optax.adamw(0.1)
        new = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
        result = moved(old, new)
        assert not result.report.reset
        assert_equal(result.state[1], trained(old))
        ours = optax.chain(optax.clip_by_global_norm(1.0), aj.adamw(0.1))
        assert_equal(moved(aj.adamw(0.1), ours).state[1], trained(aj.adamw(0.1)))


def test_the_report_is_readable():
    text = str(moved(aj.adamw(0.1), aj.muon(0.1, others=aj.adamw(0.1))).report)
    lines = text.splitlines()
    old, new = "direction.numerator.0.momentum", "adamw.direction.numerator.0.momentum"
    assert f"kept    {old} -> {new} [embed/embedding, layer/bias]" in lines
    assert "dropped direction.denominator.moment.second_moment [layer/kernel]" in lines
    assert "kept    direction.numerator.0.momentum [3 parameters]" in str(
        moved(aj.adamw(0.1), aj.adamw(0.2)).report
    )


def test_a_transplant_prints_numbers():
    rates = jnp.array([0.1, 0.2, 0.3])
    params = {"w": jnp.ones(3)}
    was, becomes = aj.sgd(rates), aj.sgd(0.5)
    result = aj.transplant(was.init(params), was, becomes, params)
    assert "learning_rate: [0.1, 0.2, 0.3] -> 0.5" in str(result.report)
    assert repr(result.report) == str(result.report)
    assert "Array" not in repr(result)


def test_kept_scalars_may_be_donated():
    """Two counts may come from one: they must not share its memory."""
    new = aj.nadamw(0.1)
    state = moved(aj.adamw(0.1), new).state
    jax.jit(new.update, donate_argnums=1)(GRADS[0], state, PARAMS)


@pytest.mark.slow
def test_no_transplant_makes_a_leap():
    """From every optimizer to every other: the first steps are about as long as the longest of
    a fresh start, though the gradients have elements that differ by a thousand."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), "bias": jnp.ones(4)}
    scale = lambda p: np.where(rng.uniform(size=p.shape) < 0.3, 1e-5, 1e-2)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape) * scale(p), jnp.float32)
    grads = [jax.tree.map(draw, params) for _ in range(40)]

    def runner(row, tx):
        update = jax.jit(lambda g, s: tx.update(g, s, params, **row.extra(params)))

        def run(state, grads):
            longest = 0.0
            for g in grads:
                updates, state = update(g, state)
                longest = max(longest, *(np.abs(x).max() for x in jax.tree.leaves(updates)))
            return state, longest

        return run

    txs = [(row.tx(), runner(row, row.tx())) for row in zoo.ROWS if row.like is None]
    starts = [run(tx.init(params), grads) for tx, run in txs]
    for old, (state, _) in zip(txs, starts, strict=True):
        for (new, run), (_, longest) in zip(txs, starts, strict=True):
            begun = aj.transplant(state, old[0], new, params).state
            assert run(begun, grads[:8])[1] < 6 * longest, (old[0], new)


# --- from a checkpoint, and in Flax ------------------------------------------


def through_orbax(tree, path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(path, tree)
    checkpointer.wait_until_finished()
    return checkpointer.restore(path)  # without a target: nested dicts and lists


@pytest.mark.parametrize("name", ["adamw", "muon", "sophia_h", "adan", "prodigy", "adopt"])
def test_from_a_raw_orbax_restore(name, tmp_path):
    row = next(row for row in zoo.ROWS if row.name == name)
    params, grads = problem(row)
    tx = aj.observe(row.tx())
    state = trained(tx, params, grads, row.extra)
    raw = through_orbax(state, tmp_path / "state")
    assert isinstance(raw, dict)
    result = aj.transplant(raw, tx, tx, params)
    assert_equal(result.state, state)
    assert not result.report.reset
    bare = aj.transplant(raw, tx, row.tx(), params)
    assert_equal(bare.state, state.tx)


def test_from_a_raw_orbax_restore_of_nnx(tmp_path):
    """Boxes become dicts with the one key "value"; a parameter may be called so, too."""
    model = Net()
    tx = aj.adamw(0.1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 3))) ** 2))(model))
    params = nnx.state(model, nnx.Param)
    for i, saved in enumerate((optimizer.opt_state, nnx.state(optimizer)["opt_state"])):
        raw = through_orbax(saved, tmp_path / str(i))
        for given in (params, nnx.to_pure_dict(params)):
            result = aj.transplant(raw, tx, tx, given)
            assert avals(result.state) == avals(tx.init(given))
            expected = jax.tree.leaves(optimizer.opt_state)
            assert_equal(jax.tree.leaves(result.state), expected)
    tricky = {"value": jnp.ones(3), "other": {"value": jnp.ones(2)}}
    state = trained(tx, tricky, [tricky])
    raw = through_orbax(state, tmp_path / "tricky")
    assert_equal(aj.transplant(raw, tx, tx, tricky).state, state)


def test_from_a_flax_state_dict():
    tx = aj.chain(aj.clip(1.0), aj.adamw(0.1))
    raw = serialization.to_state_dict(trained(tx))
    assert_equal(aj.transplant(raw, tx, tx, PARAMS).state, trained(tx))


def test_in_an_nnx_optimizer():
    model, old, new = Net(), aj.adamw(0.1), aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.1))
    loss = lambda model: jnp.mean(model(jnp.ones((2, 3))) ** 2)
    optimizer = nnx.Optimizer(model, old, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss)(model))
    state = aj.transplant(optimizer.opt_state, old, new, nnx.state(model, nnx.Param)).state
    again = nnx.Optimizer(model, new, wrt=nnx.Param)
    boxes = jax.tree.structure(again.opt_state)
    again.opt_state = nnx.data(jax.tree.unflatten(boxes, jax.tree.leaves(state)))
    assert aj.read(again)["step"] == 1
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))
    step(model, again)
    assert aj.read(again)["step"] == 2


def test_in_a_train_state():
    old, new = aj.adamw(0.1), aj.lion(0.1)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=old)
    state = state.apply_gradients(grads=GRADS[0])
    carried = aj.transplant(state.opt_state, old, new, state.params).state
    state = state.replace(tx=new, opt_state=carried)
    state = jax.jit(lambda state: state.apply_gradients(grads=GRADS[1]))(state)
    assert aj.read(state)["step"] == state.step == 2


def test_a_state_that_does_not_belong():
    adamw, state = aj.adamw(0.1), trained(aj.adamw(0.1))
    cases = [
        (aj.lion(0.1), PARAMS, "lacks 'direction/tx/momentum/embed/embedding'"),
        (aj.adam_mini(0.1), PARAMS, r"holds float32\[5, 3\] at .* for these parameters float32\[5"),
        (aj.sgd(0.1), PARAMS, "holds 'direction/denominator/correction/count', which it does not"),
        (adamw, {"w": jnp.ones(3)}, "lacks 'direction/denominator/moment/second_moment/w'"),
        (adamw, jax.tree.map(lambda p: p[:2], PARAMS), r"holds float32\[5, 3\]"),
        (adamw, {**PARAMS, "more": jnp.ones(2)}, "lacks '.*/more'"),
    ]
    for tx, params, said in cases:
        with pytest.raises(ValueError, match=rf"^transplant: old_state .* it {said}") as error:
            aj.transplant(state, tx, adamw, params)
        assert "Pass the optimizer that made it" in str(error.value)


# --- read --------------------------------------------------------------------


@zoo.rows()
def test_read_every_optimizer(row):
    params, grads = problem(row)
    state = trained(row.tx(), params, grads, row.extra)
    found = aj.read(state)
    assert found["step"] == len(grads)
    rates = {name for name in found if name.endswith("learning_rate")}
    routed = {"muon/learning_rate", "adamw/learning_rate"}
    assert rates == (routed if row.name == "muon" else {"learning_rate"})
    name = "muon/learning_rate" if row.name == "muon" else "learning_rate"
    if row.name != "adafactor":  # whose rate is capped
        np.testing.assert_allclose(found[name], row.learning_rate, rtol=1e-6)
    assert ("distance" in found) == (row.name == "prodigy")
    assert aj.read(row.tx().init(params))["step"] == 0


def test_read_the_rate_that_was_applied():
    schedule = aj.linear_warmup(0.5, 4)
    tx = aj.chain(aj.clip(1.0), aj.adamw(schedule))
    found = aj.read(trained(tx, grads=GRADS[:3]))
    assert found["step"] == 3
    np.testing.assert_allclose(found["learning_rate"], schedule(2), rtol=1e-6)


def test_read_routes():
    inner = aj.route([("biases", "bias", aj.sgd(0.1))], ("kernels", aj.adamw(0.2)))
    tx = aj.chain(aj.clip(1.0), aj.route([("embed", "embed", aj.lion(0.3))], ("trained", inner)))
    found = aj.read(trained(tx))
    assert found.pop("step") == len(GRADS)
    expected = {"embed": 0.3, "trained.biases": 0.1, "trained.kernels": 0.2}
    assert found == pytest.approx({f"{name}/learning_rate": x for name, x in expected.items()})
    reset = aj.reset(trained(tx), "1.embed")
    assert aj.read(reset)["step"] == len(GRADS)


def test_read_with_metrics():
    tx = aj.observe(aj.skip_nonfinite(aj.muon(aj.linear_warmup(0.5, 4))), every=3)
    state = trained(tx)
    found, measured = aj.read(state), aj.metrics(state)
    assert set(measured) < set(found)
    # What was measured last is older than what was applied last.
    assert measured["muon/learning_rate"] == 0.5 * 3 / 4
    assert found["muon/learning_rate"] == 0.5
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS[0])
    _, state = tx.update(bad, state, PARAMS)
    assert (aj.read(state)["step"], aj.read(state)["skipped"]) == (len(GRADS), 1)


def test_read_the_states_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        steps = optax.MultiSteps(aj.adamw(0.1), 4)
        state = steps.init(PARAMS)
        for g in GRADS:
            _, state = steps.update(g, state, PARAMS)
        found = aj.read(state)
        assert (found["step"], found["mini_step"]) == (1, 2)
        for make in (aj.adamw, optax.adamw):
            tx = optax.inject_hyperparams(make)(learning_rate=optax.linear_schedule(1.0, 0.0, 10))
            found = aj.read(trained(tx))
            assert set(found) == {"step", "learning_rate"}
            np.testing.assert_allclose(found["learning_rate"], 0.5, rtol=1e-6)
            assert found["step"] == len(GRADS)
        both = {"a": "x", "b": "y"}
        pair = {name: optax.inject_hyperparams(optax.sgd)(0.1) for name in "xy"}
        found = aj.read(optax.partition(pair, both).init({"a": jnp.ones(2), "b": jnp.ones(2)}))
        rates = {name for name in found if "rate" in name}
        assert len(rates) == 2
        assert all(name.split("/")[0].split(".")[-1] in "xy" for name in rates)
        assert aj.read(trained(optax.chain(optax.clip(1.0), optax.adam(0.1))))["step"] == 6
        assert aj.read(optax.sgd(0.1).init(PARAMS)) == {}


def test_read_in_flax():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1))
    assert aj.read(state.apply_gradients(grads=GRADS[0])) == {"step": 1}
    model = Net()
    optimizer = nnx.Optimizer(model, aj.muon(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 3))) ** 2))(model))
    expected = {"step": 1.0, "muon/learning_rate": 0.1, "adamw/learning_rate": 3e-4}
    for holder in (optimizer, optimizer.opt_state):
        found = aj.read(holder)
        assert {name: float(x) for name, x in found.items()} == pytest.approx(expected)


def test_read_under_transformations():
    tx = aj.muon(0.1)
    state = trained(tx)
    assert set(jax.jit(aj.read)(state)) == set(aj.read(state))
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    assert aj.read(stacked)["step"].shape == (2,)


# --- reset -------------------------------------------------------------------

BEGIN_ELSEWHERE = {"prodigy", "soap", "schedule_free_adamw", "sophia_h", "sophia_g", "adagrad"}


@zoo.rows(alike=False)
def test_reset_every_optimizer(row):
    """Without the optimizer a state is reset only where it is known to begin at 0."""
    params, grads = problem(row)
    tx = aj.skip_nonfinite(aj.observe(row.tx()))
    fresh, state = tx.init(params), trained(tx, params, grads, row.extra)
    assert_equal(aj.reset(state, "", tx=tx, params=params), fresh)
    if row.name in BEGIN_ELSEWHERE:
        with pytest.raises(ValueError, match=r"^reset: 'tx.tx.* may begin at something else"):
            aj.reset(state, "")
    else:
        assert_equal(aj.reset(state), fresh)
        assert_equal(jax.jit(aj.reset)(state), fresh)
    learning_rate = "tx.tx.muon.learning_rate" if row.name == "muon" else "tx.tx.learning_rate"
    if "tx.learning_rate" not in learning_rate or row.name in ("prodigy", "schedule_free_adamw"):
        return
    part = aj.reset(state, learning_rate)
    assert part.tx.tx["learning_rate"].count == 0
    assert part.tx.count == len(grads)


def test_reset_warming_nesterov():
    tx = aj.warming_nesterov(0.9)
    with pytest.raises(ValueError, match="'product' may begin"):
        aj.reset(trained(tx), "product")
    assert aj.reset(trained(tx), "product", tx=tx, params=PARAMS).product == 1


def test_reset_one_route():
    tx = aj.muon(0.1)
    state, fresh = trained(tx), tx.init(PARAMS)
    for name, other in (("muon", "adamw"), ("adamw", "muon")):
        for extra in ({}, {"tx": tx, "params": PARAMS}):
            out = aj.reset(state, name, **extra)
            assert_equal(out[name], fresh[name])
            assert_equal(out[other], state[other])
            assert avals(out) == avals(state)


def test_reset_one_part_and_one_parameter():
    tx = aj.adamw(0.1)
    state = trained(tx)
    out = aj.reset(state, "direction.numerator")
    assert_equal(out["direction"]["numerator"], tx.init(PARAMS)["direction"]["numerator"])
    assert_equal(out["direction"]["denominator"], state["direction"]["denominator"])
    out = aj.reset(state, "direction.numerator.0.momentum.layer.bias")
    old, new = (s["direction"]["numerator"][0].momentum["layer"] for s in (state, out))
    assert not new["bias"].any()
    assert_equal(new["kernel"], old["kernel"])


def test_reset_in_nnx():
    model, tx = Net(), aj.adamw(0.1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 3))) ** 2))(model))
    for extra in ({}, {"tx": tx, "params": nnx.state(model, nnx.Param)}):
        out = aj.reset(optimizer.opt_state, "direction", **extra)
        assert jax.tree.structure(out) == jax.tree.structure(optimizer.opt_state)
        assert not any(np.any(x) for x in jax.tree.leaves(out["direction"]))
        assert aj.read(out)["step"] == 1


def test_reset_what_is_not_ours():
    params = {"w": jnp.ones(3)}
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(optax.adam(0.1), aj.adamw(0.1))
        state = trained(tx, params, [params])
        with pytest.raises(ValueError, match=r"^reset: '0.0.count' may begin .* tx=tx, params"):
            aj.reset(state, "")
        assert_equal(aj.reset(state, "", tx=tx, params=params), tx.init(params))
        assert_equal(aj.reset(state, "1")[1], tx.init(params)[1])
        assert_equal(aj.reset(state, "1")[0], state[0])


def test_reset_errors():
    tx = aj.adamw(0.1)
    state = tx.init(PARAMS)
    with pytest.raises(KeyError, match=r"no 'nominator' at 'direction'.*numerator"):
        aj.reset(state, "direction.nominator")
    with pytest.raises(TypeError, match=r"^reset: got only one of tx and params"):
        aj.reset(state, "", tx=tx)
    with pytest.raises(ValueError, match=r"^reset: .* makes another state at 'direction'"):
        aj.reset(state, "direction", tx=aj.lion(0.1), params=PARAMS)
    with pytest.raises(ValueError, match=r"^reset: 'w' may begin"):
        aj.reset({"w": jnp.ones(3)})  # parameters are no state


# --- what strangers write ----------------------------------------------------


def arrays(moves):
    return {m.new for m in moves if m.leaf is not None}


AVERAGE, SQUARES = aj.scale_by_momentum(0.9), aj.second_moment(0.99)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (aj.chain(AVERAGE, aj.sgd(0.1)), then(AVERAGE, aj.sgd(0.1))),
        (aj.adamw(0.1), then(soft_clip(1.0), aj.adamw(0.1))),
        (aj.adamw(0.1), then(aj.identity(), around(aj.adamw(0.2)))),
        (aj.adamw(0.1), then(mean(aj.identity(), aj.clip(1.0)), aj.adamw(0.1))),
        (aj.adamw(0.1), mean(aj.adamw(0.1), aj.identity())),
        (aj.chain(aj.clip(1.0), centred(0.9)), then(aj.identity(), centred(0.5))),
        (aj.chain(aj.square(), AVERAGE), then(aj.square(), AVERAGE)),
        (then(twice(), AVERAGE), aj.chain(twice(), AVERAGE)),
        (then(box(aj.identity()), AVERAGE), aj.chain(box(aj.identity()), AVERAGE)),
        (
            then(aj.precondition(aj.identity(), aj.chain(SQUARES, aj.root(1e-8))), AVERAGE),
            aj.chain(aj.precondition(aj.identity(), aj.chain(SQUARES, aj.root())), AVERAGE),
        ),
    ],
    ids=lambda tx: f"{tx!r}"[:40],
)
def test_strangers_are_seen_through(old, new):
    """There and back: every array is found, whoever wrote what is around it."""
    state = trained(old)
    there = moved(old, new, state)
    assert not there.report.dropped
    back = moved(new, old, there.state)
    assert not back.report.reset
    assert_equal(back.state, state)


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (AVERAGE, then(aj.square(), AVERAGE), "momentum had nothing before it, this has square"),
        (
            aj.chain(aj.precondition(aj.identity(), aj.square()), AVERAGE),
            aj.chain(quotient(aj.identity(), aj.square()), AVERAGE),
            "1.momentum had precondition, square before it, this has quotient, square",
        ),
        (AVERAGE, then(centred(0.9), AVERAGE), "momentum had nothing before it, .* centred"),
        (AVERAGE, then(twice(), AVERAGE), r"momentum had nothing before it, .*twice \(unknown\)"),
        (AVERAGE, box(AVERAGE), r"momentum had nothing before it, this has box \(unknown\)"),
        (
            AVERAGE,
            then(mean(aj.identity(), aj.sign()), AVERAGE),
            "momentum had nothing before it, this has mean, sign",
        ),
    ],
    ids=lambda x: f"{x!r}"[:40],
)
def test_strangers_change_what_is_averaged(old, new, note):
    for one, other in ((old, new), (new, old)):
        report = moved(one, other).report
        assert not arrays(report.kept) & {n for n in arrays(report.kept) if "momentum" in n}
    notes = {m.note for m in moved(old, new).report.reset if m.new.endswith("momentum")}
    assert len(notes) == 1
    assert re.search(note, *notes)


def test_what_is_foreign_is_only_equal_to_itself():
    """What another library's piece does nobody knows, but the same piece does the same."""
    one, other = optax.scale_by_rms(), optax.scale_by_rms()
    old = aj.chain(one, AVERAGE)
    with jax.numpy_dtype_promotion("standard"):
        assert not moved(old, then(one, AVERAGE)).report.reset
        for new in (then(other, AVERAGE), aj.chain(aj.identity(), AVERAGE)):
            found = moved(old, new)
            notes = {m.note for m in found.report.reset if m.new == new_name(new)}
            (note,) = notes
            assert "scale_by_rms (unknown)" in note
        into = moved(aj.chain(aj.identity(), AVERAGE), old).report
        assert {m.note for m in into.reset if m.new == "1.momentum"} == {
            "1.momentum had nothing before it, this has scale_by_rms (unknown)"
        }


def new_name(tx):
    return "second.momentum" if tx.factory.__name__ == "then" else "1.momentum"


def test_a_leaf_has_the_history_of_its_own_way():
    """A mask in front changes what is averaged for the leaves that it lets through."""
    mask = {"embed": {"embedding": True}, "layer": {"kernel": False, "bias": False}}
    old, new = aj.chain(aj.identity(), AVERAGE), then(aj.masked(aj.square(), mask), AVERAGE)
    result = moved(old, new)
    assert names(result.report.kept, "layer/kernel") == {"second.momentum"}
    assert names(result.report.reset, "embed/embedding") == {"second.momentum"}


def test_strangers_averages_and_sums_convert():
    average, total = centred(0.8), centred(0.8, weight=1.0)
    state = trained(average)
    there = moved(average, total, state)
    assert {m.note for m in there.report.kept if m.leaf} == {"weight: None -> 1.0, times 5"}
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, 5 * y, rtol=1e-6),
        there.state.average,
        state.average,
    )


@pytest.mark.parametrize("gain", [0.0, jnp.nan, jnp.float32(0.0)])
def test_degenerate_gains(gain):
    """Nothing is divided by 0, and what is the same is kept as it is."""
    plain = aj.scale_by_momentum(0.9)
    tx = jax.tree.map(lambda x: x * gain, aj.scale_by_momentum(0.9, gain=1.0))
    state = trained(tx)
    assert_equal(moved(tx, tx, state).state, state)
    assert_equal(moved(tx, plain, state).state.momentum, state.momentum)
    none = aj.scale_by_momentum(0.0, gain=0.0)
    assert_equal(moved(none, none).state, trained(none))


def test_a_scalar_that_is_nan_is_kept():
    tx = aj.muon(0.1)
    state = trained(tx)
    is_rate = lambda x: not x.shape and jnp.issubdtype(x.dtype, jnp.inexact)
    broken = jax.tree.map(lambda x: x * jnp.nan if is_rate(x) else x, state)
    assert_equal(aj.transplant(broken, tx, tx, PARAMS).state, broken)
    assert not moved(tx, then(aj.identity(), tx), broken).report.reset


def test_strangers_are_read_and_reset():
    tx = then(soft_clip(1.0), around(mean(aj.adamw(0.1), centred(0.5))))
    state = trained(tx)
    assert aj.read(state)["step"] == len(GRADS)
    assert aj.read(state)["learning_rate"] == pytest.approx(0.1)
    for extra in ({}, {"tx": tx, "params": PARAMS}):
        out = aj.reset(state, "second.tx.first.direction", **extra)
        inner, fresh = out["second"].tx, tx.init(PARAMS)["second"].tx
        assert_equal(inner["first"]["direction"], fresh["first"]["direction"])
        assert_equal(inner["second"], state["second"].tx["second"])
        assert not jax.tree.leaves(aj.reset(state, "second.tx.second", **extra))[-1].any()
    with pytest.raises(ValueError, match=r"^reset: 'second.steps' may begin at something else"):
        aj.reset(state, "second")
    assert_equal(aj.reset(state, "second", tx=tx, params=PARAMS), tx.init(PARAMS))


def test_strangers_are_evaluated():
    inner = aj.schedule_free(aj.sgd(0.5), 0.5)
    plain = aj.eval_params(inner, trained(inner), PARAMS)
    mask = {"embed": True, "layer": False}
    for tx in (then(aj.identity(), inner), around(inner), box(then(around(inner), aj.identity()))):
        assert_equal(aj.eval_params(tx, trained(tx), PARAMS), plain)
    tx = then(aj.identity(), around(aj.masked(inner, mask)))
    found = aj.eval_params(tx, trained(tx), PARAMS)
    assert_equal(found, {"embed": plain["embed"], "layer": PARAMS["layer"]})


# --- restored without a target -----------------------------------------------


def unnamed(x, *, dicts=True):
    """A state as it is restored raw: dicts for named tuples, lists for tuples."""
    if hasattr(x, "_fields"):
        inner = {field: unnamed(getattr(x, field), dicts=dicts) for field in x._fields}
        return inner if dicts else type(x)(**inner)
    if isinstance(x, tuple):
        return [unnamed(y, dicts=dicts) for y in x]
    return {k: unnamed(v, dicts=dicts) for k, v in x.items()} if isinstance(x, dict) else x


@pytest.mark.parametrize("dicts", [True, False])
@pytest.mark.parametrize(
    "tx",
    [
        aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.1)),
        aj.skip_nonfinite(aj.observe(aj.muon(0.1))),
        then(around(aj.prodigy(1.0)), aj.delay(aj.identity())),
        aj.soap(0.1),
    ],
    ids=["chain", "wrappers", "strangers", "soap"],
)
def test_a_raw_state_is_taken_as_it_was_meant(tx, dicts):
    state = trained(tx, grads=GRADS[:2])
    given = unnamed(state, dicts=dicts)
    update = jax.jit(tx.update)
    want, after = update(GRADS[2], state, PARAMS)
    got, found = update(GRADS[2], given, PARAMS)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, got, want)
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(after))


def test_another_raw_state_is_refused():
    raw = unnamed(trained(aj.adamw(0.1)))
    for tx in (aj.lion(0.1), aj.skip_nonfinite(aj.adamw(0.1)), AVERAGE):
        with pytest.raises(ValueError, match="restore reads a checkpoint, transplant carries"):
            tx.update(GRADS[0], raw, PARAMS)
