"""Sophia: unbiased curvature, at the price of one product, every k-th step only."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import assert_equal, avals, walk

import adamw_jax as aj


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --- estimators ---------------------------------------------------------------

DRAWS = 20_000


def estimates(estimator, params, **extra):
    """Independent estimates, one for each of many keys."""
    state = estimator.init(params)

    def one(key):
        return estimator.update(params, state._replace(key=key), params, **extra)[0]

    return jax.vmap(one)(jax.random.split(jax.random.PRNGKey(7), DRAWS))


def assert_mean(samples, expected, deviation):
    """The mean lies within 5 standard errors: 1 in 1.7 million for a right estimator."""
    error = np.abs(np.mean(samples, axis=0) - expected) / (deviation / math.sqrt(DRAWS))
    assert error.max() < 5
    # and the bound is narrow enough to tell the estimate from 0 and from its double
    assert np.max(np.abs(expected) / (deviation / math.sqrt(DRAWS))) > 20


def symmetric(n):
    a = normal(n, n)
    return a + a.T + 2 * jnp.eye(n)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_hutchinson_is_unbiased(distribution):
    hessian = symmetric(6)
    loss = lambda p: p @ hessian @ p / 2
    samples = estimates(aj.hutchinson(distribution=distribution), normal(6), obj_fn=loss)
    squares = np.square(hessian)
    diagonal = np.diag(squares)
    # Var(z_i Σ_j H_ij z_j): Σ_{j≠i} H_ij², and 2 H_ii² more if z_i² varies
    gaussian = 2 * diagonal if distribution == "gaussian" else 0
    deviation = np.sqrt(squares.sum(1) - diagonal + gaussian)
    assert_mean(samples, np.diag(hessian), deviation)
    np.testing.assert_allclose(np.std(samples, axis=0), deviation, rtol=0.1)


def test_rademacher_is_exact_for_a_diagonal_hessian():
    """Every single draw, over a tree of leaves and at different curvatures."""
    params = {"a": normal(3), "b": normal(2, 2)}
    loss = lambda p: jnp.sum(p["a"] ** 4) + 3 * jnp.sum(p["b"] ** 2)
    tx = aj.hutchinson(distribution="rademacher")
    state, keys = tx.init(params), []
    for _ in range(3):
        out, state = tx.update(params, state, params, obj_fn=loss)
        np.testing.assert_allclose(out["a"], 12 * params["a"] ** 2, rtol=1e-5)
        np.testing.assert_allclose(out["b"], 6.0, rtol=1e-6)
        keys.append(tuple(np.asarray(state.key)))
    assert len(set(keys)) == 3  # drawn again each time


def test_leaves_draw_independently():
    """Equal leaves with a coupled Hessian [[1, 1], [1, 1]]: 1 + z z' is 0 or 2, never always 2."""
    params = {"a": jnp.zeros(200), "b": jnp.zeros(200)}
    loss = lambda p: jnp.sum((p["a"] + p["b"]) ** 2) / 2
    tx = aj.hutchinson(distribution="rademacher")
    out, _ = tx.update(params, tx.init(params), params, obj_fn=loss)
    assert set(np.asarray(out["a"])) == {0.0, 2.0}


def test_gauss_newton_bartlett_is_unbiased():
    """Against the Gauss-Newton diagonal of a softmax regression, which is its Hessian."""
    xs, params = normal(8, 3), normal(3, 4, seed=1)
    logits = lambda p: xs @ p

    def loss(p):  # whatever the labels are, the Hessian is the same
        return -jnp.mean(jax.nn.log_softmax(logits(p))[:, 0])

    probabilities = np.asarray(jax.nn.softmax(logits(params)))
    expected = np.square(xs).T @ (probabilities * (1 - probabilities)) / 8
    hessian = jax.hessian(loss)(params).reshape(12, 12)
    np.testing.assert_allclose(np.diag(hessian), expected.ravel(), rtol=1e-5)
    samples = estimates(aj.gauss_newton_bartlett(), params, logits_fn=logits)
    assert_mean(samples, expected, np.std(samples, axis=0))
    assert np.min(samples) >= 0


def test_rows_are_tokens_not_sequences():
    """[batch, time, classes] is batch · time labels, to the bit as if it were flat."""
    xs, params = normal(2, 4, 3), normal(3, 4, seed=1)
    tx = aj.gauss_newton_bartlett()
    nested = estimates(tx, params, logits_fn=lambda p: xs @ p)
    flat = estimates(tx, params, logits_fn=lambda p: xs.reshape(8, 3) @ p)
    np.testing.assert_allclose(nested.mean(0), flat.mean(0), rtol=0.05)
    probabilities = np.asarray(jax.nn.softmax(xs.reshape(8, 3) @ params))
    expected = np.square(xs.reshape(8, 3)).T @ (probabilities * (1 - probabilities)) / 8
    assert_mean(nested, expected, np.std(nested, axis=0))


def largest_array(function, *args):
    """Elements of the largest array in the traced program."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", str(jax.make_jaxpr(function)(*args)))
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_the_hessian_is_never_formed():
    n = 512
    loss = lambda p: jnp.sum(jnp.log(jnp.cosh(jnp.cumsum(p))))
    p, tx = jnp.ones(n), aj.hutchinson()
    estimate = lambda p: tx.update(p, tx.init(p), p, obj_fn=loss)[0]
    memory = lambda f: jax.jit(f).lower(p).compile().memory_analysis().temp_size_in_bytes
    assert largest_array(estimate, p) <= 2 * n
    assert largest_array(jax.hessian(loss), p) >= n * n  # this way of looking would see one
    assert memory(estimate) < 4 * n * n / 4 <= memory(jax.hessian(loss))


# --- every k-th step ----------------------------------------------------------


def curvature_state(state):
    return state["direction"]["denominator"]["moment"]


def quartic(p):
    return jnp.sum(p**4)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_refreshed_at_1_and_every_k_th_after(every):
    tx = aj.sophia_h(0.01, every=every)
    params = normal(4)
    state, renewed = tx.init(params), []
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, obj_fn=quartic))
    for t in range(1, 9):
        old = curvature_state(state)
        updates, state = update(jax.grad(quartic)(params), state, params)
        params = optax.apply_updates(params, updates)
        new = curvature_state(state)
        same_key = np.array_equal(old.estimator.key, new.estimator.key)
        same_value = np.array_equal(old.curvature, new.curvature)
        assert same_key == same_value
        if not same_key:
            renewed.append(t)
    assert renewed == [t for t in range(1, 9) if (t - 1) % every == 0]


def test_the_first_step_uses_the_first_estimate():
    """As in the paper; Optax refreshes after use, so that its first step is a sign."""
    given = optax.stateless(lambda g, params: jax.tree.map(lambda x: jnp.full_like(x, 50.0), g))
    make = lambda moment: aj.swap(
        aj.sophia_h(1.0, weight_decay=0.0, gamma=1.0), "direction.denominator.moment", moment
    )
    before, after = (make(aj.curvature(given, 0.99, refresh=r)) for r in ("before", "after"))
    step = lambda tx: float(tx.update(1.0, tx.init(1.0), 1.0)[0])
    assert step(before) == pytest.approx(-0.04 * 1 / (0.01 * 50), rel=1e-5)
    assert step(after) == -1


def test_between_refreshes_the_loss_is_not_looked_at():
    """A loss that is NaN leaves no trace when no estimate is due."""
    tx, params = aj.sophia_h(0.1, every=3), normal(4)
    g = jnp.ones(4)
    update = lambda state, loss: jax.jit(lambda s: tx.update(g, s, params, obj_fn=loss))(state)
    poison = lambda p: jnp.nan * jnp.sum(p**2)
    _, state = update(tx.init(params), quartic)
    for _ in range(2):
        expected = update(state, quartic)
        assert_equal(update(state, poison), expected)
        state = expected[1]
    assert np.isnan(curvature_state(update(state, poison)[1]).curvature).all()  # now it is due


def computations(text):
    """The bodies of a compiled program's computations by name, and the entry's name."""
    found, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            found[name] = ""
            entry = name if head[1] else entry
        elif name:
            found[name] += line + "\n"
    return found, entry


def reached(found, name):
    """The text of a computation and of all that it calls."""
    calls = set(re.findall(r"%([\w.\-]+)", found[name])) & set(found) - {name}
    return found[name] + "".join(reached(found, other) for other in calls)


def test_between_refreshes_the_estimate_costs_nothing():
    """The estimator's products stand in one branch of a conditional, and nowhere else."""
    a = normal(37, 37)
    tx, p = aj.sophia_h(0.1), jnp.ones(37)
    step = lambda g, s, p: tx.update(g, s, p, obj_fn=lambda p: jnp.sum(jnp.tanh(a @ p) ** 2))
    text = jax.jit(step).lower(p, tx.init(p), p).compile().as_text()
    found, entry = computations(text)
    (branches,) = re.findall(r" conditional\(.*branch_computations=\{([^}]*)\}", found[entry])
    idle, busy = (reached(found, name.strip(" %")) for name in branches.split(","))
    products = lambda text: len(re.findall(r"= \S+ (?:dot|custom-call)\(", text))
    assert products(busy) == products(text) > 0
    assert products(idle) == 0
    assert not re.search(r"fusion|while|call", idle)  # it passes on what it got
    assert len(text.split(" conditional(")) == 2


def test_an_estimate_is_drawn_from_the_parameters_of_its_step():
    """h = 0.01 · 12 p² at t = 1, then 0.99 of it and 0.01 · 12 p² of the moved p."""
    tx = aj.curvature(aj.hutchinson(distribution="rademacher"), 0.99, every=2)
    g, state = jnp.ones(3), None
    state = tx.init(g)
    _, state = tx.update(g, state, 1.0 * g, obj_fn=quartic)
    _, state = tx.update(g, state, 5.0 * g, obj_fn=quartic)  # not looked at
    h, _ = tx.update(g, state, 2.0 * g, obj_fn=quartic)
    np.testing.assert_allclose(h, 0.99 * 0.12 + 0.48, rtol=1e-6)


# --- calls --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eager", "jit"])
@pytest.mark.parametrize(
    ("make", "piece", "argument", "call"),
    [
        (aj.sophia_h, "hutchinson", "obj_fn", "loss"),
        (aj.sophia_g, "gauss_newton_bartlett", "logits_fn", "logits"),
    ],
)
@pytest.mark.parametrize("wrong", [{}, {"obj_fn": None, "logits_fn": None}, {"loss": quartic}])
def test_a_missing_function_is_named(make, piece, argument, call, wrong, how):
    tx, p = make(0.1), jnp.ones(3)
    update = lambda g, s, p: tx.update(g, s, p, **wrong)
    update = jax.jit(update) if how == "jit" else update
    message = rf"^{piece}: got no {argument}\. .*update\(.*{argument}=lambda params: {call}\)\."
    with pytest.raises(ValueError, match=message):
        update(p, tx.init(p), p)
    with pytest.raises(ValueError, match=rf"^{piece}: got no parameters"):
        tx.update(p, tx.init(p), obj_fn=quartic, logits_fn=quartic)


def test_a_given_estimator():
    """Any transformation that returns diagonal curvature; it needs no loss then."""
    squares = aj.sophia_h(0.1, estimator=aj.square(), every=1, weight_decay=0.0, gamma=1.0)
    assert aj.part(squares, "direction.denominator.moment.estimator") == aj.square()
    bartlett = aj.sophia_g(0.1, estimator=aj.gauss_newton_bartlett())
    assert aj.expand(bartlett) == aj.expand(aj.sophia_g(0.1))
    p = jnp.array([0.5, 100.0])
    updates, _ = squares.update(p, squares.init(p), p)
    # m / h = 0.04 g / (0.01 g²), clipped
    np.testing.assert_allclose(updates, [-0.1, -0.1 * 0.04], rtol=1e-5)
    other = aj.sophia_h(0.1, estimator=aj.hutchinson(seed=3))
    assert not np.array_equal(
        curvature_state(other.init(p)).estimator.key,
        curvature_state(aj.sophia_h(0.1).init(p)).estimator.key,
    )


def test_the_step_is_compiled_once_with_a_closed_over_batch():
    traces = []
    tx = aj.sophia_g(0.1)

    @jax.jit
    def step(params, state, xs):
        traces.append(1)
        logits = lambda p: xs @ p["w"]
        grads = jax.grad(lambda p: -jnp.mean(jax.nn.log_softmax(logits(p))[:, 0]))(params)
        updates, state = tx.update(grads, state, params, logits_fn=logits)
        return optax.apply_updates(params, updates), state

    params = {"w": normal(3, 4)}
    state = tx.init(params)
    before = avals((params, state))
    for i in range(12):
        params, state = step(params, state, normal(8, 3, seed=i))
    assert len(traces) == 1
    assert avals((params, state)) == before


class Net(nnx.Module):
    """With batch statistics, which the loss must not update."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


@pytest.mark.parametrize("make", [aj.sophia_h, aj.sophia_g])
def test_in_nnx_optimizer(make):
    """`optimizer.update(model, grads, obj_fn=...)` in a jitted step, BatchNorm and all."""
    with jax.numpy_dtype_promotion("standard"):
        xs, labels = normal(16, 4), jnp.arange(16) % 3
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, make(0.03, every=2), wrt=nnx.Param)

        def loss_of(logits):
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        @nnx.jit
        def step(model, optimizer):
            graphdef, _, rest = nnx.split(model, nnx.Param, ...)

            def logits(params):
                return nnx.merge(graphdef, params, rest, copy=True)(xs)

            loss, grads = nnx.value_and_grad(lambda model: loss_of(model(xs)))(model)
            obj_fn = lambda params: loss_of(logits(params))
            optimizer.update(model, grads, obj_fn=obj_fn, logits_fn=logits)
            return loss

        losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    h = curvature_state(nnx.as_pure(nnx.state(optimizer))["opt_state"])
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(h["curvature"]))


# --- what the curvature is for ------------------------------------------------

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def best(make, params, loss, steps, **functions):
    """The least final loss over the grid of learning rates."""

    @jax.jit
    def train(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params, **functions)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return loss(end)

    return min(float(train(make(rate))) for rate in RATES)


def test_a_tiny_gamma_is_the_sign_step():
    grads = [normal(5, seed=i) for i in range(4)]
    params = normal(5, seed=9)
    sophia = aj.sophia_h(0.1, 0.9, weight_decay=0.0, gamma=1e-9)
    path = walk(sophia, params, grads, lambda params: {"obj_fn": quartic})
    np.testing.assert_array_equal(path, walk(aj.signum(0.1), params, grads))


def test_curvature_beats_the_sign_step_on_a_narrow_valley():
    """A quadratic with curvatures over four decades: same expression, γ the only difference."""
    curvatures = jnp.geomspace(1e-2, 1e2, 20)
    loss = lambda p: jnp.sum(curvatures * p**2) / 2
    run = lambda gamma: best(
        lambda rate: aj.sophia_h(rate, weight_decay=0.0, gamma=gamma),
        jnp.ones(20),
        loss,
        steps=300,
        obj_fn=loss,
    )
    assert run(0.01) < run(1e-12) / 5


def test_curvature_beats_the_sign_step_on_uneven_features():
    """Softmax regression on features over two decades, by loss above the minimum."""
    xs = normal(256, 8) * jnp.geomspace(0.1, 10, 8)
    noise = jnp.asarray(np.random.default_rng(3).gumbel(size=(256, 3)), jnp.float32)
    labels = jnp.argmax(xs @ (normal(8, 3, seed=2) / jnp.geomspace(0.1, 10, 8)[:, None]) + noise, 1)
    logits = lambda p: xs @ p

    def loss(p):
        rows = jax.nn.log_softmax(logits(p))
        return -jnp.mean(jnp.take_along_axis(rows, labels[:, None], axis=1))

    run = lambda gamma, steps: best(
        lambda rate: aj.sophia_g(rate, weight_decay=0.0, gamma=gamma),
        jnp.zeros((8, 3)),
        loss,
        steps,
        logits_fn=logits,
    )
    least = run(0.05, 3000)
    assert run(0.05, 300) - least < (run(1e-9, 300) - least) / 2


def test_a_delayed_sophia_gets_its_loss():
    tx = aj.delay(aj.sophia_h(0.1, weight_decay=0.0, b1=0.0), 1)
    p = jnp.ones(3)
    loss = lambda p: jnp.sum(p**2)
    first, state = tx.update(p, tx.init(p), p, obj_fn=loss)
    second, _ = tx.update(p, state, p, obj_fn=loss)
    assert not first.any()
    np.testing.assert_allclose(second, -0.1, rtol=1e-6)
