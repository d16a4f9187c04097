"""State on a mesh of eight devices: where it lies, what moves, and that nothing else changes."""

import collections
import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import zoo
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_equal

import adamw_jax as aj
from adamw_jax.core import trees

# One axis for the data, one for the model, or both.
MESHES = {"data": (8, 1), "model": (1, 8), "both": (4, 2)}
each_mesh = pytest.mark.parametrize("name", MESHES)

# Three hidden matrices of one shape, two of another and its transpose, an embedding,
# a vector, and a leaf that no axis divides.
SPECS = {
    **{f"mid{i}": {"kernel": P(None, "model")} for i in range(3)},
    "up": {"kernel": P(None, "model"), "bias": P("model")},
    "down": {"kernel": P("model", None)},
    "embed": {"table": P(None, "model")},
    "gain": P(),
}
SHAPES = {
    **{f"mid{i}": {"kernel": (16, 16)} for i in range(3)},
    "up": {"kernel": (16, 32), "bias": (32,)},
    "down": {"kernel": (32, 16)},
    "embed": {"table": (24, 16)},
    "gain": (3,),
}
is_shape = lambda x: isinstance(x, tuple)


def mesh_of(name, kind=AxisType.Auto):
    return jax.make_mesh(MESHES[name], ("data", "model"), axis_types=(kind, kind))


def draw(seed, batch=()):
    """A tree of small whole numbers: sums of them are exact in any order."""
    rng = np.random.default_rng(seed)
    leaf = lambda shape: jnp.asarray(rng.integers(-8, 9, (*batch, *shape)), jnp.float32)
    return jax.tree.map(leaf, SHAPES, is_leaf=is_shape)


def placed(tree, mesh, specs=SPECS):
    """The tree, on the mesh."""
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(put, tree, specs)


def stepper(tx):
    """A step on the mean over a batch, whose gradient is the mean of the batch."""

    def loss(params, batch):
        terms = jax.tree.map(lambda p, b: jnp.mean(jnp.sum(p * b, range(1, b.ndim))), params, batch)
        return jax.tree.reduce(jnp.add, terms)

    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return step


def shardings(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def start(tx, mesh, zero_axis=None, specs=SPECS):
    """Parameters, state, a batch and the jitted step, all on the mesh."""
    params = placed(draw(0), mesh, specs)
    placing = aj.state_sharding(tx, params, mesh, zero_axis)
    state = jax.jit(tx.init, out_shardings=placing)(params)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1), out_shardings=(shardings(params), placing))
    return params, state, step


def batches(steps, mesh=None):
    for seed in range(1, steps + 1):
        batch = draw(seed, (8,))
        over_data = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
        yield batch if mesh is None else jax.tree.map(over_data, batch)


@functools.cache
def alone(tx, steps=4):
    """Parameters and state after some steps on one device."""
    params, step = draw(0), jax.jit(stepper(tx))
    state = tx.init(params)
    for batch in batches(steps):
        params, state = step(params, state, batch)
    return params, state


def close(tree, other, rtol=2e-6):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        scale = np.max(np.abs(y), initial=0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale)


COLLECTIVE = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"


def collectives(compiled):
    """(kind, elements, in a loop, metadata) of each in a compiled program."""
    found, computation = [], ""
    for line in compiled.as_text().splitlines():
        if re.match(r"(%|ENTRY)", line):
            computation = line
        hit = re.search(rf"= (\(.*?\)|\S+) {COLLECTIVE}(-start)?\(", line)
        if hit:
            shapes = re.findall(r"\w+\[([\d,]*)\]", hit[1])
            size = sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)
            found.append((hit[2], size, not computation.startswith("ENTRY"), line))
    return found


# --- where state lies ----------------------------------------------------------


@pytest.mark.parametrize("boxed", [False, True], ids=["dict", "nnx"])
@zoo.rows()
def test_state_of_a_parameters_shape_lies_as_the_parameter(row, boxed):
    mesh, tx = mesh_of("both"), row.tx()
    specs = {"a": {"w": P(None, "model")}, "b": P("model"), "c": {"w": P("model", "data")}}
    shapes = {"a": {"w": (6, 4)}, "b": (4,), "c": {"w": (4, 8)}}
    abstract = lambda shape, spec: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    params = jax.tree.map(abstract, shapes, specs, is_leaf=is_shape)
    if boxed:
        params = nnx.State(jax.tree.map(nnx.Param, params))
    found = aj.state_sharding(tx, params, mesh)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    by_path = {trees.path_names(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    matrices = 0
    pairs = jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found)
    for (path, x), sharding in zip(*pairs, strict=True):
        names = trees.path_names(path)
        owner = next((p for path, p in by_path.items() if names[-len(path) :] == path), None)
        if owner is not None and x.shape == owner.shape:
            matrices += x.ndim == 2
            assert sharding.is_equivalent_to(owner.sharding, x.ndim), names
        elif not x.shape or not jnp.issubdtype(x.dtype, jnp.inexact):
            assert sharding.is_fully_replicated, names
    # No matrix was overlooked, and there are some.
    assert matrices == sum(x.shape in ((6, 4), (4, 8)) for x in jax.tree.leaves(state))
    assert matrices >= {"sgd": 0, "adafactor": 0, "adamw": 4, "muon": 2, "soap": 4}.get(row.name, 2)


def specs_of(tx, shape, spec, zero_axis="data", name="both"):
    """The specs of all state that belongs to one parameter, and the fallbacks."""
    mesh = mesh_of(name)
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    report = aj.sharding_report(tx, {"w": leaf}, mesh, zero_axis)
    mine = [p for p in report if p.path.endswith("of w")]
    assert [p for p in report if p not in mine and p.spec != P()] == []
    return [tuple(p.spec) for p in mine], [p.fallback for p in mine if p.fallback]


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((8, 8), P(), ("data", None)),
        ((6, 8), P(), (None, "data")),
        ((8, 8), P("model"), ("model", "data")),  # what is not sharded yet comes first
        ((8, 3), P("model"), (("model", "data"), None)),
        ((8, 6), P(None, "model"), ("data", "model")),
        ((8, 8), P("data", "model"), ("data", "model")),  # it is over data already
        ((8, 8), P(("model", "data")), (("model", "data"), None)),
        ((8,), P(), ("data",)),
    ],
)
def test_zero_takes_the_first_axis_that_it_divides(shape, spec, expected):
    assert specs_of(aj.momentum(0.1), shape, spec) == ([expected], [])


def test_what_cannot_be_spread_is_reported():
    tx = aj.momentum(0.1)
    assert specs_of(tx, (6, 3), P()) == (
        [(None, None)],
        ["no axis of (6, 3) is divisible by 4"],
    )
    assert specs_of(tx, (4, 3), P("model")) == (
        [("model", None)],
        ["no axis of (4, 3), sharded (2, 1), is divisible by 4"],
    )
    assert specs_of(tx, (6, 3), P(), None) == ([(None, None)], [])
    assert specs_of(tx, (0, 3), P())[1] == []  # nothing to spread


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        # row [in], column [out] of a kernel [in, out] that is sharded over model on out
        (aj.adafactor, (8, 16), [(None,), ("model",)]),
        (aj.adafactor, (16, 16), [(None,), (None,)]),  # which is which nobody can tell
        (aj.adam_mini, (8, 16), [(None, "model"), (None, "model")]),  # [1, out] and momentum
    ],
)
def test_other_statistics_keep_the_shards_of_the_axes_they_keep(make, shape, expected):
    found, _ = specs_of(make(0.1), shape, P(None, "model"), None)
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_soap_spreads_its_bases():
    found, fallbacks = specs_of(aj.soap(0.1), (8, 16), P(None, "model"))
    assert collections.Counter(found) == {("data", None): 4, ("data", "model"): 2}
    assert fallbacks == []


def test_what_is_refused():
    mesh, tx = mesh_of("both"), aj.adamw(0.1)
    spec = NamedSharding(mesh, P("data"))
    with pytest.raises(TypeError, match=r"^state_sharding: 'w' is NamedSharding.* has no shape"):
        aj.state_sharding(tx, {"w": spec}, mesh)
    with pytest.raises(ValueError, match=r"no axis 'batch'\. Choose from: data, model"):
        aj.state_sharding(tx, {"w": jnp.ones(8)}, mesh, "batch")
    with pytest.raises(
        TypeError, match=r"^state_sharding: zero_axis is \('data', 'model'\)\. Name"
    ):
        aj.state_sharding(tx, {"w": jnp.ones(8)}, mesh, ("data", "model"))
    other = mesh_of("data")
    with pytest.raises(ValueError, match=r"^sharding_report: parameter 'w' has .* not on the mesh"):
        aj.sharding_report(tx, {"w": jax.device_put(jnp.ones(8), spec)}, other)


# --- what it does ----------------------------------------------------------------

OPTIMIZERS = {
    "adamw": aj.adamw(0.1),
    "clipped adamw": aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.1)),
    "observed": aj.skip_nonfinite(aj.observe(aj.adamw(0.1), every=2)),
    "lion": aj.lion(0.1),
    "muon": aj.muon(0.1),
    "adafactor": aj.adafactor(0.1),
    "adam_mini": aj.adam_mini(0.1),
    "schedule_free_adamw": aj.schedule_free_adamw(0.1),
    "prodigy": aj.prodigy(1.0),
    "optax.adamw": optax.adamw(0.1),
}


EVERYWHERE = ("adamw", "clipped adamw", "lion", "muon")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [(o, name) for o in OPTIMIZERS for name in MESHES if name == "both" or o in EVERYWHERE],
)
def test_a_mesh_changes_nothing_but_the_place(optimizer, name):
    """Four steps are those of one device, and everything stays where it was put."""
    mesh, tx = mesh_of(name), OPTIMIZERS[optimizer]
    with jax.numpy_dtype_promotion("standard"):
        params, state, step = start(tx, mesh, zero_axis="data")
        before = shardings((params, state))
        for batch in batches(4, mesh):
            params, state = step(params, state, batch)
        assert shardings((params, state)) == before
        close((params, state), alone(tx))


def compiled_step(tx, name, zero_axis):
    mesh = mesh_of(name)
    params, state, step = start(tx, mesh, zero_axis)
    (batch,) = batches(1, mesh)
    return params, state, step.lower(params, state, batch).compile()


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
@each_mesh
def test_between_steps_nothing_moves(optimizer, name):
    """Outputs lie as inputs do.  Parameters are gathered once where state is spread;
    beside the sum of gradients there is no other traffic."""
    tx = OPTIMIZERS[optimizer]
    for zero_axis in (None, "data"):
        params, state, compiled = compiled_step(tx, name, zero_axis)
        stays = lambda x, out: x.sharding.is_equivalent_to(out, x.ndim)
        moves = jax.tree.map(stays, (params, state), compiled.output_shardings)
        assert all(jax.tree.leaves(moves))

        moved = collections.Counter()
        for kind, size, _, _ in collectives(compiled):
            moved[kind] += size
        data, _ = MESHES[name]
        local = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(params))
        stuck = 3  # `gain` cannot be spread
        assert set(moved) <= {"all-reduce", "all-gather"}
        assert moved["all-reduce"] == (local if data > 1 else 0)
        assert moved["all-gather"] == (local - stuck if data > 1 and zero_axis else 0)


def test_bytes_go_down_by_the_size_of_the_axis():
    mesh, tx = mesh_of("data"), aj.adamw(0.1)
    full = {"w": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}}
    params = jax.device_put(full, NamedSharding(mesh, P()))
    held = {}
    for zero_axis in (None, "data"):
        placing = aj.state_sharding(tx, params, mesh, zero_axis)
        state = jax.jit(tx.init, out_shardings=placing)(params)
        sizes = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
        report = aj.sharding_report(tx, params, mesh, zero_axis)
        assert [p.bytes for p in report] == sizes
        held[zero_axis] = sum(n for n, p in zip(sizes, report, strict=True) if p.shape)
    assert held[None] == 8 * (64 * 64 + 64)
    assert held["data"] == held[None] / 8


def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    tx = aj.adamw(0.1)
    params, state, step = start(tx, mesh_of("both"), "data")
    (batch,) = batches(1, mesh_of("both"))
    params, state = step(params, state, batch)
    there = placed(draw(0), mesh_of("data"))
    placing = aj.state_sharding(tx, there, mesh_of("data"), "data")
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placing
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        restored = manager.restore(0, args=ocp.args.StandardRestore(abstract))
    assert shardings(restored) == placing
    assert_equal(restored, state)


# --- whole matrices ----------------------------------------------------------------


def stacked_muon(axis, **settings):
    return aj.replace(aj.muon(0.1, **settings), "muon.orthogonalize", stack_axis=axis)


def in_newton_schulz(compiled):
    inside = lambda looped, line: looped or "newton_schulz" in line
    return [line for _, _, looped, line in collectives(compiled) if inside(looped, line)]


def test_a_sharded_matrix_makes_newton_schulz_communicate():
    """What the stack axis is for: without it there are collectives, in the loop too."""
    *_, compiled = compiled_step(aj.muon(0.1), "both", "data")
    assert any("while" in line for line in in_newton_schulz(compiled))


@pytest.mark.parametrize(
    ("name", "axis"),
    [("data", "data"), ("model", "model"), ("both", "data"), ("both", ("model", "data"))],
)
def test_newton_schulz_does_not_communicate_where_stacks_are_dealt_out(name, axis):
    tx = stacked_muon(axis)
    with jax.set_mesh(mesh_of(name)):
        params, state, compiled = compiled_step(tx, name, "data")
        assert in_newton_schulz(compiled) == []
        text = compiled.as_text()
        assert "newton_schulz" in text
        # each device iterates its share of the four 16 x 16 matrices, rounded up
        devices = np.prod(
            [
                dict(zip(("data", "model"), MESHES[name], strict=True))[a]
                for a in np.atleast_1d(axis)
            ]
        )
        share = -(-4 // devices)
        assert re.search(rf"f32\[{share},16,16\]\S* dot\(", text) or share == 1
        for batch in batches(4, mesh_of(name)):
            params, state = compiled(params, state, batch)
    close(params, alone(aj.muon(0.1))[0], rtol=1e-5)


def test_replicated_matrices_are_gathered_once():
    """Data parallel Muon: every device slices its matrices off and shares the results."""
    mesh, tx = mesh_of("data"), stacked_muon("data")
    with jax.set_mesh(mesh):
        *_, compiled = compiled_step(tx, "data", None)
    kinds = collections.Counter(kind for kind, *_ in collectives(compiled))
    assert set(kinds) == {"all-reduce", "all-gather"}
    assert kinds["all-gather"] == 2  # one a stack


def test_a_stack_without_a_mesh_is_refused():
    tx, params = stacked_muon("data"), {"w": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=r"^orthogonalize: there is no mesh with an axis 'data'"):
        tx.update(params, tx.init(params), params)
    tx = stacked_muon("stage")
    with jax.set_mesh(mesh_of("both")), pytest.raises(ValueError, match="no axis 'stage'"):
        tx.update(params, tx.init(params), params)


def test_stacks_that_do_not_divide_are_reported():
    params = placed(draw(0), mesh_of("both"))
    said = lambda tx: [w for w in aj.describe(tx, params).warnings if "share" in w]
    assert said(stacked_muon("data")) == [
        "2 matrices of shape (16, 32) do not share equally among 4 devices; "
        "'muon.orthogonalize' adds 2 of zeros.",
        "3 matrices of shape (16, 16) do not share equally among 4 devices; "
        "'muon.orthogonalize' adds 1 of zeros.",
    ]
    assert len(said(stacked_muon("model"))) == 1  # the two are shared by two
    assert said(aj.muon(0.1)) == []


# --- explicit axes -------------------------------------------------------------------


def assert_alike_on_an_explicit_mesh(row, context):
    """Where shardings are part of types: the same steps, and updates like their gradients."""
    mesh, tx = mesh_of("both", AxisType.Explicit), row.tx()
    specs = {"w": P(None, "model"), "u": P("model", "data"), "b": P()}
    full = {"w": draw(0)["up"]["kernel"], "u": draw(0)["mid0"]["kernel"], "b": draw(0)["gain"]}
    params = placed(full, mesh, specs)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, **row.extra(p)))
    with context(mesh):
        updates, state = step(params, tx.init(params), params)
        updates, _ = step(updates, state, params)
    alike = lambda u, p: u.sharding.is_equivalent_to(p.sharding, u.ndim)
    assert all(jax.tree.leaves(jax.tree.map(alike, updates, params)))
    updates_alone, state = step(full, tx.init(full), full)
    close(updates, step(updates_alone, state, full)[0], rtol=1e-5)


@zoo.rows("explicit", alike=False)
def test_on_an_explicit_mesh(row):
    assert_alike_on_an_explicit_mesh(row, jax.set_mesh)


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_on_an_explicit_mesh_that_is_not_the_current_one(name):
    (row,) = (row for row in zoo.ROWS if row.name == name)
    assert_alike_on_an_explicit_mesh(row, contextlib.nullcontext)
