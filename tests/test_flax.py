"""The bridges to Flax: models of either kind trained by optimizers that ask for functions."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state
from support import assert_equal

import adamw_jax as aj
from adamw_jax.flax import TrainState, evaluation_model, of_params


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax leaves dtypes to JAX."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def batch(step):
    rng = np.random.default_rng(step)
    return jnp.asarray(rng.normal(size=(16, 4))), jnp.asarray(rng.integers(3, size=16))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def by_hand(params, xs):
    """The logits of both networks below, with no Flax in them."""
    hidden = xs @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    centred = hidden - hidden.mean(0)
    normed = centred / jnp.sqrt((centred**2).mean(0) + 1e-5)
    normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
    return jnp.tanh(normed) @ params["head"]["kernel"] + params["head"]["bias"]


def walk_by_hand(tx, params, steps):
    """Parameters and optimizer state after some steps on plain trees."""

    @jax.jit
    def step(params, state, xs, labels):
        loss = lambda p: cross_entropy(by_hand(p, xs), labels)
        functions = {"obj_fn": loss, "logits_fn": lambda p: by_hand(p, xs)}
        updates, state = tx.update(jax.grad(loss)(params), state, params, **functions)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for i in range(steps):
        params, state = step(params, state, *batch(i))
    return params, state


def assert_close(tree, other):
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, tree, other)


# every=3: updates with a new estimate and without one; the larger γ and the tiny learning
# rate keep away from the clip, at which the smallest rounding could choose another sign
SOPHIAS = {
    "sophia_h": (aj.sophia_h(1e-3, gamma=10.0, eps=1.0, every=3), "obj_fn"),
    "sophia_g": (aj.sophia_g(1e-3, gamma=10.0, eps=1.0, every=3), "logits_fn"),
}
each_sophia = pytest.mark.parametrize(("tx", "keyword"), SOPHIAS.values(), ids=SOPHIAS)


# --- NNX ----------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, dropout=0.0):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 8, param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(8, param_dtype=float, rngs=rngs)
        self.norm.mean.set_value(jnp.zeros(8))  # Flax begins in float32 under x64, too
        self.norm.var.set_value(jnp.ones(8))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(8, 3, param_dtype=float, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.dropout(jnp.tanh(self.norm(self.hidden(xs)))))


def logits_of(model, xs):
    return model(xs)


def loss_of(model, xs, labels):
    return cross_entropy(model(xs), labels)


def plain(state):
    """Nested dicts of arrays that stay, random streams left out."""
    arrays = nnx.filter_state(state, nnx.Not(nnx.RngState))
    return jax.tree.map(jnp.copy, nnx.to_pure_dict(arrays))


@each_sophia
def test_sophia_trains_an_nnx_model(tx, keyword, x64):
    """To the numbers of a plain tree; traced once, all donated, statistics moved once a step."""
    model, traces = Net(), []
    params = plain(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train_step(model, optimizer, xs, labels):
        traces.append(1)
        functions = {
            "obj_fn": of_params(loss_of, model, xs, labels),
            "logits_fn": of_params(logits_of, model, xs),
        }
        grads = nnx.grad(loss_of)(model, xs, labels)
        optimizer.update(model, grads, **{keyword: functions[keyword]})

    step = nnx.jit(train_step, donate_argnums=(0, 1))
    mean = jnp.zeros(8)
    for i in range(5):
        xs, labels = batch(i)
        mean = 0.99 * mean + 0.01 * model.hidden(xs).mean(0)
        step(model, optimizer, xs, labels)
        assert_close(model.norm.mean[...], mean)
    assert len(traces) == 1
    expected, state = walk_by_hand(tx, params, 5)
    assert_close(plain(nnx.state(model, nnx.Param)), expected)
    found = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]["direction"]["denominator"]
    curvature = state["direction"]["denominator"]["moment"].curvature
    assert_close(found["moment"]["curvature"], curvature)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(curvature))


@pytest.mark.parametrize("when", ["eager", "jit"])
def test_a_function_of_parameters_moves_nothing(when):
    """Dropout and batch statistics included, whatever happens to the model afterwards."""
    xs, labels = batch(0)
    model = Net(dropout=0.5)

    def twice(model):
        function = of_params(loss_of, model, xs, labels)
        before = jax.tree.map(jnp.copy, jax.tree.leaves(nnx.split(model)[1]))
        params = nnx.state(model, nnx.Param)
        values = [function(params), function(nnx.as_pure(params))]
        after = jax.tree.leaves(nnx.split(model)[1])
        unmoved = [jnp.all(x == y) for x, y in zip(before, after, strict=True)]
        values += [loss_of(model, xs, labels)]  # draws the same mask
        values += [loss_of(model, xs, labels)]  # the model has moved on
        values += [function(params), function(nnx.to_pure_dict(params))]
        return jnp.stack(values), jnp.stack(unmoved)

    values, unmoved = (nnx.jit(twice) if when == "jit" else twice)(model)
    assert unmoved.all()
    np.testing.assert_allclose(np.delete(values, 3), values[0], rtol=1e-6)
    assert abs(values[3] - values[0]) > 1e-3


def test_a_loss_with_more_to_tell():
    xs, labels = batch(0)
    model = Net()
    function = lambda model, xs: (loss_of(model, xs, labels), {"logits": model(xs)})
    value = of_params(function, model, xs, has_aux=True)(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(value, loss_of(model, xs, labels), rtol=1e-6)


def test_some_of_the_parameters():
    """The function's argument is what the optimizer trains."""
    xs, labels = batch(0)
    model, head = Net(), nnx.All(nnx.Param, nnx.PathContains("head"))
    before = plain(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, aj.sophia_h(0.1), wrt=head)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(loss_of, argnums=nnx.DiffState(0, head))(model, xs, labels)
        optimizer.update(model, grads, obj_fn=of_params(loss_of, model, xs, labels, wrt=head))

    step(model, optimizer)
    after = plain(nnx.state(model, nnx.Param))
    assert_equal(after["hidden"], before["hidden"])
    assert np.all(np.asarray(after["head"]["kernel"] != before["head"]["kernel"]))


@pytest.mark.parametrize("asked", [nnx.Param, nnx.PathContains("hidden")])
def test_other_parameters_than_the_optimizer_has(asked):
    xs, labels = batch(0)
    model, head = Net(), nnx.All(nnx.Param, nnx.PathContains("head"))
    optimizer = nnx.Optimizer(model, aj.sophia_h(0.1), wrt=head)
    grads = nnx.grad(loss_of, argnums=nnx.DiffState(0, head))(model, xs, labels)
    obj_fn = of_params(loss_of, model, xs, labels, wrt=asked)
    with pytest.raises(
        ValueError, match=r"^of_params: wrt=.* differ first at 'h.*'\. Pass the wrt"
    ):
        optimizer.update(model, grads, obj_fn=obj_fn)


# --- evaluation ---------------------------------------------------------------


def trained(tx, steps=5):
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, xs, labels):
        optimizer.update(model, nnx.grad(loss_of)(model, xs, labels))

    for i in range(steps):
        step(model, optimizer, *batch(i))
    return model, optimizer


@pytest.mark.parametrize("when", ["eager", "jit"])
def test_the_evaluation_model_of_an_averaging_optimizer(when):
    """Its parameters are those that `eval_params` gives, found here from z and y."""
    model, optimizer = trained(aj.schedule_free_adamw(0.1))
    before = plain(nnx.state(model))
    xs, labels = batch(9)
    make = nnx.jit(evaluation_model) if when == "jit" else evaluation_model
    evaluated = make(model, optimizer)
    assert isinstance(evaluated, Net)
    assert_equal(plain(nnx.state(model)), before)
    z = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]["z"]
    y = plain(nnx.state(model, nnx.Param))
    x = jax.tree.map(lambda y, z: (y - 0.1 * z) / 0.9, y, z)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        plain(nnx.state(evaluated, nnx.Param)),
        x,
    )
    assert abs(loss_of(evaluated, xs, labels) - loss_of(model, xs, labels)) > 1e-3


def test_the_evaluation_model_of_any_other_is_a_copy():
    model, optimizer = trained(aj.adamw(0.1))
    evaluated = evaluation_model(model, optimizer)
    before = plain(nnx.state(model))
    assert_equal(plain(nnx.state(evaluated)), before)
    loss_of(evaluated, *batch(0))  # gathers statistics of its own
    evaluated.eval()
    assert_equal(plain(nnx.state(model)), before)
    assert not np.array_equal(evaluated.norm.mean[...], model.norm.mean[...])
    assert (model.dropout.deterministic, evaluated.dropout.deterministic) == (False, True)


# --- Linen --------------------------------------------------------------------


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, xs):
        dense = lambda size, name: linen.Dense(size, param_dtype=float, name=name)
        norm = linen.BatchNorm(use_running_average=False, param_dtype=float, name="norm")
        return dense(3, "head")(jnp.tanh(norm(dense(8, "hidden")(xs))))


class State(TrainState):
    batch_stats: Any


def linen_state(tx, kind=State):
    net = LinenNet()
    variables = net.init(jax.random.key(0), batch(0)[0])
    stats = jax.tree.map(lambda x: x.astype(float), variables["batch_stats"])
    stats = {"batch_stats": stats} if kind is State else {}
    return kind.create(apply_fn=net.apply, params=variables["params"], tx=tx, **stats)


def linen_functions(state, xs, labels):
    """Loss and logits; the loss with the new batch statistics beside it."""

    def apply(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        return state.apply_fn(variables, xs, mutable=["batch_stats"])

    def loss_fn(params):
        logits, moved = apply(params)
        return cross_entropy(logits, labels), moved["batch_stats"]

    return loss_fn, lambda params: apply(params)[0]


@each_sophia
def test_sophia_trains_a_linen_model(tx, keyword, x64):
    state, traces = linen_state(tx), []
    params, stats = jax.tree.map(jnp.copy, (state.params, state.batch_stats))

    def train_step(state, xs, labels):
        traces.append(1)
        loss_fn, logits_fn = linen_functions(state, xs, labels)
        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
        functions = {"obj_fn": lambda p: loss_fn(p)[0], "logits_fn": logits_fn}
        wanted = {keyword: functions[keyword]}
        return state.apply_gradients(grads=grads, batch_stats=batch_stats, **wanted)

    step = jax.jit(train_step, donate_argnums=0)
    state = state.replace(step=jnp.zeros((), int))
    for i in range(5):
        state = step(state, *batch(i))
    assert len(traces) == 1
    assert state.step == 5
    assert state.tx is tx
    expected, opt_state = walk_by_hand(tx, params, 5)
    assert_close(state.params, expected)
    assert_close(state.opt_state, opt_state)
    assert not np.array_equal(state.batch_stats["norm"]["mean"], stats["norm"]["mean"])


def grads_like(params):
    return jax.tree.map(jnp.ones_like, params)


@pytest.mark.parametrize("tx", [aj.adamw(0.1), optax.adamw(0.1), optax.scale(-0.1)])
def test_without_keywords_it_is_the_state_of_flax(tx):
    ours, theirs = linen_state(tx, TrainState), linen_state(tx, train_state.TrainState)
    for _ in range(2):
        ours, theirs = (s.apply_gradients(grads=grads_like(s.params)) for s in (ours, theirs))
    assert_equal(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    assert ours.step == 2
    assert ours.tx is tx


def test_gradients_that_overwrite_their_parameters():
    """As Flax has it for 8-bit scales."""
    from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT as overwrite

    params = {"params": {"w": jnp.ones(3)}, overwrite: {"scale": jnp.ones(2)}}
    state = TrainState.create(apply_fn=None, params=params, tx=aj.sophia_h(0.1))
    grads = {"params": {"w": jnp.ones(3)}, overwrite: {"scale": jnp.full(2, 7.0)}}
    after = jax.jit(lambda s: s.apply_gradients(grads=grads, obj_fn=lambda p: (p["w"] ** 4).sum()))
    assert_equal(after(state).params[overwrite], {"scale": jnp.full(2, 7.0)})
    assert np.all(np.asarray(after(state).params["params"]["w"]) < 1)


def spy(seen):
    """A transformation that writes down the keywords it gets."""

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, lambda tx: aj.chain(aj.sign(), aj.chain(inner=tx))]
)
def test_keywords_go_to_the_optimizer_and_fields_to_the_state(wrap):
    seen = []
    state = linen_state(wrap(spy(seen)))
    state = state.apply_gradients(grads=grads_like(state.params), value=3.0, batch_stats="new")
    assert [list(extra) for extra in seen] == [["value"]]
    assert state.batch_stats == "new"
    other = aj.sgd(0.1)
    replaced = state.apply_gradients(grads=grads_like(state.params), tx=other)
    assert replaced.tx is other
    assert replaced.step == 2


def test_an_optimizer_of_optax_that_needs_the_loss():
    """Keywords without which the update would fail."""
    params = {"w": jnp.asarray([3.0, -2.0])}
    loss = lambda params: jnp.sum(params["w"] ** 2)
    tx = optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(15))
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    value, grads = jax.value_and_grad(loss)(state.params)
    with pytest.raises(TypeError, match="value"):
        state.apply_gradients(grads=grads)
    state = state.apply_gradients(grads=grads, value=value, grad=grads, value_fn=loss)
    assert_equal(state.params, {"w": jnp.zeros(2)})


@pytest.mark.parametrize("tx", [aj.adamw(0.1), optax.scale_by_adam(), optax.scale(0.1)])
def test_a_keyword_that_nobody_reads(tx):
    """A misspelt field must not be swallowed by `tx.update`, which takes anything."""
    state = linen_state(tx)
    message = (
        "TrainState.apply_gradients: 'batch_stat' is no field of State (step, apply_fn, params, "
        f"tx, opt_state, batch_stats), and {tx!r} reads no extra arguments. Correct"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        state.apply_gradients(grads=grads_like(state.params), batch_stat={})


@aj.transformation
def quieter(tx):
    """A combinator that reads a keyword itself, though none of its parts does."""

    def update(updates, state, params=None, *, noise, **extra):
        updates, state = tx.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: u / noise, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def test_a_combinator_that_reads_a_keyword():
    params = {"w": jnp.ones(2)}
    state = TrainState.create(apply_fn=None, params=params, tx=quieter(aj.sgd(1.0)))
    state = state.apply_gradients(grads=params, noise=4.0)
    assert_equal(state.params, {"w": jnp.full(2, 0.75)})


@pytest.mark.parametrize("field", ["step", "params", "opt_state"])
def test_what_the_update_computes_cannot_be_given(field):
    state = linen_state(aj.adamw(0.1))
    message = rf"^TrainState.apply_gradients: '{field}' is what the update computes\. Use state.rep"
    with pytest.raises(TypeError, match=message):
        state.apply_gradients(grads=grads_like(state.params), **{field: getattr(state, field)})


def test_a_missing_function_is_named():
    state = linen_state(aj.sophia_h(0.1))
    with pytest.raises(ValueError, match=r"^hutchinson: got no obj_fn"):
        state.apply_gradients(grads=grads_like(state.params))


def test_the_evaluation_parameters_of_a_train_state():
    state = linen_state(aj.schedule_free_adamw(0.1))
    for _ in range(3):
        state = state.apply_gradients(grads=grads_like(state.params))
    expected = aj.eval_params(state.tx, state.opt_state, state.params)
    assert_equal(state.eval_params, expected)
    assert np.all(np.asarray(expected["head"]["bias"] != state.params["head"]["bias"]))
