"""The report before training: leaves, totals, warnings, text and HTML."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import linen, nnx
from jax.sharding import NamedSharding, PartitionSpec

import adamw_jax as aj
from adamw_jax.core.flow import Owners
from adamw_jax.core.transformation import combinator, elementwise
from adamw_jax.inspect.periodic import factories


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


MODEL = {
    "embed": {"embedding": abstract(1000, 64)},
    "layers": [
        {
            "attention": {"query": {"kernel": abstract(64, 4, 16)}},
            "mlp": {"kernel": abstract(64, 256), "bias": abstract(256)},
            "norm": {"scale": abstract(64)},
        }
    ],
}
MATRICES = {"a": abstract(32, 16), "b": abstract(16, 8)}
NO_VECTORS = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)


def by_path(found):
    return {leaf.path: leaf for leaf in found.leaves}


def test_adamw():
    found = aj.describe(aj.adamw(1e-3, weight_decay=0.1), MATRICES)
    assert found.bytes_per_parameter == 8.0
    assert found.totals.by_piece == {
        "direction.numerator.0": 4.0,
        "direction.denominator.moment": 4.0,
    }
    assert found.totals.parameters == 640
    assert (found.totals.parameter_bytes, found.totals.state_bytes) == (2560, 5120)
    assert found.totals.overhead_bytes == 16  # three counts and the learning rate
    assert found.totals.by_route == {"all": 640}
    a, _ = found.leaves
    assert (a.path, a.shape, a.dtype, a.size) == ("a", (32, 16), jnp.float32, 512)
    assert (a.route, a.weight_decay, a.decayed) == ("all", 0.1, True)
    assert (a.learning_rate, a.multiplier, a.bytes) == (1e-3, 1.0, 4096)
    assert {(h.path, h.field, h.dtype.name, h.bytes) for h in a.state} == {
        ("direction.numerator.0", "momentum", "float32", 2048),
        ("direction.denominator.moment", "second_moment", "float32", 2048),
    }
    assert found.warnings == ()
    assert found.expression == aj.adamw(1e-3, weight_decay=0.1)


@zoo.rows()
def test_all_state_is_accounted_for(row):
    found = aj.describe(row.tx(), MATRICES)
    state = jax.eval_shape(row.tx().init, MATRICES)
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert found.totals.state_bytes + found.totals.overhead_bytes == total
    assert found.totals.overhead_bytes < 100
    assert found.totals.state_bytes == round(found.bytes_per_parameter * 640)
    assert set(found.totals.by_piece) <= {"", *aj.parts(row.tx())}
    assert all(leaf.learning_rate == row.learning_rate for leaf in found.leaves)


def test_muon():
    found = aj.describe(aj.muon(0.02, weight_decay=0.1), MODEL)
    leaves = by_path(found)
    assert {path: leaf.route for path, leaf in leaves.items()} == aj.routes(aj.muon(0.02), MODEL)
    matrix, embedding = leaves["layers/0/mlp/kernel"], leaves["embed/embedding"]
    assert (matrix.route, matrix.weight_decay, matrix.learning_rate) == ("muon", 0.1, 0.02)
    assert (embedding.route, embedding.weight_decay) == ("adamw", 1e-4)
    assert embedding.multiplier == 1.0  # most parameters are in it
    assert matrix.multiplier == pytest.approx(0.02 / 3e-4)
    assert (matrix.bytes / matrix.size, embedding.bytes / embedding.size) == (4.0, 8.0)
    assert found.totals.by_route == {"muon": 64 * 64 + 64 * 256, "adamw": 64000 + 256 + 64}
    line = next(line for line in str(found).splitlines() if "layers/0/mlp/kernel" in line)
    assert line.split()[:4] == ["layers/0/mlp/kernel", "64x256", "f32", "muon"]


def test_masks_and_rates():
    tx = aj.route(
        [("slow", "embed", aj.chain(aj.adamw(1e-3), aj.scale(0.1)))],
        ("rest", aj.adamw(aj.cosine(1e-3, 10), mask=NO_VECTORS)),
    )
    leaves = by_path(aj.describe(tx, MODEL))
    assert [path for path, leaf in leaves.items() if not leaf.decayed] == [
        "layers/0/mlp/bias",
        "layers/0/norm/scale",
    ]
    assert leaves["embed/embedding"].learning_rate == pytest.approx(1e-4)
    assert leaves["layers/0/mlp/bias"].learning_rate == 1e-3  # the peak
    unknown = aj.describe(aj.sgd(lambda t: 0.1), MATRICES).leaves[0]
    assert (unknown.learning_rate, unknown.multiplier) == (None, None)
    frozen = aj.route([("x", "a", aj.adamw(0.1))], ("frozen", optax.set_to_zero()))
    frozen = by_path(aj.describe(frozen, MATRICES))["b"]
    assert (frozen.route, frozen.learning_rate, frozen.state) == ("frozen", None, ())


@pytest.mark.parametrize("tx", [optax.adamw(1e-3), optax.chain(optax.adam(1e-3))])
def test_foreign_state_is_counted(tx):
    assert aj.describe(tx, MATRICES).bytes_per_parameter == 8.0
    assert aj.describe(aj.chain(aj.clip(1.0), tx), MATRICES).totals.by_piece == {"1": 8.0}


class Dense(nnx.Module):
    def __init__(self, rngs):
        self.l1, self.dropout = nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)


def trees_of_parameters():
    state = nnx.state(Dense(nnx.Rngs(0)), nnx.Param)
    boxed = linen.Dense(8, kernel_init=linen.with_partitioning(linen.zeros_init(), ("a", "b")))
    variables = boxed.init(jax.random.key(0), jnp.ones((1, 4)))
    return {
        "nnx": (state, "l1/"),
        "nnx module": (Dense(nnx.Rngs(0)), "l1/"),  # whose dropout has a random stream
        "nnx abstract": (nnx.state(nnx.eval_shape(lambda: Dense(nnx.Rngs(0))), nnx.Param), "l1/"),
        "linen": (variables, "params/"),
        "linen unboxed": (linen.unbox(variables), "params/"),
        "plain": ({"kernel": np.ones((4, 8), np.float32), "bias": jnp.ones(8)}, ""),
    }


@pytest.mark.parametrize(
    "kind", ["nnx", "nnx module", "nnx abstract", "linen", "linen unboxed", "plain"]
)
def test_any_tree_of_parameters(kind):
    params, prefix = trees_of_parameters()[kind]
    found = aj.describe(aj.muon(0.02, others=aj.adamw(0.1, mask=NO_VECTORS)), params)
    leaves = by_path(found)
    assert set(leaves) == {f"{prefix}kernel", f"{prefix}bias"}
    kernel, bias = leaves[f"{prefix}kernel"], leaves[f"{prefix}bias"]
    assert (kernel.shape, kernel.route, kernel.bytes) == ((4, 8), "muon", 128)
    assert (bias.shape, bias.route, bias.bytes, bias.decayed) == ((8,), "adamw", 64, False)
    assert aj.describe(aj.soap(0.1), params).totals.state_bytes == 2 * 160 + 2 * (64 + 256)


@pytest.mark.parametrize(
    "params",
    [
        abstract(4, 4),
        [abstract(4, 4)],
        (abstract(4, 2), abstract(4, 2)),
        {"direction": abstract(2, 4), "learning_rate": abstract(2, 4)},
        {"tx": abstract(4, 4), "value": abstract(0, 4), "none": None},
    ],
)
def test_state_is_told_from_parameters_whatever_their_names(params):
    for tx in (aj.adamw(0.1), aj.chain(aj.clip(1.0), aj.adamw(0.1)), optax.adamw(0.1)):
        found = aj.describe(tx, params)
        assert (found.bytes_per_parameter, found.totals.parameters) == (8.0, 16)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)


class LinenNormed(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=True)(linen.Dense(8)(x))


@pytest.mark.parametrize(
    "model",
    [
        lambda: Normed(nnx.Rngs(0)),
        lambda: nnx.state(Normed(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat)),
        lambda: LinenNormed().init(jax.random.key(0), jnp.ones((1, 4))),
    ],
    ids=["nnx module", "nnx state", "linen"],
)
def test_statistics_of_a_model_are_no_parameters(model):
    found = aj.describe(aj.adamw(0.1), model())
    assert found.totals.parameters == 4 * 8 + 8 + 2 * 8
    assert {path.split("/")[-1] for path in by_path(found)} == {"kernel", "bias", "scale"}


# --- strangers, and what is not known ----------------------------------------


@elementwise
def pulls(strength, rate=None):
    def formula(u, theta):
        return u + strength * theta if rate is None else u - rate * strength * (theta + u)

    return formula


@elementwise
def steps(learning_rate):
    return lambda u: -learning_rate * u


@elementwise
def sparsifies(strength):
    return lambda u, theta: u + strength * theta / (1e-8 + abs(theta))


@elementwise
def halves():
    return lambda u: u / 2


@aj.transformation
def silent():
    return optax.stateless(lambda u, params: jax.tree.map(jnp.add, u, params))


@combinator
def then(first, second):
    return lambda run, u: run("second", run("first", u))


def known(tx):
    leaf = aj.describe(tx, MATRICES).leaves[0]
    return leaf.weight_decay, leaf.learning_rate


@pytest.mark.parametrize(
    ("tx", "decay", "rate"),
    [
        (aj.chain(aj.sign(), pulls(0.2), steps(0.1)), 0.2, 0.1),
        (aj.chain(aj.sign(), pulls(0.2), steps(aj.cosine(0.1, 10)), halves()), 0.2, 0.05),
        (then(aj.chain(aj.sign(), pulls(0.2)), steps(0.1)), 0.2, 0.1),
        (aj.chain(steps(0.1), pulls(0.2, aj.cosine(1.0, 10))), 0.2, 0.1),
        (aj.chain(steps(0.1), pulls(0.2, 0.5)), 0.1, 0.1),  # which of the two is it?
        (aj.chain(pulls(0.0), steps(0.1)), 0.0, 0.1),
        (aj.chain(steps(0.1), aj.proximal_decay(0.3, aj.cosine(1.0, 10))), 0.3, 0.1),
        (aj.chain(steps(0.1), aj.shrink_after(0.3)), 0.3, 0.1),
        (aj.schedule_free_adamw(0.1, weight_decay=0.3), 0.3, 0.1),
        (aj.sophia_h(0.1, weight_decay=0.3), 0.3, 0.1),
        (aj.adam_l2(0.1, weight_decay=0.3), 0.3, 0.1),
        (aj.chain(aj.clip(1.0), aj.sign()), 0.0, None),
        # unknown
        (optax.adamw(0.1), None, None),
        (optax.adam(0.1), 0.0, None),  # it does without parameters
        (aj.chain(silent(), steps(0.1)), None, 0.1),
        (aj.chain(sparsifies(0.2), steps(0.1)), None, 0.1),
        (aj.chain(optax.clip(1.0), aj.adamw(0.1, weight_decay=0.2)), 0.2, 0.1),
        (aj.chain(aj.adamw(0.1, weight_decay=0.2), optax.scale(0.5)), 0.2, None),
        (aj.sgd(lambda t: 0.1), 0.0, None),
    ],
)
def test_decay_and_rate_are_found_in_what_pieces_say(tx, decay, rate):
    assert known(tx) == (decay, pytest.approx(rate) if rate else rate)


def test_what_is_unknown_is_no_zero():
    def row(tx):
        line = next(x for x in str(aj.describe(tx, MATRICES)).splitlines() if x.startswith("a "))
        return tuple(line.split()[4:6])

    assert row(optax.adamw(0.1)) == ("?", "?")
    assert row(optax.adam(0.1)) == ("-", "?")
    assert row(aj.sgd(lambda t: 0.1)) == ("-", "?")
    assert row(aj.sign()) == ("-", "-")
    assert row(aj.chain(silent(), steps(0.1))) == ("?", "×1")
    leaf = aj.describe(optax.adamw(0.1), MATRICES).leaves[0]
    assert leaf.unknown == ("weight_decay", "learning_rate")
    assert not leaf.decayed
    assert aj.describe(optax.adamw(0.1), MODEL).warnings == ()  # none of what is not known


def test_splits_of_a_stranger():
    @combinator
    def small_and_large(small, large):
        owners = Owners(
            lambda tree: ["small" if x.ndim < 2 else "large" for x in jax.tree.leaves(tree)]
        )
        return lambda run, u: run.split(u, owners)

    tx = small_and_large(aj.sgd(0.1), aj.sgd(0.2))
    leaves = by_path(aj.describe(tx, MODEL))
    assert leaves["layers/0/mlp/bias"].route == "small"


# --- warnings ----------------------------------------------------------------


def warned(tx, params):
    (warning,) = aj.describe(tx, params).warnings
    return warning


def test_a_rule_that_matches_nothing():
    tx = aj.route([("heads", "haed", aj.sgd(0.1))], ("rest", aj.sgd(0.2)))
    assert warned(tx, MATRICES) == "The route 'heads' gets no parameter."
    nested = aj.chain(aj.clip(1.0), tx)
    assert warned(nested, MATRICES) == "The route '1.heads' gets no parameter."


def test_a_mask_that_matches_nothing():
    tx = aj.adamw(0.1, mask={"a": False, "b": False})
    assert warned(tx, MATRICES) == "The mask at 'weight_decay' is True for no parameter."


def test_a_decayed_norm_or_bias():
    assert "'layers/0/mlp/bias' and 1 more" in warned(aj.adamw(0.1), MODEL)
    assert aj.describe(aj.adamw(0.1, mask=NO_VECTORS), MODEL).warnings == ()
    assert aj.describe(aj.adamw(0.1, weight_decay=0.0), MODEL).warnings == ()


@pytest.mark.parametrize(
    ("dtype", "decay", "wrong"),
    [
        ("bfloat16", 0.999, True),
        ("bfloat16", 0.95, False),
        ("float16", 0.999, False),
        ("float16", 0.9999, True),
        ("float32", 0.9999, False),
    ],
)
def test_a_decay_that_16_bits_cannot_represent(dtype, decay, wrong):
    tx = aj.chain(aj.second_moment(decay, dtype=dtype), aj.root())
    found = aj.describe(tx, MATRICES)
    assert found.bytes_per_parameter == jnp.dtype(dtype).itemsize
    assert bool(found.warnings) == wrong
    assert all(f"{decay} never decays" in w and "'0'" in w for w in found.warnings)


def test_an_ambiguous_kernel():
    params = {**MATRICES, "experts": abstract(3, 4, 5)}
    found = aj.describe(aj.muon(0.02), params)
    assert "'experts' has shape (3, 4, 5), which may be a stack" in found.warnings[0]
    leaves = by_path(found)
    assert (leaves["experts"].route, leaves["experts"].state) == ("undecided", ())
    assert leaves["a"].route == "muon"
    assert found.totals.by_route == {"muon": 640, "undecided": 60}
    decided = aj.muon(0.02, matrices=lambda path, leaf: aj.View(batch=leaf.ndim - 2))
    assert aj.describe(decided, params).warnings == ()
    tx = aj.chain(aj.orthogonalize(), aj.scale_by_learning_rate(0.1))
    assert "'experts' of shape (3, 4, 5) may be a stack" in warned(tx, params)


def test_replicated_state():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))

    def placed(*axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=sharding)

    assert "1,024 bytes of state are replicated on 8" in warned(aj.adamw(0.1), {"w": placed()})
    assert aj.describe(aj.adamw(0.1), {"w": placed("data", "model")}).warnings == ()
    assert aj.describe(aj.adamw(0.1), {"w": placed("data")}).warnings == ()
    # rows and columns have no place of their own
    assert "row of 'w'" in warned(aj.adafactor(0.1), {"w": placed("data", "model")})
    assert aj.describe(aj.sgd(0.1), {"w": placed()}).warnings == ()


def test_what_init_refuses_is_refused():
    for leaf in (jnp.tanh, "relu"):  # a module that is a tree may hold such things
        with pytest.raises(
            ValueError, match=r"describe: parameter 'act' is .*Pass a tree of arrays"
        ):
            aj.describe(aj.adamw(0.1), {"w": abstract(3), "act": leaf})
    with pytest.raises(ValueError, match="dtype int32"):
        aj.describe(aj.adamw(0.1), {"w": abstract(3, dtype=jnp.int32)})
    with pytest.raises(ValueError, match="no parameter has"):
        aj.describe(aj.adamw(0.1, mask={"a": True, "b": True, "c": True}), MATRICES)


# --- text --------------------------------------------------------------------

BLOCK = {"mlp": {"kernel": abstract(64, 256)}, "norm": {"scale": abstract(64)}}


def rows(found):
    """The table alone."""
    return str(found).split("\n\n")[1].splitlines()[1:]


@pytest.mark.parametrize(
    ("name", "shown"), [("layers/{}", "layers/0-143"), ("Block_{}", "Block_0-143")]
)
def test_equal_layers_are_one_line(name, shown):
    top, _, child = name.partition("/")
    layers = {(child or top).format(i): BLOCK for i in range(144)}
    params = {"embed": abstract(1000, 64), **({top: layers} if child else layers)}
    found = aj.describe(aj.adamw(1e-3), params)
    assert len(found.leaves) == 289  # all are there to be asked
    paths = sorted(row.split("  ")[0] for row in rows(found))
    assert paths == sorted(["embed", f"{shown}/mlp/kernel (144)", f"{shown}/norm/scale (144)"])
    assert found._repr_html_().count("<tr>") == 4


def test_layers_that_differ_are_two_lines():
    params = {"layers": [BLOCK] * 12}
    tx = aj.route([("even", "[02468]/mlp", aj.adamw(1e-3))], ("rest", aj.adamw(1e-4)))
    shown = [row.split(" (")[0] for row in rows(aj.describe(tx, params)) if "kernel" in row]
    assert shown == ["layers/*/mlp/kernel"] * 2


def test_rates_that_differ_are_given_as_such():
    embedding = lambda params: {k: k == "embed" for k in params}
    tx = aj.chain(aj.adamw(1e-3), aj.masked(aj.scale(0.1), embedding))
    header, *lines = str(aj.describe(tx, MODEL)).split("\n\n")[1].splitlines()
    assert header.split()[4:8] == ["decay", "lr", "rate", "state"]
    cells = {line.split()[0]: line.split()[5:7] for line in lines}
    assert cells["embed/embedding"] == ["×1", "0.0001"]
    assert cells["layers/0/mlp/bias"] == ["×10", "0.001"]
    one_a_route = aj.route([("fast", "embed", aj.adamw(1e-2))], ("rest", aj.adamw(1e-3)))
    for tx in (aj.adamw(0.1), one_a_route):  # the last lines say it
        assert "rate" not in str(aj.describe(tx, MODEL)).split("\n\n")[1].split()


LONG = {
    "a_model_with_long_names": {"a_block_with_a_long_name_0": {"a_kernel": abstract(50000, 1000)}},
    "short": abstract(2, 3, 4, 5, 6, 7),
}


@pytest.mark.parametrize("factory", factories().values(), ids=factories())
@pytest.mark.parametrize("params", [MODEL, LONG], ids=["model", "long"])
def test_it_reads_well_in_80_columns(factory, params):
    found = aj.describe(factory(1e-3), params)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]
    assert str(found) == repr(found)
    if params is MODEL:
        for leaf in found.leaves:
            assert sum(line.split()[:1] == [leaf.path] for line in lines) == 1


def test_the_text():
    params = {"mlp": {"kernel": abstract(4, 8, dtype=jnp.bfloat16), "bias": abstract(8)}}
    tx = aj.swap(aj.adamw(1e-3), "direction.denominator", aj.chain(aj.square(), aj.root()))
    assert str(aj.describe(tx, params)) == (
        """\
chain
  direction: precondition
    numerator: average(0.9)
      0: scale_by_momentum(0.9)
      1: bias_correction(0.9)
    denominator: chain
      0: square
      1: root
  weight_decay: add_decoupled_weight_decay(0.0001)
  learning_rate: scale_by_learning_rate(0.001)

leaf        shape  dtype  route  decay   lr  state  bytes
mlp/bias    8      f32    all    0.0001  ×1  f32    4.0
mlp/kernel  4x8    bf16   all    0.0001  ×1  f32    4.0

40 parameters, 4.0 bytes of state each (160 in all,
12 more for counts and the like):
    4.0  direction.numerator.0, float32
route all: 40 parameters, learning rate 0.001

! Weight decay reaches norms or biases: 'mlp/bias'. Leave them out with
  mask=lambda params: ..."""
    )


def test_html():
    tx = aj.route([("<b>", "kernel", aj.sgd(0.1))], ("rest", aj.sgd(0.2)))
    page = aj.describe(tx, MODEL)._repr_html_()
    assert "<td>layers/0/mlp/kernel</td>" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<tr>") == 1 + len(jax.tree.leaves(MODEL))


def test_nothing_is_allocated():
    huge = {"w": abstract(2**20, 2**20)}
    assert aj.describe(aj.adamw(0.1), huge).totals.state_bytes == 2**43


def test_no_parameters():
    found = aj.describe(aj.adamw(0.1), {})
    assert (found.leaves, found.totals.parameters, found.bytes_per_parameter) == ((), 0, 0)
    assert "0 parameters" in str(found)
