"""Checkpoints: what comes back is what was saved, to the bit, or nothing."""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import zoo
from flax import linen, nnx
from support import assert_equal

import adamw_jax as aj
from adamw_jax.checkpoints import Checkpoints
from adamw_jax.core.digests import digest
from adamw_jax.flax import TrainState

PROGRAM = Path(__file__).parent / "interrupted.py"
HALF = ocp.utils.TMP_DIR_SUFFIX


def visible(tree):
    """With the data of keys in place of keys."""
    is_key = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def assert_same(tree, other):
    """The same bits in the same kinds of containers and leaves."""
    assert_equal(visible(tree), visible(other))
    kinds = lambda tree: [(type(x), getattr(x, "dtype", None)) for x in jax.tree.leaves(tree)]
    assert kinds(tree) == kinds(other)


def blank(tree):
    """Another tree like it: zeros, and keys of another seed."""
    is_key = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    zero = lambda x: np.zeros_like(x) if isinstance(x, np.ndarray) else jnp.zeros_like(x)
    other = lambda x: jax.random.split(x)[0] if x.ndim == 0 else x[::-1]
    number = lambda x: isinstance(x, bool | int | float | complex | np.generic)
    leaf = lambda x: type(x)(0) if number(x) else other(x) if is_key(x) else zero(x)
    return jax.tree.map(leaf, tree)


def round_trip(directory, tree, like=None):
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(5, tree)
    step, restored = Checkpoints(directory).restore(blank(tree) if like is None else like)
    assert step == 5
    return restored


# --- round trips --------------------------------------------------------------

LEAVES = {
    "int": 3,
    "large": 2**40,
    "negative": -1,
    "float": 0.1,
    "bool": True,
    "complex": 1 + 2j,
    "np.int64": np.int64(2**40),
    "np.float64": np.float64(0.1),
    "np.float32": np.float32(0.1),
    "numpy": np.arange(5),
    "numpy 64": np.linspace(0, 1, 7),
    "numpy complex": np.linspace(0, 1j, 3),
    "numpy Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bfloat16": np.asarray([0.1, -0.0, np.inf], jnp.bfloat16),
    "not a number": np.asarray([0x7FC00001, 0xFF800001], np.uint32).view(np.float32),
    "scalar": jnp.float32(0.1),
    "matrix": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "nothing": np.zeros((0, 3), np.float32),
    "flags": np.asarray([True, False]),
    "complex64": np.asarray([1 + 2j, 0], np.complex64),
    "float16": np.asarray([0.1], np.float16),
    "float8": np.asarray([0.1, 2], jnp.float8_e4m3fn),
    "uint8": np.arange(9, dtype=np.uint8),
    "int32": np.asarray([-1, 2**31 - 1], np.int32),
}


def test_every_kind_of_leaf(tmp_path):
    """As NumPy and as JAX has it; a NaN keeps its payload."""
    arrays = {k: v for k, v in LEAVES.items() if isinstance(v, np.ndarray) and "numpy" not in k}
    keys = {"key": jax.random.key(7), "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3)}
    tree = {"as is": LEAVES, "jax": jax.tree.map(jnp.asarray, arrays), "keys": keys, "none": None}
    restored = round_trip(tmp_path, tree)
    assert_same(restored, tree)
    bits = lambda x: np.asarray(x).tobytes()
    assert jax.tree.map(bits, restored["jax"]) == jax.tree.map(bits, tree["jax"])
    impl = lambda tree: jax.tree.map(lambda k: str(jax.random.key_impl(k)), tree["keys"])
    assert impl(restored) == impl(tree)


def test_every_optimizer(tmp_path):
    """States of other dtypes than the parameters, with other numbers in every element."""
    params = {"w": jnp.ones((4, 4), jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    numbers = itertools.count(1)
    count = lambda x: jnp.reshape(jnp.arange(x.size, dtype=float) + next(numbers), x.shape)
    states = {row.name: row.tx().init(params) for row in zoo.ROWS}
    states = jax.tree.map(lambda x: count(x).astype(x.dtype), states)
    restored = round_trip(tmp_path, states)
    assert_same(restored, states)
    assert type(restored["adamw"]["direction"]["numerator"][0]).__name__ == "ScaleByMomentumState"


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.blocks[1](self.dropout(self.norm(self.blocks[0](x))))


def nnx_trained(seed, steps):
    """A model and its optimizer after some steps, and the step."""
    model = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, aj.adamw(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((8, 3))) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer, step


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_nnx_goes_on_where_it_was(tmp_path, standard_promotion):
    model, optimizer, step = nnx_trained(0, 3)
    other, its_optimizer, its_step = nnx_trained(1, 1)
    saved, like = nnx.state((model, optimizer)), nnx.state((other, its_optimizer))
    restored = round_trip(tmp_path, saved, like)
    assert_same(restored, saved)
    nnx.update((other, its_optimizer), restored)
    step(model, optimizer)
    its_step(other, its_optimizer)
    assert_same(nnx.state((other, its_optimizer)), nnx.state((model, optimizer)))


def test_a_train_state_goes_on_where_it_was(tmp_path, standard_promotion):
    """Its step is the number 0 before the first update, and an array after it."""
    net, xs = linen.Dense(2), jnp.ones((4, 3))
    params = net.init(jax.random.key(0), xs)["params"]
    fresh = TrainState.create(apply_fn=net.apply, params=params, tx=aj.adamw(0.1))

    @jax.jit
    def step(state):
        loss = lambda p: jnp.mean(state.apply_fn({"params": p}, xs) ** 2)
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = step(step(fresh))
    restored = round_trip(tmp_path, state, fresh)
    assert restored.step == 2
    assert type(restored.step) is int
    assert_same(restored.replace(step=state.step), state)
    assert_same(step(restored), step(state))


def test_a_number_takes_the_place_of_an_array_of_its_kind_only(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"n": jnp.int32(3)})
    assert Checkpoints(tmp_path).restore({"n": 0}) == (1, {"n": 3})
    with pytest.raises(ValueError, match=r"'n' was saved as int32\[\], and the tree has float64"):
        Checkpoints(tmp_path).restore({"n": 0.0})


def test_arrays_stay_bound_to_a_device_or_not(tmp_path):
    """An array that was free to move must be after a restart, too."""
    device = jax.devices()[0]
    bound = lambda: jax.device_put(jnp.ones(3), device)
    make = lambda: {"bound": bound(), "free": jnp.ones(3), "key": jax.random.key(0)}
    tree = make() | {"bound key": jax.device_put(jax.random.key(1), device)}
    restored = round_trip(tmp_path, tree)
    committed = lambda tree: jax.tree.map(lambda x: x.committed, tree)
    assert committed(restored) == committed(tree)
    assert committed(tree) == {"bound": True, "free": False, "key": False, "bound key": True}
    abstract = {k: jax.ShapeDtypeStruct((3,), jnp.float32) for k in ("bound", "free")}
    keys = {k: tree[k] for k in ("key", "bound key")}
    assert_equal(Checkpoints(tmp_path).restore(abstract | keys)[1]["free"], tree["free"])


SHARDED = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from adamw_jax.checkpoints import Checkpoints
from adamw_jax.core.digests import _hash, digest
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
put = lambda spec: jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, spec))
specs = [P("data", "model"), P("model"), P(None, "data"), P()]
assert len({digest(put(spec)) for spec in specs} | {digest(jnp.arange(64.0).reshape(8, 8))}) == 1
text = _hash.lower(put(specs[0])).compile().as_text()
assert "all-reduce" in text and "all-gather" not in text
for step, (old, new) in enumerate(zip(specs, specs[1:]), 1):
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(step, {"x": put(old)})
    found, tree = Checkpoints(sys.argv[1]).restore({"x": put(new)})
    assert found == step and tree["x"].sharding == put(new).sharding
    assert (tree["x"] == put(new)).all()
print("done")
"""


def test_sharded_arrays(tmp_path):
    """On eight devices: the digest moves one sum only, and another sharding may be restored."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "done\n", done.stderr


# --- saving -------------------------------------------------------------------


def small(seed):
    """Something to save, different in every element for every seed."""
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "still": jnp.zeros(4096)}
    state = aj.adamw(1e-3).init(params)
    return {"params": params, "state": state, "position": seed, "order": np.arange(seed, 9 + seed)}


def save(directory, steps, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step))


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_the_last_few_are_kept(tmp_path):
    save(tmp_path / "two", [1, 2, 5, 7])
    assert steps_in(tmp_path / "two") == [5, 7]
    save(tmp_path / "three", [1, 2, 5, 7], keep=3)
    assert steps_in(tmp_path / "three") == [2, 5, 7]


def test_nothing_saved_yet(tmp_path):
    tree = small(3)
    start, same = Checkpoints(tmp_path / "a" / "b").restore(tree)
    assert (start, same) == (0, tree)
    assert same is tree
    assert not (tmp_path / "a").exists()
    save(tmp_path / "a" / "b", [1])
    assert Checkpoints(tmp_path / "a" / "b").restore(tree)[0] == 1


def test_what_is_saved_may_change_at_once(tmp_path):
    """Files are written in the background; arrays are donated and overwritten meanwhile."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, position = jnp.zeros((512, 512)), np.zeros(3, int)
    for i in range(5):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2 * i + 1, {"x": x, "position": position})
            x = step(x)
            position += 1
            checkpoints.save(2 * i + 2, {"x": x, "position": position})
            x = step(x)
            position += 1
        like = {"x": x, "position": position}
        _, found = Checkpoints(tmp_path).restore(like)
        assert_equal(found, {"x": x - 1, "position": position - 1})


def test_a_step_must_follow_what_is_there(tmp_path):
    save(tmp_path, [4])
    for step in (3, 4):
        with pytest.raises(ValueError, match=rf"step {step} does not come after step 4, which is"):
            save(tmp_path, [step])
    save(tmp_path, [5])
    assert steps_in(tmp_path) == [4, 5]


def test_wrong_calls(tmp_path):
    with pytest.raises(ValueError, match=r"^Checkpoints: keep is 0\. Keep at least 1"):
        Checkpoints(tmp_path, keep=0)
    for leaf in ("adamw", object(), 2**70):
        with pytest.raises(TypeError, match=r"^Checkpoints.save: leaf 'a/b' is .*\. Save arrays,"):
            Checkpoints(tmp_path).save(1, {"a": {"b": leaf}})
    for keep in (1.5, None):
        with pytest.raises(ValueError, match=r"^Checkpoints: keep is .*\. Keep at least 1"):
            Checkpoints(tmp_path, keep=keep)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [-1, 1.5, True, "1", jnp.float32(2)])
def test_a_step_that_would_not_be_found_again(tmp_path, step):
    with pytest.raises(TypeError, match=r"^Checkpoints.save: step is .*\. Pass the number of"):
        Checkpoints(tmp_path).save(step, small(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [0, np.int64(3), jnp.int32(3)])
def test_a_step_may_be_any_integer(tmp_path, step):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(step, small(3))
    assert Checkpoints(tmp_path).restore(small(0))[0] == step


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (jnp.ones(2), r"the tree is Array.*\. Save a dict"),
        ({}, r"the tree is \{\}\. Save a dict"),
        ({"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, r"2 leaves are called 'a/b'\. Rename"),
        ({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, r"2 leaves are called 'a\.b'\. Rename"),
    ],
)
def test_a_tree_that_would_not_be_found_again(tmp_path, tree, message):
    with pytest.raises(ValueError, match=rf"^Checkpoints.save: {message}"):
        Checkpoints(tmp_path).save(1, tree)
    assert not list(tmp_path.iterdir())


def test_a_tree_that_is_not_there_yet(tmp_path):
    """Shapes and dtypes say all that `restore` must know, of keys and empty arrays too."""
    home = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    tree = {"w": jnp.ones(3), "none": jnp.zeros((0, 3)), "key": jax.random.key(7, impl="rbg")}
    for there in (tree, jax.device_put(tree, home)):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), there)
        if there is not tree:
            like = jax.tree.map(lambda x: x.update(sharding=home), like)
        found = round_trip(tmp_path / str(there is tree), there, like)
        assert_same(found, there)
        assert all(
            x.sharding == y.sharding
            for x, y in zip(*map(jax.tree.leaves, (found, there)), strict=True)
        )


def altered(path, value):
    tree = small(0)
    node = tree
    for name in path[:-1]:
        node = node[name]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (altered(("params", "w"), None), "step 1 has 'params/w', which the tree has not"),
        (altered(("params", "v"), jnp.ones(3)), "the tree has 'params/v', which step 1 has not"),
        (
            altered(("params", "w"), jnp.ones((64, 32))),
            r"'params/w' was saved as float32\[64, 64\], and the tree has float32\[64, 32\]",
        ),
        (
            altered(("params", "w"), jnp.ones((64, 64), jnp.bfloat16)),
            r"'params/w' was saved as float32\[64, 64\], and the tree has bfloat16\[64, 64\]",
        ),
        (
            altered(("state",), aj.lion(1e-3).init(small(0)["params"])),
            "step 1 has 'state/direction/.*', which the tree has not",
        ),
    ],
)
def test_another_tree_is_an_error_and_no_damage(tmp_path, tree, message):
    save(tmp_path, [1])
    with pytest.raises(ValueError, match=rf"^Checkpoints.restore: {message}\. Pass a tree like"):
        Checkpoints(tmp_path).restore(tree)


# --- damage -------------------------------------------------------------------


# Where one file cannot be read, Orbax gives up while others are still being read; their
# results then find nobody who waits for them.
# When that is said is up to its threads: it may be during the tests that follow.
@pytest.fixture(scope="session")
def gives_up():
    said = sys.unraisablehook
    late = lambda what: str(what.exc_value) == "Event loop is closed"
    sys.unraisablehook = lambda what: None if late(what) else said(what)
    yield
    sys.unraisablehook = said


def flipped(data, rng):
    """One bit is another one."""
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


DAMAGE = {
    "cut": lambda data, rng: data[: len(data) // 2],
    "zeros": lambda data, rng: bytes(len(data)),
    "flip": flipped,
    "another flip": flipped,
}


@pytest.mark.usefixtures("gives_up")
@pytest.mark.parametrize("kind", ["lost", *DAMAGE])
def test_a_damaged_file_is_never_loaded(tmp_path, kind):
    """Any file of the newest step: what comes back is one of the steps, to the bit, and the
    older one only with a warning."""
    save(tmp_path / "good", [1, 2])
    files = [path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()]
    rng, skipped = random.Random(0), 0
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", copy)
        victim = copy / file.relative_to(tmp_path / "good")
        if kind == "lost":
            victim.unlink()
        else:
            victim.write_bytes(DAMAGE[kind](victim.read_bytes(), rng))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, tree = Checkpoints(copy).restore(small(0))
        assert_same(tree, small(step))
        messages = [str(w.message) for w in caught]
        if step == 1:
            (message,) = messages
            assert re.search(
                r"restore: step 2 is damaged \(.+\)\. Step 1 is used instead\.", message
            )
            assert caught[0].filename == __file__
        else:
            assert messages == []
        skipped += step == 1
    assert skipped >= 4  # record, tree, its index and the data; some files Orbax never reads


def damage(directory, step):
    """All array data are zeros.  To cut the files would not do: how the data are spread over
    them is up to the threads that write, and what is lost may be what nothing refers to."""
    for file in (directory / str(step) / "tree" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(DAMAGE["zeros"](file.read_bytes(), None))


def test_a_changed_record_is_noticed(tmp_path):
    """Its digests are as good as the leaves, if nobody changes them."""
    save(tmp_path, [1, 2])
    record = tmp_path / "2" / "record" / "metadata"
    text = record.read_text()
    record.write_text(re.sub(r"(\d)(\d)\]", r"\2\1]", text, count=1))
    assert record.read_text() != text
    with pytest.warns(RuntimeWarning, match="step 2 is damaged .its record has changed."):
        assert Checkpoints(tmp_path).restore(small(0))[0] == 1
    record.write_text("[]")
    with pytest.warns(RuntimeWarning, match="step 2 is damaged .its record has changed."):
        assert Checkpoints(tmp_path).restore(small(0))[0] == 1


def test_other_contents_are_noticed(tmp_path):
    """All files are valid, but the tree is another one."""
    save(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "2" / "tree")
    shutil.copytree(tmp_path / "1" / "tree", tmp_path / "2" / "tree")
    with pytest.warns(RuntimeWarning, match="step 2 is damaged .'(order|params/w)' has changed."):
        step, tree = Checkpoints(tmp_path).restore(small(0))
    assert step == 1
    assert_same(tree, small(1))


@pytest.mark.usefixtures("gives_up")
def test_what_is_damaged_is_moved_aside(tmp_path):
    """By the first save after it, so that a step can be taken again; looking changes nothing."""
    save(tmp_path, [1, 2])
    for again in range(2):
        damage(tmp_path, 2)
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.warns(RuntimeWarning, match="step 2 is damaged"):
                start, tree = checkpoints.restore(small(0))
            assert (start, steps_in(tmp_path)) == (1, [1, 2])
            checkpoints.save(2, small(2))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged"], again
    assert_same(tree, small(1))
    assert_same(Checkpoints(tmp_path).restore(small(0))[1], small(2))


def test_a_half_written_step_is_skipped_and_cleared(tmp_path):
    save(tmp_path, [1])
    shutil.copytree(tmp_path / "1", tmp_path / f"2{HALF}")
    (tmp_path / f"2{HALF}" / "tree" / "_METADATA").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        message = rf"restore: 2{HALF} is half written\. Step 1 is used instead\."
        with pytest.warns(RuntimeWarning, match=message):
            start, tree = checkpoints.restore(small(0))
        assert start == 1
        assert_same(tree, small(1))
        checkpoints.save(2, small(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_only_half_written_steps_are_no_start(tmp_path):
    (tmp_path / f"2{HALF}").mkdir()
    with pytest.warns(RuntimeWarning, match=rf"2{HALF} is half written\. The run starts again\."):
        assert Checkpoints(tmp_path).restore(small(0))[0] == 0


@pytest.mark.usefixtures("gives_up")
def test_no_whole_step_is_an_error(tmp_path):
    """A long run must not begin again without a word, and overwrite what might be saved."""
    save(tmp_path, [1, 2])
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    message = r"no checkpoint in .* is whole: step 2 is damaged .*; step 1 is damaged .*\. To start"
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path).restore(small(0))
    assert steps_in(tmp_path) == [1, 2]


# --- digests ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int64", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 2)])
def test_one_bit_changes_the_digest(kind, shape):
    array = np.zeros(shape, jnp.dtype(kind))
    digests = [digest(array)]
    for bit in range(8 * array.nbytes):
        if kind == "bool" and bit % 8:
            continue  # no bool
        data = bytearray(array.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        digests.append(digest(np.frombuffer(bytes(data), array.dtype).reshape(shape)))
    assert len(set(digests)) == len(digests) > 0


def test_order_changes_the_digest():
    numbers = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    swaps = [numbers[list(order)] for order in itertools.permutations(range(4))]
    assert len({digest(x) for x in [*swaps, *(x.T for x in swaps)]}) == 48


@pytest.mark.parametrize(
    "kind", ["int64", "uint64", "float64", "complex64", "complex128", "float16"]
)
def test_numpy_and_jax_digest_alike(kind, x64):
    rng = np.random.default_rng(0)
    array = 100 * rng.normal(size=(3, 5)) + (1j * rng.normal(size=(3, 5)) if "c" in kind else 0)
    array = np.abs(array).astype(kind) if kind == "uint64" else array.astype(kind)
    assert jnp.asarray(array).dtype == array.dtype
    there = digest(jnp.asarray(array))
    jax.config.update("jax_enable_x64", False)
    assert digest(array) == digest(np.asfortranarray(array)) == there


# --- a run that is killed -----------------------------------------------------

STEPS, EVERY, KILLS = 1000, 10, 20


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Starts the training program; compiled code is kept, as it is the time of a start."""
    folder = tmp_path_factory.mktemp("killed")
    path = os.pathsep.join([str(PROGRAM.parent.parent), os.environ.get("PYTHONPATH", "")])
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(directory, steps=STEPS):
        options = ["--steps", str(steps), "--every", str(EVERY)]
        command = [PROGRAM, folder / directory, folder / f"{directory}.npz", *options]
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | {"PYTHONPATH": path} | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.folder = folder
    return start


def wait_for(process, event):
    while not event():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def half_written(directory):
    return [name for name in os.listdir(directory) if HALF in name]


def kill_somewhere(process, directory, rng, in_a_save):
    """Kills a run once it has made one to three checkpoints: when another is begun, or anywhere."""
    newest = lambda: max(steps_in(directory), default=0) if directory.exists() else 0
    target = newest() + EVERY * rng.randint(1, 3)
    wait_for(process, lambda: newest() >= target)
    if in_a_save:
        wait_for(process, lambda: half_written(directory))
    time.sleep(rng.uniform(0, 0.03 if in_a_save else 0.2))
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return int(re.search(r"start (\d+)", out)[1]), err


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_like_one_that_was_not(program):
    """To the bit: parameters, optimizer, batch statistics and random streams.  Kills fall
    anywhere, many into a save, and twice the newest checkpoint is damaged besides."""
    whole = program("whole")
    out, err = whole.communicate()
    assert (whole.returncode, out) == (0, "start 0\n"), err
    directory, rng = program.folder / "killed", random.Random(0)
    starts, inside, damaged = [], 0, []
    for kill in range(KILLS):
        half_before = half_written(directory) if kill else []
        start, err = kill_somewhere(program("killed"), directory, rng, in_a_save=kill % 2)
        starts.append(start)
        inside += bool(half_written(directory))
        for name in half_before:
            assert f"{name} is half written" in err
        if damaged:
            assert f"step {damaged[-1]} is damaged" in err
            assert start < damaged[-1]
            damaged = []
        if kill in (7, 14):
            damaged = [max(steps_in(directory))]
            damage(directory, damaged[-1])
    last = program("killed")
    out, err = last.communicate()
    assert last.returncode == 0, err
    starts.append(int(re.search(r"start (\d+)", out)[1]))

    assert starts == sorted(starts)
    assert starts[1] > 0
    assert starts[-1] < STEPS
    assert inside >= 8, f"{inside} of {KILLS} kills fell into a save"
    assert half_written(directory) == []
    expected, found = (np.load(program.folder / f"{name}.npz") for name in ("whole", "killed"))
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    print(f"{inside} of {KILLS} kills in a save; restarts at {starts}")
