"""Muon: how near to orthogonal, on which matrices, and who decides."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from support import assert_equal, walk

import adamw_jax as aj
from adamw_jax.pieces.newton_schulz import TABLES

STACK = lambda path, leaf: aj.View(batch=1)


def orthogonalized(x, *args, **kwargs):
    tx = aj.orthogonalize(*args, **kwargs)
    return tx.update(x, tx.init(x))[0]


def exactly(name):
    """The table without the eps that protects from dividing by zero."""
    return TABLES[name]._replace(eps=0.0)


def iterated(q, table, steps=5):
    """X <- aX + bAX + cA²X with A = XXᵀ, in float64 and step by step."""
    q = np.asarray(q, np.float64)
    x = q / (table.norm_factor * np.linalg.norm(q) + table.eps)
    rows = table.rows[:steps] + table.rows[-1:] * (steps - len(table.rows))
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- the iteration ------------------------------------------------------------

# Where the singular values land that are at least so large in a matrix of norm 1.
RANGES = {
    ("keller", 5, 0.002): (0.682, 1.202),
    ("keller", 5, 0.01): (0.682, 1.134),
    ("dion", 5, 0.01): (0.978, 1.032),
    ("speedrun", 5, 0.001): (0.847, 1.141),
    ("polar_express", 5, 0.001): (0.840, 1.124),
    ("polar_express", 6, 0.001): (0.994, 1.001),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("table", "bounds"), RANGES.items(), ids=map(str, RANGES))
def test_singular_values_land_where_the_papers_say(table, bounds):
    name, steps, least = table
    s = np.concatenate([np.geomspace(least, 1, 4001), np.linspace(least, 1, 4001)])
    pairs = np.stack([s, np.sqrt(np.maximum(1 - s**2, 0))], axis=-1)  # of norm 1
    matrices = pairs[:, :, None] * np.eye(2)
    out = np.asarray(
        orthogonalized(matrices, lengthened(exactly(name), steps), steps=steps, views=STACK)
    )
    landed = out[:, 0, 0]
    assert (landed.min(), landed.max()) == pytest.approx(bounds, abs=1e-3)


def lengthened(table, steps):
    """A table as a user would give it: with as many rows as steps."""
    return table._replace(rows=table.rows + table.rows[-1:] * (steps - len(table.rows)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("keller", (0.7228761686, 1.1192039299)), ("speedrun", (0.9467875029, 0.8782865415))],
)
def test_golden(name, expected):
    """The specification's table of golden scalars; single rows are repeated."""
    out = orthogonalized(jnp.diag(jnp.array([3.0, 4.0])), exactly(name))
    np.testing.assert_allclose(out, np.diag(expected), rtol=1e-9)


SHAPES = [(8, 8), (6, 9), (8, 16), (16, 8), (64, 8), (1, 5)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gram_iteration_is_the_plain_one(shape, name):
    """From aspect 2 on the small Gram matrix is iterated; float64 shows it is the same map."""
    q = normal(*shape)
    out = orthogonalized(q, name)
    np.testing.assert_allclose(out, iterated(q, TABLES[name]), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(6, 9), (8, 64), (64, 8)], ids=str)
def test_any_number_of_steps(shape, steps):
    """Around the restart after two steps."""
    q = normal(*shape)
    expected = iterated(q, TABLES["keller"], steps)
    np.testing.assert_allclose(orthogonalized(q, steps=steps), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", [(32, 32), (40, 60), (32, 64), (128, 512), (512, 128)], ids=str)
def test_in_float32(shape, name):
    q = normal(*shape).astype(np.float32)
    exact = iterated(q, TABLES[name])
    error = np.linalg.norm(orthogonalized(q, name) - exact) / np.linalg.norm(exact)
    assert error < 1e-3


def test_in_float32_with_small_singular_values():
    """Five decades, where rounding in the Gram matrix would hurt."""
    u, v = np.linalg.qr(normal(16, 16))[0], np.linalg.qr(normal(64, 64, seed=1))[0]
    q = ((u * np.geomspace(1e-5, 1, 16)) @ v[:16]).astype(np.float32)
    for name in TABLES:
        exact = iterated(q, TABLES[name])
        error = np.linalg.norm(orthogonalized(q, name) - exact) / np.linalg.norm(exact)
        assert error < 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_transposed_matrix_gives_the_transposed_result(shape):
    q = jnp.asarray(normal(*shape), jnp.float32)
    np.testing.assert_allclose(orthogonalized(q.T), orthogonalized(q).T, atol=2e-5)


def test_size_does_not_matter():
    """The direction of a gradient alone counts, up to where its squares would overflow."""
    q = jnp.asarray(normal(4, 6), jnp.float32)
    for size in (1e-3, 1e3, 1e20):
        np.testing.assert_allclose(orthogonalized(size * q), orthogonalized(q), atol=1e-3)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 4), (4, 2), (0, 3), (3, 0), (1, 1)], ids=str)
def test_zero_matrices_stay_zero(shape, dtype):
    zero = jnp.zeros(shape)
    out = orthogonalized(zero, dtype=dtype)
    assert_equal(out, zero)
    loss = lambda q: jnp.sum(orthogonalized(q, dtype=dtype))
    assert np.isfinite(jax.grad(loss)(zero)).all()


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)], ids=str)
def test_in_bfloat16(shape):
    q = jnp.asarray(normal(*shape), jnp.float32)
    out = orthogonalized(q, dtype="bfloat16")
    assert out.dtype == jnp.float32
    values = np.linalg.svd(out, compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.25
    assert 0 < np.abs(out - orthogonalized(q)).max() < 0.05
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program(q, dtype="bfloat16"))
    assert set(products) == {"bf16"}


def program(tree, *args, **kwargs):
    tx = aj.orthogonalize(*args, **kwargs)
    return str(jax.make_jaxpr(lambda q: tx.update(q, tx.init(q))[0])(tree))


def test_equal_shapes_are_iterated_together():
    """One batched iteration for each shape (or its transpose), however many leaves."""

    def products(n, *shapes):
        tree = {f"{i}{shape}": jnp.ones(shape) for i in range(n) for shape in shapes}
        return len(re.findall("dot_general", program(tree)))

    assert products(1, (4, 6)) > 0
    assert products(7, (4, 6)) == products(1, (4, 6))
    assert products(3, (4, 6), (6, 4)) == products(1, (4, 6))
    assert products(3, (4, 6), (6, 6)) == products(1, (4, 6)) + products(1, (6, 6))


def test_together_as_alone():
    tree = {name: normal(4, 6, seed=i).astype("f") for i, name in enumerate("abc")}
    tree["d"] = tree["a"].T.copy()
    tree["e"] = normal(3, 3).astype("f")
    out = orthogonalized(tree)
    for name, q in tree.items():
        np.testing.assert_allclose(out[name], orthogonalized(q), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (3, 9), (9, 3)])
def test_complex_matrices(shape):
    """A tall, wide or square U S Vᴴ becomes U Vᴴ."""
    q = (normal(*shape) + 1j * normal(*shape, seed=1)).astype("F")
    u, _, vh = np.linalg.svd(q, full_matrices=False)
    out = orthogonalized(q, "polar_express", steps=8)
    np.testing.assert_allclose(out, u @ vh, atol=1e-4)
    half = orthogonalized(q, "polar_express", dtype="bfloat16")
    np.testing.assert_allclose(half, orthogonalized(q, "polar_express"), atol=1e-6)


# --- tables -------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_the_first_rows_are_used():
    q = normal(3, 4)
    rows = tuple((1.5 + i / 10, -0.5, 0.01 * i) for i in range(8))
    for n in (1, 3, 8):
        expected = iterated(q, aj.Table(rows[:n]), n)
        np.testing.assert_allclose(orthogonalized(q, rows, steps=n), expected, rtol=1e-12)
        as_lists = [list(row) for row in rows]
        np.testing.assert_allclose(orthogonalized(q, as_lists, steps=n), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_table_brings_its_norm_factor():
    q = normal(3, 4)
    table = aj.Table(((1.5, -0.5, 0.0),), norm_factor=2.0, eps=0.5)
    np.testing.assert_allclose(orthogonalized(q, table, steps=1), iterated(q, table, 1), rtol=1e-12)
    # Optax and HeavyBall keep the cushion of Polar Express in one place and drop it in another
    assert TABLES["polar_express"].norm_factor == 1.01
    assert TABLES["speedrun"].norm_factor == 1.02
    first = TABLES["polar_express"].rows[0]
    paper = (8.28721201814563, -23.595886519098837, 17.300387312530933)
    assert first == pytest.approx([c / 1.01**n for c, n in zip(paper, (1, 3, 5), strict=True)])


def test_too_few_rows_are_refused():
    """Optax runs three steps of a table with three rows and says nothing."""
    rows = ((1.5, -0.5, 0.0),) * 3
    for table, steps in ((rows, 5), (aj.Table(rows), 4), ("dion", 6), ("speedrun", 6)):
        with pytest.raises(
            ValueError, match=rf"orthogonalize: steps is {steps}, but the table has"
        ):
            aj.orthogonalize(table, steps=steps)
    aj.orthogonalize("keller", steps=9)
    aj.orthogonalize("polar_express", steps=12)  # its last row is the limit of the construction
    aj.orthogonalize(rows[:1], steps=9)


# --- shapes and views ---------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "shape", "factor"),
    [
        ("keller", (8, 32), 2.0),  # [in, out]: more outputs than inputs
        ("keller", (32, 8), 1.0),
        ("moonshot", (8, 32), 0.2 * 32**0.5),
        ("moonshot", (32, 8), 0.2 * 32**0.5),
        ("spectral", (8, 32), 2.0),
        ("spectral", (32, 8), 0.5),
        # 3x3 windows over 3 channels, 64 out: √(64/27) = 1.54, not from the last two axes
        ("keller", (3, 3, 3, 64), (64 / 27) ** 0.5),
    ],
)
def test_scales_see_kernels_as_in_and_out(scale, shape, factor):
    tx = aj.scale_by_shape(scale)
    out, _ = tx.update(jnp.ones(shape), tx.init(jnp.ones(shape)))
    np.testing.assert_allclose(out, factor, rtol=1e-6)


def test_moonshot_makes_the_update_as_large_as_adams():
    """RMS 0.2 for a semi-orthogonal matrix of any shape."""
    tx = aj.scale_by_shape("moonshot")
    for shape in ((16, 64), (64, 16), (32, 32)):
        tall = np.linalg.qr(normal(max(shape), min(shape)))[0].astype("f")
        q = tall if tall.shape == shape else tall.T
        out, _ = tx.update(q, tx.init(q))
        assert float(jnp.sqrt(jnp.mean(out**2))) == pytest.approx(0.2, rel=1e-5)


def viewed(x, view):
    views = lambda path, leaf: view
    tx = aj.chain(aj.orthogonalize(views=views), aj.scale_by_shape("spectral", views=views))
    return np.asarray(tx.update(x, tx.init(x))[0])


def as_matrix(x):
    return viewed(x, aj.View())


def test_views():
    """An array with more axes gives what the matrices in it give."""
    conv = normal(3, 3, 8, 16).astype("f")
    seen = as_matrix(conv.reshape(72, 16)).reshape(conv.shape)
    np.testing.assert_allclose(viewed(conv, aj.View(rows=3)), seen, atol=1e-5)

    query = normal(8, 2, 3).astype("f")  # in, heads, dim
    seen = as_matrix(query.reshape(8, 6)).reshape(query.shape)
    np.testing.assert_allclose(viewed(query, aj.View(rows=1)), seen, atol=1e-5)

    out = normal(2, 3, 8).astype("f")  # heads, dim, out
    seen = as_matrix(out.reshape(6, 8)).reshape(out.shape)
    np.testing.assert_allclose(viewed(out, aj.View(rows=2)), seen, atol=1e-5)

    layers = normal(5, 8, 6).astype("f")
    seen = np.stack([as_matrix(layer) for layer in layers])
    np.testing.assert_allclose(viewed(layers, aj.View(batch=1)), seen, atol=1e-5)

    stacked_query = normal(5, 8, 2, 3).astype("f")
    seen = np.stack([viewed(layer, aj.View(rows=1)) for layer in stacked_query])
    np.testing.assert_allclose(viewed(stacked_query, aj.View(batch=1)), seen, atol=1e-5)

    qkv = normal(8, 24).astype("f")
    seen = np.concatenate([as_matrix(part) for part in np.split(qkv, 3, axis=1)], axis=1)
    np.testing.assert_allclose(viewed(qkv, aj.View(blocks=3)), seen, atol=1e-5)
    assert np.abs(as_matrix(qkv) - seen).max() > 0.1  # not the same as one matrix

    fused_layers = normal(5, 8, 24).astype("f")
    seen = np.stack([viewed(layer, aj.View(blocks=3)) for layer in fused_layers])
    np.testing.assert_allclose(viewed(fused_layers, aj.View(batch=1, blocks=3)), seen, atol=1e-5)


@pytest.mark.parametrize(
    "view", [aj.View(batch=1), aj.View(rows=2), aj.View(rows=0), aj.View(blocks=4), False, 3]
)
def test_a_view_must_fit(view):
    tx = aj.orthogonalize(views=lambda path, leaf: view)
    params = {"a": jnp.ones((4, 6))}
    with pytest.raises(
        ValueError, match=r"^orthogonalize: 'a' of shape \(4, 6\) has no matrix view"
    ):
        tx.update(params, tx.init(params))


# --- momentum -----------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_momentum_may_be_a_trace_or_an_average(nesterov):
    """They differ by a factor, which orthogonalizing removes."""
    tx = aj.muon(0.1, nesterov=nesterov)
    average = aj.scale_by_momentum(0.95)
    other = aj.swap(tx, "muon.direction", aj.interpolate(0.95, average) if nesterov else average)
    grads = [{"w": normal(4, 6, seed=i)} for i in range(5)]
    path, same = (walk(t, {"w": normal(4, 6, seed=9)}, grads) for t in (tx, other))
    for p, q in zip(path, same, strict=True):
        np.testing.assert_allclose(p["w"], q["w"], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_two_steps_in_numpy():
    """b <- μ b + g;  W <- W - lr (s NS(g + μ b) + λ W) with the unscaled lr in the decay."""
    w, grads = normal(4, 9), [normal(4, 9, seed=i) for i in (1, 2)]
    tx = aj.muon(0.02, 0.9, 0.1)
    path = walk(tx, {"w": w}, [{"w": g} for g in grads])
    b = 0
    for g, p in zip(grads, path, strict=True):
        b = 0.9 * b + g
        w = w - 0.02 * (1.5 * iterated(g + 0.9 * b, TABLES["keller"]) + 0.1 * w)
        np.testing.assert_allclose(p["w"], w, rtol=1e-9)


# --- which leaf is a matrix ---------------------------------------------------

BLOCK = {
    "ln_1": {"scale": (8,), "bias": (8,)},
    "attn": {
        "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
        "key": {"kernel": (8, 2, 4), "bias": (2, 4)},
        "value": {"kernel": (8, 2, 4), "bias": (2, 4)},
        "out": {"kernel": (2, 4, 8), "bias": (8,)},
    },
    "mlp": {"up": {"kernel": (8, 32), "bias": (32,)}, "down": {"kernel": (32, 8), "bias": (8,)}},
}
GPT = {
    "wte": {"embedding": (50, 8)},
    "wpe": {"embedding": (16, 8)},
    "blocks": [BLOCK, BLOCK],
    "ln_f": {"scale": (8,), "bias": (8,)},
    "lm_head": {"kernel": (8, 50)},
}
HIDDEN = [
    f"blocks/{i}/{name}/kernel"
    for i in (0, 1)
    for name in ("attn/key", "attn/out", "attn/query", "attn/value", "mlp/down", "mlp/up")
]


def filled(shapes):
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda shape: jnp.ones(shape), shapes, is_leaf=is_shape)


def hidden(found):
    return [path for path, name in found.items() if name == "muon"]


def test_routes_of_a_gpt():
    params = filled(GPT)
    found = aj.routes(aj.muon(0.02), params)
    assert len(found) == len(jax.tree.leaves(params))
    assert hidden(found) == HIDDEN
    assert set(found.values()) == {"muon", "adamw"}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(jax.nn.gelu(self.up(x)))


class GPTnnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(8, 16, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


HIDDEN_NNX = [
    f"blocks/{i}/{name}/kernel"
    for i in (0, 1)
    for name in (
        "attention/key",
        "attention/out",
        "attention/query",
        "attention/value",
        "down",
        "up",
    )
]


def test_routes_of_a_gpt_in_nnx():
    """Boxed as at init, and plain as at every update."""
    boxed = nnx.state(GPTnnx(nnx.Rngs(0)), nnx.Param)
    for params in (boxed, nnx.as_pure(boxed)):
        assert hidden(aj.routes(aj.muon(0.02), params)) == HIDDEN_NNX


def test_training_in_nnx():
    with jax.numpy_dtype_promotion("standard"):
        model = GPTnnx(nnx.Rngs(0))
        tx = aj.muon(0.05, others=aj.adamw(0.01))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        tokens = jnp.arange(12).reshape(2, 6)

        @nnx.jit
        def step(model, optimizer):
            def loss(model):
                logits = model(tokens)
                targets = (tokens + 1) % 16
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
                return losses.mean()

            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        losses = [float(step(model, optimizer)) for _ in range(15)]
    assert losses[0] > 2
    assert losses[-1] < losses[0] / 4


class GPTlinen(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        spread = linen.with_partitioning(linen.initializers.lecun_normal(), (None, None))
        x = linen.Embed(16, 8)(tokens)
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        x = x + linen.Dense(8)(linen.Dense(32, kernel_init=spread)(x))
        return linen.Dense(16, name="lm_head")(x)


def test_routes_of_a_gpt_in_linen():
    """Its own names (MultiHeadDotProductAttention is no head), and partitioned parameters."""
    with jax.numpy_dtype_promotion("standard"):
        params = GPTlinen().init(jax.random.key(0), jnp.zeros((2, 6), int))["params"]
    found = aj.routes(aj.muon(0.02), params)
    attention = [
        f"MultiHeadDotProductAttention_0/{n}/kernel" for n in ("key", "out", "query", "value")
    ]
    assert hidden(found) == ["Dense_0/kernel", "Dense_1/kernel", *attention]
    tx = aj.muon(0.02)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_a_matrix_called_value():
    """Plain matrices in a dict; "value" is a name here, not Flax's box."""
    params = filled({"attn": {"query": (4, 4), "key": (4, 4), "value": (4, 4)}})
    expected = {"attn/key": "muon", "attn/query": "muon", "attn/value": "muon"}
    assert aj.routes(aj.muon(0.02), params) == expected


@pytest.mark.parametrize(
    ("path", "shape", "verdict"),
    [
        ("mlp/kernel", (8, 4), aj.View()),
        ("w", (8, 4), aj.View()),
        ("overhead/kernel", (8, 4), aj.View()),
        ("multi_head_attention/dense/kernel", (8, 4), aj.View()),
        ("headless/kernel", (8, 4), aj.View()),
        ("upscale/kernel", (8, 4), aj.View()),
        ("attn/qkv/kernel", (8, 24), aj.View(blocks=3)),
        ("attn/c_attn/kernel", (8, 24), aj.View(blocks=3)),
        ("attn/qkv/kernel", (8, 12), aj.View()),  # grouped queries: not three alike
        ("attn/query/kernel", (8, 2, 4), aj.View(rows=1)),
        ("attn/q_proj/kernel", (8, 2, 4), aj.View(rows=1)),
        ("attn/out/kernel", (2, 4, 8), aj.View(rows=2)),
        ("attn/o_proj/kernel", (2, 4, 8), aj.View(rows=2)),
        ("conv/kernel", (3, 3, 8, 16), aj.View(rows=3)),
        ("conv/kernel", (3, 3, 3, 8, 16), aj.View(rows=4)),
        ("conv/kernel", (3, 3, 3, 16), False),  # the first of a ConvNet
        ("embedding", (50, 8), False),
        ("tok_embed/w", (50, 8), False),
        ("wte", (50, 8), False),
        ("head", (8, 50), False),
        ("heads/kernel", (8, 50), False),
        ("heads_0/kernel", (8, 50), False),
        ("lm_head/kernel", (8, 50), False),
        ("LM_Head/kernel", (8, 50), False),
        ("logits/kernel", (8, 50), False),
        ("unembed", (8, 50), False),
        ("norm/scale", (8, 1), False),
        ("layer_norm/w", (8, 1), False),
        ("attn/query/bias", (2, 4), False),
        ("b", (8,), False),
        ("t", (), False),
    ],
)
def test_the_table_of_verdicts(path, shape, verdict):
    assert aj.default_matrices(path, jnp.ones(shape)) == verdict


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("blocks/mlp/kernel", (12, 8, 32)),  # stacked layers, or a kernel with two ends
        ("blocks/attn/query/kernel", (12, 8, 2, 4)),  # layers of attention, no convolution
        ("w", (2, 2, 2, 2, 2, 2)),
    ],
)
def test_an_ambiguous_leaf_says_how_to_decide(path, shape):
    params = jnp.ones(shape)
    for name in reversed(path.split("/")):
        params = {name: params}
    message = (
        rf"^muon: '{path}' has shape .* Decide with matrices=lambda path, leaf: .*View\(batch=1"
    )
    with pytest.raises(ValueError, match=message):
        aj.muon(0.02).init(params)
    decided = aj.muon(0.02, matrices=lambda path, leaf: aj.View(batch=1))
    assert aj.routes(decided, params) == {path: "muon"}


def test_ones_own_predicate():
    params = filled({"a": (4, 6), "b": (3, 4, 6), "c": (4, 6), "d": (6,)})
    views = {"a": True, "b": aj.View(batch=1), "c": False, "d": None}
    tx = aj.muon(0.1, matrices=lambda path, leaf: views[path])
    assert aj.routes(tx, params) == {"a": "muon", "b": "muon", "c": "adamw", "d": "adamw"}
    grads = jax.tree.map(lambda p: jnp.asarray(normal(*p.shape), jnp.float32), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    alone = lambda g: walk(aj.muon(0.1), {"w": 0 * g}, [{"w": g}])[0]["w"]
    np.testing.assert_allclose(updates["a"], alone(grads["a"]), atol=1e-6)
    for layer, g in zip(updates["b"], grads["b"], strict=True):
        np.testing.assert_allclose(layer, alone(g), atol=1e-6)


def test_a_predicate_that_finds_nothing_is_refused():
    tx = aj.muon(0.1, matrices=lambda path, leaf: "kernal" in path)
    with pytest.raises(ValueError, match=r"^route: the rule 'muon'.*the paths are a/kernel, b"):
        tx.init(filled({"a": {"kernel": (4, 4)}, "b": (4,)}))
    aj.muon(0.1).init(filled({"b": (4,)}))  # vectors alone are no mistake


def test_others():
    """The auxiliary optimizer is Keller's AdamW, or any other."""
    assert aj.part(aj.muon(0.1), "adamw") == aj.adamw(3e-4, 0.9, 0.95, 1e-10)
    params = filled({"w": (4, 4), "b": (4,)})
    tx = aj.muon(0.1, others=aj.sgd(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["b"], -0.5)
    frozen = aj.muon(0.1, others=optax.set_to_zero())
    updates, state = frozen.update(params, frozen.init(params), params)
    np.testing.assert_array_equal(updates["b"], 0)
    assert jax.tree.leaves(state["adamw"]) == []


def test_ones_own_orthogonalizer():
    tx = aj.muon(0.1, orthogonalizer=aj.orthogonalize("polar_express", steps=6), scale="spectral")
    params = {"w": jnp.asarray(normal(4, 16), jnp.float32)}
    updates, _ = tx.update(params, tx.init(params), params)
    values = np.linalg.svd(updates["w"], compute_uv=False)
    np.testing.assert_allclose(values, 0.1 * math.sqrt(16 / 4), rtol=0.01)
