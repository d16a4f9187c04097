"""Bad input is refused in one sentence that says what is wrong and what to do.

And where input is merely hard (spikes, zeros, 16 bits), nothing breaks.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import walk

import adamw_jax as aj

PARAMS = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
GRADS = jax.tree.map(lambda p: p / 2, PARAMS)

# `<function>: <what is wrong, with the value>. <what to do>.`
FORM = re.compile(r"[a-z]\w*: .+\. [A-Z].+\.", re.DOTALL)

nan, inf = float("nan"), float("inf")


def cases(*rows):
    """Rows of (name, callable, exception, pattern), ids from the names."""
    names = [name for name, *_ in rows]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize(
        ("call", "exception", "pattern"), [row for _, *row in rows], ids=names
    )


def assert_refuses(call, exception, pattern):
    with pytest.raises(exception) as error:
        call()
    assert error.type is exception
    message = error.value.args[0]
    assert re.search(pattern, message), message
    assert FORM.fullmatch(message), message


def bad(name, call, value, pattern):
    return name, call, ValueError, rf"{re.escape(repr(value))}\. It must be {pattern}"


RATE = r"a finite number, at least 0, or a schedule\.$"
DECAY = r"in \[0, 1\)\.$"
POSITIVE = r"a number above 0\.$"
NONNEGATIVE = r"a number, at least 0\.$"

RATES = {
    "negative": -1e-3,
    "nan": nan,
    "infinite": inf,
    "minus infinity": -inf,
    "complex": 1j,
    "None": None,
    "text": "0.1",
    "bool": True,
    "numpy bool": np.True_,
    "list": [0.1],
    "huge int": 10**400,
    "negative array": jnp.array([0.1, -0.1]),
    "nan array": np.array(nan),
    "complex array": jnp.array(1j),
}


@cases(*(bad(name, lambda v=v: aj.adamw(v), v, RATE) for name, v in RATES.items()))
def test_learning_rate(call, exception, pattern):
    assert_refuses(call, exception, rf"^adamw: learning_rate is {pattern}")


OPTIMIZERS = [
    aj.sgd,
    aj.momentum,
    aj.heavy_ball,
    aj.nesterov,
    aj.adagrad,
    aj.rmsprop,
    aj.adam,
    aj.adam_l2,
    aj.adamw,
    aj.scale_by_learning_rate,
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("value", [-0.1, nan, inf, 1j, None, "0.1"], ids=repr)
def test_learning_rate_everywhere(make, value):
    pattern = rf"^{make.__name__}: learning_rate is {re.escape(repr(value))}\. It must be {RATE}"
    assert_refuses(lambda: make(value), ValueError, pattern)


# (function, argument, bad values, what it must be)
HYPERPARAMETERS = [
    (lambda v: aj.adamw(0.1, b1=v), "adamw: b1", [1.0, 1.5, -0.1, nan, "x", None, 1j], DECAY),
    (lambda v: aj.adamw(0.1, b2=v), "adamw: b2", [1.0, 1, inf, True], DECAY),
    (lambda v: aj.adamw(0.1, eps=v), "adamw: eps", [-1e-8, nan, inf, "1e-8"], NONNEGATIVE),
    (
        lambda v: aj.adamw(0.1, weight_decay=v),
        "adamw: weight_decay",
        [-0.1, nan, inf, None, lambda t: 0.1],
        NONNEGATIVE,
    ),
    (lambda v: aj.momentum(0.1, v), "momentum: decay", [1.0, -0.5, nan], DECAY),
    (lambda v: aj.heavy_ball(0.1, v), "heavy_ball: momentum", [1.0, -0.5], DECAY),
    (lambda v: aj.nesterov(0.1, v), "nesterov: momentum", [1.0, -0.5], DECAY),
    (lambda v: aj.rmsprop(0.1, v), "rmsprop: decay", [1.0, -0.5], DECAY),
    (lambda v: aj.adagrad(0.1, v), "adagrad: eps", [-1.0, nan], NONNEGATIVE),
    (
        lambda v: aj.adagrad(0.1, initial_accumulator=v),
        "adagrad: initial_accumulator",
        [-1.0, inf],
        NONNEGATIVE,
    ),
    (lambda v: aj.scale_by_momentum(v), "scale_by_momentum: decay", [1.0, -0.1], DECAY),
    (
        lambda v: aj.scale_by_momentum(0.9, gain=v),
        "scale_by_momentum: gain",
        [nan, "x"],
        r"a finite number\.$",
    ),
    (
        lambda v: aj.scale_by_momentum(0.9, read=v),
        "scale_by_momentum: read",
        ["now", None],
        '"after" or "before"',
    ),
    (
        lambda v: aj.second_moment(0.9, dtype=v),
        "second_moment: dtype",
        ["int32", "float33", bool],
        r"a floating-point dtype\.$",
    ),
    (
        lambda v: aj.bias_correction(0.9, ahead=v),
        "bias_correction: ahead",
        [-1, 0.5, "1", True],
        r"a whole number, at least 0\.$",
    ),
    (lambda v: aj.scale(v), "scale: factor", [nan, "2", None], r"a finite number\.$"),
    (lambda v: aj.clip(v), "clip: max_abs", [0.0, -1.0, inf], POSITIVE),
    (lambda v: aj.clip_by_global_norm(v), "clip_by_global_norm: max_norm", [0, -1, nan], POSITIVE),
    (lambda v: aj.root(v), "root: eps", [-1.0], NONNEGATIVE),
    (lambda v: aj.root(eps_root=v), "root: eps_root", [-1.0], NONNEGATIVE),
    (lambda v: aj.floor(v), "floor: eps", [-1.0, nan], NONNEGATIVE),
    (
        lambda v: aj.interpolate(v, aj.sign()),
        "interpolate: weight",
        [1.1, -0.1, nan],
        r"in \[0, 1\]\.$",
    ),
    (lambda v: aj.shrink(0.1, v), "shrink: schedule", [-1.0, nan, "cosine"], RATE),
    (lambda v: aj.cosine(v, 10), "cosine: peak", [-1.0, nan, None], NONNEGATIVE),
    (lambda v: aj.cosine(1.0, v), "cosine: total_steps", [-1, nan, "10"], "a number of steps"),
    (lambda v: aj.adamw(0.1, coupling=v), "adamw: coupling", ["l2", None], '"lr" or "independent"'),
]


@cases(
    *(
        (f"{what} {number}", lambda call=call, v=v: call(v), ValueError, (what, v, domain))
        for call, what, values, domain in HYPERPARAMETERS
        for number, v in enumerate(values)
    )
)
def test_hyperparameters(call, exception, pattern):
    what, value, domain = pattern
    says = rf"^{what} is {re.escape(repr(value))}\. It must be {domain}"
    assert_refuses(call, exception, says)


@pytest.mark.parametrize("value", [0, 0.0, 1, np.float32(0.5), np.array(0.5), 1e30])
def test_good_learning_rates_pass(value):
    aj.adamw(value)
    jax.jit(lambda lr: aj.adamw(lr).init(PARAMS))(value)


def test_tracers_are_not_judged():
    # under jit a value cannot be known, and must not be asked for
    out = jax.jit(lambda b1: aj.adamw(0.1, b1=b1).update(GRADS, aj.adamw(0.1).init(PARAMS), PARAMS))
    assert np.isnan(out(1.0)[0]["b"]).all()


# --- calls, wiring, schedules -------------------------------------------------


def run(tx, grads=GRADS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)


def three():
    return 3


FORK = aj.fork(a=aj.identity(), b=aj.sign())


@cases(
    ("nothing", lambda: aj.adamw(), TypeError, r"^adamw: .*'learning_rate'.*adamw\(learning_rate"),
    ("unknown", lambda: aj.adamw(0.1, beta1=0.9), TypeError, "^adamw: .*'beta1'.*b1=0.9"),
    ("too many", lambda: aj.sgd(0.1, 0.9), TypeError, r"^sgd: too many.*sgd\(learning_rate\)"),
    ("twice", lambda: aj.sgd(0.1, learning_rate=1), TypeError, "^sgd: multiple values"),
    ("chain 3", lambda: aj.chain(aj.sign(), 3), TypeError, "^chain: '1' is 3, not"),
    ("chain factory", lambda: aj.chain(aj.sign), TypeError, "^chain: '0' is <function sign"),
    ("chain list", lambda: aj.chain([aj.sign()]), TypeError, r"^chain: '0' is \[sign\(\)\], not"),
    ("chain mixed", lambda: aj.chain(aj.sign(), a=aj.sign()), TypeError, "^chain: some .* named"),
    ("chain dot", lambda: aj.chain(**{"a.b": aj.sign()}), TypeError, "^chain: the name 'a.b'"),
    ("fork 3", lambda: aj.fork(a=3), TypeError, "^fork: 'a' is 3, not"),
    ("fork dot", lambda: aj.fork(**{".": aj.sign()}), TypeError, "^fork: the name '.'"),
    ("join 3", lambda: aj.join(aj.add, a=3), TypeError, "^join: 'a' is 3, not"),
    ("join op", lambda: aj.join(3, a=aj.sign()), TypeError, "^join: op is 3.*of 1 arrays"),
    (
        "join arity",
        lambda: aj.join(lambda x: x, a=aj.sign(), b=aj.sign()),
        TypeError,
        "^join: op is <function.*of 2 arrays",
    ),
    (
        "precondition",
        lambda: aj.precondition(aj.sign(), None),
        TypeError,
        "^precondition: 'denominator' is None, not",
    ),
    ("interpolate", lambda: aj.interpolate(0.5, "m"), TypeError, "^interpolate: 'tx' is 'm', not"),
    ("masked", lambda: aj.masked(None, True), TypeError, "^masked: 'tx' is None, not"),
    ("merge a tree", lambda: run(aj.merge(lambda g: g), 1.0, 1.0), TypeError, "^merge: got"),
    (
        "merge names",
        lambda: run(aj.chain(FORK, aj.merge(lambda x, y: x + y))),
        TypeError,
        "^merge: .* not the branches a, b",
    ),
    ("pick", lambda: run(aj.chain(FORK, aj.pick("c"))), KeyError, "^pick: .*'c'.*one of: a, b"),
    (
        "not a piece",
        lambda: aj.transformation(three)(),
        TypeError,
        "^three: returned 3.*must return an optax",
    ),
    ("not a schedule", lambda: aj.schedule(three)(), TypeError, "^three: returned 3"),
    ("swap 3", lambda: aj.swap(aj.sgd(1), "direction", 3), TypeError, "^swap: 3 is not"),
    ("expand 3", lambda: aj.expand(3), TypeError, "^lift: 3 is not"),
    ("parts 3", lambda: aj.parts(3), TypeError, "^lift: 3 is not"),
    (
        "part",
        lambda: aj.part(aj.sgd(0.1), "rate"),
        KeyError,
        "^part: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "swap",
        lambda: aj.swap(aj.sgd(0.1), "rate", aj.sign()),
        KeyError,
        "^swap: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "replace",
        lambda: aj.replace(aj.sgd(0.1), "rate", learning_rate=1),
        KeyError,
        "^replace: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "replace name",
        lambda: aj.replace(aj.sgd(0.1), "learning_rate", lr=1),
        TypeError,
        r"^scale_by_learning_rate: .*'lr'.*scale_by_learning_rate\(learning_rate\)",
    ),
    (
        "replace value",
        lambda: aj.replace(aj.sgd(0.1), "learning_rate", learning_rate=-1),
        ValueError,
        "^scale_by_learning_rate: learning_rate is -1",
    ),
    (
        "cosine warmup",
        lambda: aj.cosine(1.0, 10, warmup_steps=11),
        ValueError,
        "^cosine: warmup_steps is 11, and total_steps 10",
    ),
    (
        "wsd phases",
        lambda: aj.warmup_stable_decay(1.0, 10, warmup_steps=6, decay_steps=5),
        ValueError,
        r"^warmup_stable_decay: warmup_steps \+ decay_steps is 11, and total_steps 10",
    ),
    (
        "peak unknown",
        lambda: aj.adamw(lambda t: 0.1, coupling="independent"),
        ValueError,
        "^relative: <function.*does not know its peak.*cosine",
    ),
)
def test_calls_and_wiring(call, exception, pattern):
    assert_refuses(call, exception, pattern)


# --- trees --------------------------------------------------------------------

ADAMW, ADAM = aj.adamw(0.1), aj.adam(0.1)
CHAIN = aj.chain(aj.clip(1.0), aj.adamw(0.1))


def step(tx, grads, params=PARAMS, made_for=PARAMS):
    return lambda: tx.update(grads, tx.init(made_for), params)


def without(name):
    return {key: value for key, value in GRADS.items() if key != name}


FLOATS = "Optimize floating-point"
EQUAL = "They must be equal; nothing is broadcast"


@pytest.mark.parametrize("how", ["eager", "jit"])
@cases(
    # gradients that do not match
    ("missing", step(ADAMW, without("b")), ValueError, "^adamw: .* differ first at 'b'"),
    ("missing last", step(CHAIN, without("w")), ValueError, "^chain: .* differ first at 'w'"),
    ("extra", step(ADAMW, GRADS | {"z": 1.0}), ValueError, "^adamw: .* differ first at 'z'"),
    (
        "nested",
        step(ADAM, {"l": {"a": 1.0}}, {"l": {"a": 1.0, "c": 2.0}}, {"l": {"a": 1.0, "c": 2.0}}),
        ValueError,
        "^adam: .* differ first at 'l/c'",
    ),
    ("list", step(ADAMW, list(GRADS.values())), ValueError, "^adamw: .* differ first at 'b'"),
    ("tuple or list", step(ADAM, [1.0], (1.0,), (1.0,)), ValueError, r"^adam: .* are PyTreeDef"),
    ("None", step(ADAMW, GRADS | {"b": None}), ValueError, "^adamw: .* differ first at 'b'"),
    ("all None", step(ADAMW, None), ValueError, "^adamw: .* differ first at 'b'"),
    # shapes that NumPy would broadcast
    (
        "column",
        step(ADAMW, GRADS | {"b": jnp.ones((3, 1))}),
        ValueError,
        rf"'b' .*\(3, 1\).*{EQUAL}",
    ),
    ("scalar", step(ADAMW, GRADS | {"b": jnp.ones(())}), ValueError, rf"'b' .*shape \(\).*{EQUAL}"),
    ("row", step(aj.sgd(1), GRADS | {"w": jnp.ones(3)}), ValueError, rf"'w' .*\(3,\).*{EQUAL}"),
    (
        "column, no params",
        step(ADAM, GRADS | {"b": jnp.ones((3, 1))}, None),
        ValueError,
        rf"^scale_by_momentum: .*\(3, 1\).*{EQUAL}",
    ),
    # a state that was made for other parameters
    ("missing, no params", step(ADAM, without("b"), None), ValueError, "state was made for"),
    ("extra, no params", step(ADAM, GRADS | {"z": 1.0}, None), ValueError, "state was made for"),
    ("old state", step(ADAM, without("b"), without("b")), ValueError, "state was made for"),
    ("old shape", step(ADAM, {"a": 1.0}, {"a": 1.0}, {"a": jnp.ones(2)}), ValueError, EQUAL),
    # leaves that are no floating-point arrays
    (
        "int gradient",
        step(ADAMW, GRADS | {"b": jnp.arange(3)}),
        ValueError,
        f"^adamw: the gradient of 'b' has dtype int32.*{FLOATS}",
    ),
    (
        "int gradient, no params",
        step(ADAM, GRADS | {"b": jnp.arange(3)}, None),
        ValueError,
        f"^adam: the gradient of 'b' has dtype int32.*{FLOATS}",
    ),
    (
        "int",
        lambda: ADAMW.init({"n": jnp.arange(3)}),
        ValueError,
        f"^adamw: .*'n'.*int32.*{FLOATS}",
    ),
    ("bool", lambda: ADAMW.init({"n": jnp.ones(3, bool)}), ValueError, f"'n' .*bool.*{FLOATS}"),
    ("python int", lambda: aj.sgd(1).init({"n": 3}), ValueError, f"^sgd: .*'n'.*int.*{FLOATS}"),
    ("text", lambda: CHAIN.init({"n": "x"}), ValueError, "^chain: parameter 'n' is 'x'.*arrays"),
    ("key", lambda: ADAM.init([jax.random.key(0)]), ValueError, r"^adam: parameter '0' .*key"),
    # decay without parameters
    ("adamw", step(ADAMW, GRADS, None), ValueError, "^add_decoupled_weight_decay: got no"),
    ("adam_l2", step(aj.adam_l2(0.1), GRADS, None), ValueError, "^add_l2_gradient: got no"),
    ("shrink", step(aj.shrink(0.1), GRADS, None), ValueError, "^shrink: got no .*Call update"),
    (
        "masked decay",
        step(aj.adamw(0.1, mask={"b": True, "w": False}), GRADS, None),
        ValueError,
        "^add_decoupled_weight_decay: got no",
    ),
)
def test_trees(how, call, exception, pattern):
    assert_refuses(call if how == "eager" else jax.jit(call), exception, pattern)


def masked(mask):
    return lambda: aj.adamw(0.1, mask=mask).init(PARAMS)


@pytest.mark.parametrize("how", ["eager", "jit"])
@cases(
    ("missing", masked({"b": True}), ValueError, "the mask says nothing of 'w'"),
    ("extra", masked({"b": True, "w": True, "z": True}), ValueError, "the mask names 'z'"),
    ("deeper", masked({"b": True, "w": [True, True]}), ValueError, "nothing of 'w'"),
    ("list", masked([True, False]), ValueError, "the mask says nothing of 'b'"),
    ("text", masked("b"), ValueError, r"mask leaf '\(root\)' is 'b'"),
    ("ints", masked({"b": 1, "w": 0}), ValueError, "mask leaf 'b' is 1.*True or False"),
    ("floats", masked({"b": True, "w": 0.5}), ValueError, "mask leaf 'w' is 0.5"),
    ("function: missing", masked(lambda p: {"b": True}), ValueError, "says nothing of 'w'"),
    ("function: number", masked(lambda p: 3), ValueError, r"mask leaf '\(root\)' is 3"),
    (
        "function: arrays",
        masked(lambda p: jax.tree.map(lambda x: x > 0, p)),
        ValueError,
        "mask leaf 'b' is .*True or False",
    ),
)
def test_masks(how, call, exception, pattern):
    assert_refuses(call if how == "eager" else jax.jit(call), exception, f"^masked: .*{pattern}")


def test_masks_of_bad_leaves_are_refused_by_the_factory():
    assert_refuses(lambda: aj.adamw(0.1, mask={"b": "yes"}), ValueError, "^masked: mask leaf 'b'")


# --- what field.md tells of others --------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
def test_a_refused_step_cannot_ascend(make):
    # Optax: `learning_rate=None` silently ascends.  Every optimizer here goes down.
    tx = make(0.1)
    update, _ = tx.update(1.0, tx.init(0.0), 0.0)
    assert update < 0


@pytest.mark.parametrize(
    "tx",
    [
        aj.adamw(0.1, b2=0.9, weight_decay=0.0),
        aj.adam(0.1, b2=0.9),
        aj.adam_l2(0.1, b2=0.9),
        aj.rmsprop(0.1),
    ],
    ids=repr,
)
def test_a_spike_does_not_freeze(tx):
    # Optax: g*g overflows, v is infinite and every later step 0.
    path = walk(tx, jnp.zeros(()), [jnp.array(1.0), jnp.array(1e20)] + [jnp.array(1.0)] * 1500)
    before, after = path[-2:]
    assert float(before - after) == pytest.approx(0.1, rel=1e-3)


def test_a_spike_leaves_adagrad_a_step():
    # its sum never forgets, but stays finite: the step is 0.1/√max instead of 0
    tx = aj.adagrad(0.1)
    _, state = tx.update(1e20, tx.init(0.0))
    update, _ = tx.update(1e10, state)
    assert update == pytest.approx(-0.1 * 1e10 / np.sqrt(np.finfo("float32").max), rel=1e-6)


@pytest.mark.parametrize("make", [aj.adamw, aj.adam, aj.rmsprop, aj.adagrad, aj.nesterov])
@pytest.mark.parametrize("gradient", [0.0, 1e-4, 1e3, -1e3, 6e4])
def test_float16(make, gradient):
    # Optax: a zero gradient gives NaN, 1e-4 gives inf and 1e3 gives 0.
    half, single = (
        make(0.1).update(x, make(0.1).init(x * 0), x * 0)[0]
        for x in (jnp.float16(gradient), jnp.float32(np.float16(gradient)))
    )
    assert half.dtype == "float16"
    assert half == single.astype("float16")
    assert (half == 0) == (gradient == 0)


def test_bfloat16_follows_float32():
    # Optax: v stays bfloat16 and never decays, 34 % off after 1,500 steps.
    rng = np.random.default_rng(0)
    size = np.where(np.arange(1500) < 300, 10.0, 1.0)  # v has something to forget
    grads = jnp.asarray(size * (1 + 0.1 * rng.normal(size=1500)), "bfloat16")

    def last(dtype):
        tx = aj.adam(0.1)
        one = lambda state, g: tx.update(g.astype(dtype), state)[::-1]
        state, updates = jax.lax.scan(one, tx.init(jnp.zeros((), dtype)), grads)
        assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
        assert updates.dtype == dtype
        return float(updates[-1])

    assert last("bfloat16") == pytest.approx(last("float32"), rel=2**-8)


@pytest.mark.parametrize("make", [aj.adamw, aj.adam_l2, aj.rmsprop, aj.adagrad, aj.momentum])
def test_derivatives_at_a_zero_gradient_are_finite(make):
    # Optax: the derivative of a root at 0 is infinite, times 0 is NaN.
    tx = make(0.1)
    step = lambda g, p: tx.update(g, tx.init(p), p)[0]
    assert np.isfinite(jax.grad(step, argnums=(0, 1))(0.0, 1.0)).all()


def test_strict_promotion_holds():
    assert jax.config.jax_numpy_dtype_promotion == "strict"  # from conftest: all tests run so
    for dtype in ("bfloat16", "complex64"):
        params = jnp.ones(2, dtype)
        for make in OPTIMIZERS:
            run(make(jnp.float32(0.1)), params, params)


# --- what others do well, and must not be lost --------------------------------


def test_counts_saturate():
    largest = jnp.iinfo("int32").max
    tx = aj.adamw(aj.cosine(0.1, 10))
    state = jax.tree.map(
        lambda x: jnp.full_like(x, largest) if x.dtype == "int32" else x, tx.init(PARAMS)
    )
    updates, state = tx.update(GRADS, state, PARAMS)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == "int32"]
    assert len(counts) == 3
    assert all(count == largest for count in counts)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_init_may_be_abstract():
    shapes = jax.eval_shape(ADAMW.init, PARAMS)
    for abstract in (shapes, ADAMW.init(PARAMS)):
        assert jax.tree.structure(abstract) == jax.tree.structure(shapes)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert jax.eval_shape(ADAMW.init, like) == shapes


def test_foreign_pieces_keep_their_own_errors():
    clip = aj.transformation(optax.clip)
    with pytest.raises(TypeError, match=r"^clip: missing a required argument"):
        clip()
