"""One flow, many readings: what a stranger writes has all that ours has, and lies are refused."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from strangers import centred, mean, then
from support import assert_equal, avals, walk

import adamw_jax as aj

# --- a stranger's words, with public names alone ----------------------------------


@aj.combinator
def weighted(share, **branches):
    def flow(run, u):
        a, b = (run(name, u) for name in branches)
        return aj.each(lambda a, b: share * a + (1 - share) * b, a, b)

    return flow


@aj.elementwise
def pulled(strength):
    return lambda u, theta: u + strength * theta


@aj.elementwise(m=0.0, v=0.0)
def whole_adam(b1, b2, eps):
    def formula(u, t, m, v):
        m, v = b1 * m + (1 - b1) * u, b2 * v + (1 - b2) * u**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        return m_hat / (v_hat**0.5 + eps), {"m": m, "v": v}

    return formula


@aj.elementwise
def fading(rate):
    return lambda u, t: u / (1 + rate * (t - 1))


@aj.elementwise(largest=0.0)
def held(limit):
    def formula(u, largest):  # more than arithmetic: no equation, all else
        largest = jnp.maximum(largest, jnp.abs(u))
        return jnp.where(largest > limit, 0.0, u), {"largest": largest}

    return formula


RATE = aj.scale_by_learning_rate(0.1)
STRANGERS = {
    "then": then(aj.scale_by_adam(), RATE),
    "named": then(first=aj.scale_by_momentum(0.5), second=RATE),
    "mean": then(mean(aj.scale_by_momentum(0.5), aj.identity()), RATE),
    "weighted": aj.chain(weighted(0.25, a=aj.scale_by_momentum(0.5), b=centred(0.9)), RATE),
    "centred": aj.chain(centred(0.9), RATE),
    "pulled": aj.chain(pulled(0.1), RATE),
    "whole_adam": aj.chain(whole_adam(0.9, 0.999, 1e-8), RATE),
    "fading": aj.chain(fading(0.5), RATE),
    "held": aj.chain(held(1.5), RATE),
    "deep": then(aj.chain(a=mean(centred(0.9), then(centred(0.5), aj.sign()))), RATE),
}
each_stranger = pytest.mark.parametrize("tx", STRANGERS.values(), ids=STRANGERS)

PARAMS = {"b": jnp.linspace(-1.0, 1.0, 3), "w": jnp.linspace(0.5, 2.0, 6).reshape(2, 3)}
GRADS = [jax.tree.map(lambda p, k=k: jnp.sin(p * (k + 1)) * 2, PARAMS) for k in range(5)]


def test_then_is_chain():
    ours = aj.chain(first=aj.scale_by_adam(), second=RATE)
    assert_equal(walk(STRANGERS["then"], PARAMS, GRADS), walk(ours, PARAMS, GRADS))
    assert avals(STRANGERS["then"].init(PARAMS)) == avals(ours.init(PARAMS))


def test_a_whole_adam_in_one_formula():
    ours = walk(STRANGERS["whole_adam"], PARAMS, GRADS)
    for mine, adam in zip(ours, walk(aj.adam(0.1), PARAMS, GRADS), strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), mine, adam
        )


def test_the_update_by_hand():
    tx = STRANGERS["centred"]
    update, state = tx.update(4.0, tx.init(1.0), 1.0)
    np.testing.assert_allclose(update, -0.1 * (4 - 0.4), rtol=1e-6)
    np.testing.assert_allclose(state[0].average, 0.4, rtol=1e-6)
    update, state = tx.update(-2.0, state, 1.0)
    np.testing.assert_allclose(state[0].average, 0.9 * 0.4 - 0.2, rtol=1e-6)


@each_stranger
def test_jit_scan_and_vmap(tx):
    eager = walk(tx, PARAMS, GRADS, jitted=False)
    jitted = walk(tx, PARAMS, GRADS, jitted=True)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *GRADS)

    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (last, _), _ = jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), stacked)
    for x in (jitted[-1], last):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), x, eager[-1]
        )
    both = jax.vmap(lambda g: tx.update(g, tx.init(PARAMS), PARAMS)[0])(stacked)
    alone = [tx.update(g, tx.init(PARAMS), PARAMS)[0] for g in GRADS]
    for i, x in enumerate(alone):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), one, x)


@each_stranger
def test_expressions_are_data(tx):
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx
    assert hash(again) == hash(tx)
    leaves, treedef = jax.tree.flatten(tx)
    assert treedef.unflatten(leaves) == tx
    other = treedef.unflatten([x / 2 for x in leaves])
    assert other != tx
    assert jax.jit(lambda tx: tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[0])(tx)
    state = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[1]
    assert_equal(pickle.loads(pickle.dumps(state)), state)


@each_stranger
def test_parts_swap_and_replace(tx):
    for path, piece in aj.parts(tx).items():
        assert aj.expand(aj.swap(tx, path, piece)) == aj.expand(tx)
        assert aj.part(tx, path) == piece
    last = next(path for path, piece in aj.parts(tx).items() if piece == RATE)
    slower = aj.replace(tx, last, learning_rate=0.05)
    half = slower.update(GRADS[0], tx.init(PARAMS), PARAMS)[0]
    full = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(2 * x, y, rtol=1e-6), half, full)


def test_state_by_slot():
    state = STRANGERS["mean"].init(PARAMS)
    assert set(state) == {"first", "second"}
    assert set(state["first"]) == {"first", "second"}
    assert avals(state["first"]["first"].momentum) == avals(PARAMS)

    @aj.combinator
    def both(*branches):
        return lambda run, u: aj.each(lambda *xs: sum(xs), *(run(str(i), u) for i in (0, 1)))

    assert isinstance(both(aj.identity(), aj.scale_by_momentum(0.9)).init(PARAMS), tuple)


def test_equations():
    text = lambda name: aj.equations(STRANGERS[name], "text")
    assert text("named") == "m = 0.5*m + (1 - 0.5)*g\ntheta = theta - 0.1*m"
    assert text("mean") == "m = 0.5*m + (1 - 0.5)*g\ntheta = theta - 0.1*(m + g)/2"
    assert text("centred") == (
        "average = 0.9*average + (1 - 0.9)*g\ntheta = theta - 0.1*(g - average)"
    )
    assert text("pulled") == "theta = theta - 0.1*(g + 0.1*theta)"
    assert text("fading") == "theta = theta - 0.1*g/(1 + 0.5*(t - 1))"
    assert text("whole_adam").splitlines()[-1] == (
        "theta = theta - 0.1*m/(1 - 0.9**t)/((v/(1 - 0.999**t))**0.5 + 1e-08)"
    )
    assert text("held") == "theta = theta - 0.1*held(g)"


def test_values_as_symbols():
    text = aj.equations(STRANGERS["weighted"], "text", symbols=True)
    assert "share*m + (1 - share)*(g - average)" in text


def test_describe_and_routes():
    found = aj.describe(STRANGERS["weighted"], PARAMS)
    assert found.bytes_per_parameter == 8.0
    tx = then(aj.identity(), aj.route([("biases", "b", aj.sgd(0.1))], ("rest", aj.adamw(0.1))))
    assert aj.routes(tx, PARAMS) == {"b": "biases", "w": "rest"}
    inside = then(aj.masked(aj.scale(2.0), {"b": True, "w": False}), RATE)
    assert aj.routes(inside, PARAMS) == {"b": "all", "w": "all"}


def test_transplant():
    old = aj.chain(first=aj.scale_by_adam(), second=RATE)
    state = old.init(PARAMS)
    for g in GRADS:
        state = old.update(g, state, PARAMS)[1]
    result = aj.transplant(state, old, STRANGERS["then"], PARAMS)
    assert not result.report.reset
    assert_equal(result.state, state)
    averaged = aj.chain(centred(0.5), RATE)
    begun = averaged.update(GRADS[0], averaged.init(PARAMS), PARAMS)[1]
    moved = aj.transplant(begun, averaged, then(aj.clip_by_global_norm(9.0), averaged), PARAMS)
    assert not moved.report.reset
    assert_equal(moved.state["second"], begun)


def test_a_strangers_piece_in_optax_and_under_x64(x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    tx = optax.chain(centred(0.9), optax.scale(-0.1))
    state = tx.init(params)
    update, state = tx.update(params, state, params)
    assert update["w"].dtype == jnp.float64
    np.testing.assert_allclose(update["w"], -0.1 * (params["w"] - 0.1 * params["w"]), rtol=1e-14)


def test_half_precision_and_complex():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = STRANGERS["whole_adam"]
    update, state = tx.update(half, tx.init(half), half)
    assert update["w"].dtype == jnp.bfloat16
    assert state[0].m["w"].dtype == jnp.float32
    complex_ = {"w": jnp.asarray([3 + 4j, -2j], jnp.complex64)}
    tx = aj.chain(centred(0.5), RATE)
    update, state = tx.update(complex_, tx.init(complex_), complex_)
    np.testing.assert_allclose(state[0].average["w"], complex_["w"] / 2)


def test_a_schedule_in_a_strangers_piece():
    @aj.elementwise
    def dimmed(factor):
        return lambda u: factor * u

    tx = dimmed(aj.linear_warmup(1.0, 4))
    state = tx.init(PARAMS)
    for expected in (0.0, 0.25, 0.5):
        update, state = tx.update(PARAMS, state)
        np.testing.assert_allclose(update["w"], expected * PARAMS["w"], rtol=1e-6)


# --- what is refused, when it is built ---------------------------------------------


def flow_of(function):
    @aj.combinator
    def mine(a, b):
        return function

    return lambda: mine(aj.identity(), aj.scale(2.0))


def total(run, u):
    return run("a", u) + run("b", u)


def first_if(run, u):
    out = run("a", run("b", u))
    return out if out else u


WRONG_FLOWS = {
    "no flow": (None, TypeError, "mine: returned None"),
    "unknown slot": (lambda run, u: run("c", u), KeyError, "mine: its flow runs 'c'"),
    "twice": (lambda run, u: run("a", run("a", u)), ValueError, "mine: its flow runs 'a' twice"),
    "never": (lambda run, u: run("a", u), ValueError, "mine: its flow never runs 'b'"),
    "nothing back": (
        lambda run, u: [run("a", run("b", u))],
        TypeError,
        r"mine: its flow returns \[",
    ),
    "branches": (first_if, TypeError, "mine: a flow branches on the value"),
    "arithmetic": (total, TypeError, "mine: its flow cannot be run"),
    "another signature": (lambda u: u, TypeError, "mine: its flow cannot be run"),
}


@pytest.mark.parametrize(("flow", "exception", "pattern"), WRONG_FLOWS.values(), ids=WRONG_FLOWS)
def test_wrong_flows(flow, exception, pattern):
    with pytest.raises(exception, match=pattern) as error:
        flow_of(flow)()
    assert re.fullmatch(r"\w+: .+\. [A-Z].+\.", error.value.args[0], re.DOTALL)


def formula_of(function, **starts):
    @aj.elementwise(**starts)
    def mine(decay):
        return function

    return lambda: mine(0.5)


WRONG_FORMULAS = {
    "no formula": (None, {}, "mine: returned None"),
    "unknown name": (lambda u, speed: u, {}, "mine: its formula reads speed"),
    "no u": (lambda g: g, {}, "mine: its formula reads g"),
}


@pytest.mark.parametrize(
    ("formula", "starts", "pattern"), WRONG_FORMULAS.values(), ids=WRONG_FORMULAS
)
def test_wrong_formulas(formula, starts, pattern):
    with pytest.raises(TypeError, match=pattern) as error:
        formula_of(formula, **starts)()
    assert re.fullmatch(r"\w+: .+\. [A-Z].+\.", error.value.args[0], re.DOTALL)


def test_a_formula_that_forgets_its_state():
    tx = formula_of(lambda u, m: (u, {}), m=0.0)()
    with pytest.raises(ValueError, match="mine: its formula returns the state none"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_a_formula_that_branches():
    tx = formula_of(lambda u: u if u > 0 else -u)()
    with pytest.raises(TypeError, match="mine: a formula branches on the value of u > 0"):
        aj.equations(tx)


def test_parameters_are_asked_for():
    with pytest.raises(ValueError, match=r"pulled: got no parameters.* Call update\(grads, sta"):
        pulled(0.1).update(PARAMS, pulled(0.1).init(PARAMS))


def test_a_formula_that_looks_beyond_its_element_is_still_run_as_written():
    """What is no elementwise operation cannot be replayed, and is right nevertheless."""

    @aj.elementwise
    def relative():
        return lambda u: u / jnp.max(jnp.abs(u))

    for update in (relative().update, jax.jit(relative().update)):
        out, _ = update(PARAMS, relative().init(PARAMS))
        for name, u in PARAMS.items():
            np.testing.assert_allclose(out[name], u / jnp.max(jnp.abs(u)), rtol=1e-6)
