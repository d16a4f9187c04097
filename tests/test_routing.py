"""Routing: every leaf belongs to exactly one transformation, and one can see to which."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import linen, nnx
from support import assert_equal, avals, walk

import adamw_jax as aj

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 4))},
    "layers": [{"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for _ in range(2)],
    "head": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
}
GRADS = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape), PARAMS)
PATHS = [
    "embed/embedding",
    "head/bias",
    "head/kernel",
    "layers/0/bias",
    "layers/0/kernel",
    "layers/1/bias",
    "layers/1/kernel",
]


def by_path(tree):
    text = lambda path: "/".join(str(getattr(k, "key", getattr(k, "idx", None))) for k in path)
    return {text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def step(tx, params=PARAMS, grads=GRADS):
    return tx.update(grads, tx.init(params), params)


RULES = [
    ("vectors", lambda path, leaf: leaf.ndim == 1, aj.scale(2.0)),
    ("first", r"^layers/0/", aj.scale(3.0)),
    ("head", "head", aj.scale(5.0)),
]
ROUTED = aj.route(RULES, default=("rest", aj.scale(7.0)))
EXPECTED = {
    "embed/embedding": ("rest", 7),
    "head/bias": ("vectors", 2),  # before "head" could have it
    "head/kernel": ("head", 5),
    "layers/0/bias": ("vectors", 2),
    "layers/0/kernel": ("first", 3),
    "layers/1/bias": ("vectors", 2),
    "layers/1/kernel": ("rest", 7),
}


@pytest.mark.parametrize("how", ["eager", "jit"])
def test_the_first_match_wins(how):
    update = ROUTED.update if how == "eager" else jax.jit(ROUTED.update)
    updates, _ = update(GRADS, ROUTED.init(PARAMS), PARAMS)
    out, grads = by_path(updates), by_path(GRADS)
    assert list(out) == PATHS
    for path, (_, factor) in EXPECTED.items():
        np.testing.assert_array_equal(out[path], factor * grads[path])


def test_every_leaf_is_listed():
    assert aj.routes(ROUTED, PARAMS) == {path: name for path, (name, _) in EXPECTED.items()}
    assert list(aj.routes(ROUTED, PARAMS)) == PATHS
    assert set(aj.routes(aj.adamw(0.1), PARAMS).values()) == {"all"}
    unnamed = aj.route([("bias", aj.sgd(1.0)), ("head", aj.sgd(1.0))], aj.adamw(0.1))
    assert set(aj.routes(unnamed, PARAMS).values()) == {"rule0", "rule1", "default"}


def test_routes_are_found_inside_of_other_things():
    inner = aj.route([("biases", "bias$", aj.sgd(0.1))], ("kernels", aj.sgd(0.2)))
    outer = aj.route([("frozen", "embed", optax.set_to_zero())], ("trained", inner))
    expected = {
        path: "frozen"
        if "embed" in path
        else "trained.biases"
        if path.endswith("bias")
        else "trained.kernels"
        for path in PATHS
    }
    for tx in (
        outer,
        aj.chain(aj.clip_by_global_norm(1.0), outer, aj.scale(0.5)),
        aj.schedule_free(outer, 0.1),
    ):
        assert aj.routes(tx, PARAMS) == expected


def test_a_rule_that_matches_nothing_is_refused():
    tx = aj.route([("head", aj.sgd(0.1)), ("biases", "biass", aj.sgd(0.1))], aj.adamw(0.1))
    with pytest.raises(
        ValueError, match=r"^route: the rule 'biases' \('biass'\) matches no"
    ) as error:
        tx.init(PARAMS)
    for path in PATHS:
        assert path in str(error.value)
    shadowed = aj.route([("all", "", aj.sgd(0.1)), ("head", "head", aj.sgd(0.1))], aj.adamw(0.1))
    with pytest.raises(ValueError, match=r"'head' .*that an earlier rule has not taken"):
        shadowed.init(PARAMS)
    shadowed.init({})  # a tree without leaves has nothing to match


def test_a_default_may_get_nothing():
    tx = aj.route([("all", "", aj.sgd(0.5))], aj.adamw(0.1))
    updates, state = step(tx)
    assert_equal(updates, step(aj.sgd(0.5))[0])
    assert not [x for x in jax.tree.leaves(state["default"]) if x.ndim]


def test_names_must_differ():
    for rules, default in (
        ([("a", "x", aj.sign()), ("a", "y", aj.sign())], aj.sign()),
        ([("a", "x", aj.sign())], ("a", aj.sign())),
        ([("default", "x", aj.sign())], aj.sign()),
        ([("rule1", "x", aj.sign()), ("y", aj.sign())], aj.sign()),
    ):
        with pytest.raises(ValueError, match=r"^route: two routes share a name"):
            aj.route(rules, default)


@pytest.mark.parametrize("name", [3, "", None, b"a"])
def test_a_name_is_a_word(name):
    with pytest.raises(TypeError, match=r"^route: rule 0 is named .*\. Name it with a word"):
        aj.route([(name, "bias", aj.sgd(0.1))], aj.adamw(0.1))


@pytest.mark.parametrize("name", ["matchers", "optional"])
def test_a_name_that_is_an_argument_is_refused(name):
    with pytest.raises(TypeError, match=rf"^routed: '{name}' "):
        aj.route([(name, "bias", aj.sgd(0.1))], aj.adamw(0.1))


def test_frozen_leaves_hold_no_state():
    frozen = aj.route([("trained", "head", aj.adamw(0.1))], ("frozen", optax.set_to_zero()))
    updates, state = step(frozen)
    held = [x.shape for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(held) == [(4, 5), (4, 5), (5,), (5,)]
    assert jax.tree.leaves(state["frozen"]) == []
    for path, update in by_path(updates).items():
        assert np.all(np.asarray(update) == 0) == ("head" not in path)
    path = walk(frozen, PARAMS, [GRADS] * 2)
    assert_equal(path[-1]["layers"], PARAMS["layers"])


def test_each_route_is_its_optimizer_alone():
    """As if the others were not there, over three steps, state and all."""
    tx = aj.route([("kernels", "kernel", aj.lion(0.1))], ("rest", aj.adamw(0.2)))
    state, params = tx.init(PARAMS), PARAMS
    kernels = lambda tree: {p: x for p, x in by_path(tree).items() if "kernel" in p}
    rest = lambda tree: {p: x for p, x in by_path(tree).items() if "kernel" not in p}
    lion, adamw = aj.lion(0.1), aj.adamw(0.2)
    lion_state, adamw_state = lion.init(kernels(PARAMS)), adamw.init(rest(PARAMS))
    before = avals(state)
    for factor in (1.0, -2.0, 0.5):
        g = jax.tree.map(lambda x, f=factor: f * x, GRADS)
        updates, state = tx.update(g, state, params)
        one, lion_state = lion.update(kernels(g), lion_state, kernels(params))
        two, adamw_state = adamw.update(rest(g), adamw_state, rest(params))
        out = by_path(updates)
        for path, expected in {**one, **two}.items():
            np.testing.assert_allclose(out[path], expected, rtol=1e-6)
        params = optax.apply_updates(params, updates)
    assert avals(state) == before


def test_a_clip_is_global_before_and_local_inside():
    clip = aj.clip_by_global_norm(1.0)
    rules = lambda piece: aj.route([("a", "embed", piece)], ("b", piece))
    norm = lambda tree: float(optax.tree.norm(tree))
    before, _ = step(aj.chain(clip, rules(aj.identity())))
    assert norm(before) == pytest.approx(1.0)
    assert_equal(before, step(clip)[0])
    inside, _ = step(rules(clip))
    assert norm(inside["embed"]) == pytest.approx(1.0)
    assert norm({k: v for k, v in inside.items() if k != "embed"}) == pytest.approx(1.0)


def test_extra_arguments_reach_every_route():
    """A loss is one of all parameters, whichever of them a route sees."""
    loss = lambda p: p["layers"][0]["kernel"].sum() * jnp.sum(p["layers"][0]["bias"] ** 2)
    twice = 2.0 * PARAMS["layers"][0]["kernel"].sum()
    inner = aj.hutchinson(distribution="rademacher")
    biases = lambda path, leaf: path == "layers/0/bias"
    mask = {"embed": False, "head": False, "layers": [{"kernel": False, "bias": True}, False]}
    for tx in (
        aj.route([("a", biases, inner)], ("b", aj.identity())),
        aj.route([("a", "layers", aj.route([(biases, inner)], aj.identity()))], aj.identity()),
        aj.masked(inner, mask),
    ):
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, obj_fn=loss, value=1.0)
        for path, u in by_path(updates).items():
            expected = twice if biases(path, u) else by_path(GRADS)[path]
            np.testing.assert_allclose(u, jnp.broadcast_to(expected, u.shape), rtol=1e-6)


# --- the same on every kind of tree -------------------------------------------


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        init = linen.with_partitioning(linen.initializers.lecun_normal(), (None, None))
        x = linen.Dense(4, kernel_init=init, name="hidden")(x)
        return linen.Dense(2, name="head")(linen.relu(x))


NET_RULES = aj.route([("biases", "bias$", aj.sgd(1.0))], ("kernels", aj.adamw(0.1)))
NET_ROUTES = {
    "head/bias": "biases",
    "head/kernel": "kernels",
    "hidden/bias": "biases",
    "hidden/kernel": "kernels",
}


class EqxNet(eqx.Module):
    """Besides arrays, what is not optimized: a function and a whole number."""

    hidden: dict
    head: dict
    activation: object = jax.nn.relu
    calls: int = 3

    def __call__(self, x):
        x = self.activation(x @ self.hidden["kernel"] + self.hidden["bias"])
        return x @ self.head["kernel"] + self.head["bias"]


def kinds_of_trees():
    """The same parameters in every kind of containers."""
    plain = {
        "head": {"bias": jnp.ones(2), "kernel": jnp.linspace(-1, 1, 8).reshape(4, 2)},
        "hidden": {"bias": jnp.ones(4), "kernel": jnp.linspace(1, 2, 12).reshape(3, 4)},
    }
    with jax.numpy_dtype_promotion("standard"):
        variables = LinenNet().init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    boxed = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    model = EqxNet(**plain)
    holders = {
        "dict": plain,
        "nnx boxed": boxed,
        "nnx plain": nnx.as_pure(boxed),
        "linen partitioned": variables,
        "equinox": eqx.filter(model, eqx.is_inexact_array),  # None for all else
    }
    start = dict(by_names(plain))
    filled = lambda tree: [start[name] for name, _ in by_names(tree)]
    return {
        name: jax.tree.unflatten(jax.tree.structure(tree), filled(tree))
        for name, tree in holders.items()
    }


def by_names(tree):
    return zip(aj.routes(aj.sgd(0.1), tree), jax.tree.leaves(tree), strict=True)


@pytest.mark.parametrize(
    "rules",
    [
        [("biases", "bias$", aj.sgd(1.0)), ("head", "^head/", aj.lion(0.1))],
        [
            ("biases", lambda path, leaf: leaf.ndim == 1, aj.sgd(1.0)),
            ("head", lambda path, leaf: path == "head/kernel", aj.lion(0.1)),
        ],
    ],
    ids=["by path", "by path and leaf"],
)
def test_the_same_on_every_kind_of_tree(rules):
    """Routes, steps and state, leaf by leaf to the bit, with a clip over all of them before."""
    clip = aj.clip_by_global_norm(0.5)
    tx = aj.chain(clip, aj.route([*rules, ("frozen", "hidden", optax.set_to_zero())], aj.sgd(9.0)))
    trees = kinds_of_trees()
    expected = {
        "head/bias": "biases",
        "head/kernel": "head",
        "hidden/bias": "biases",
        "hidden/kernel": "frozen",
    }
    found = {}
    for name, params in trees.items():
        assert aj.routes(tx, params) == expected
        state = tx.init(params)
        grads = params
        for _ in range(2):
            updates, state = jax.jit(tx.update)(grads, state, params)
            assert jax.tree.structure(updates) == jax.tree.structure(params)
            params = optax.apply_updates(params, updates)
        # Frozen leaves hold no state: one momentum, for the kernel of the head.
        held = [x.shape for x in jax.tree.leaves(state) if x.ndim]
        assert held == [(4, 2)]
        found[name] = dict(by_names(params)), jax.tree.leaves(state)
    for params, state in found.values():
        assert_equal(params, found["dict"][0])
        assert_equal(state, found["dict"][1])
    # The clip saw all leaves: what went to plain SGD is the whole gradient, scaled as one.
    start = dict(by_names(trees["dict"]))
    norm = float(optax.tree.norm(trees["dict"]))
    first, _ = tx.update(trees["dict"], tx.init(trees["dict"]), trees["dict"])
    np.testing.assert_allclose(first["head"]["bias"], -0.5 / norm * start["head/bias"], rtol=1e-6)


def test_training_an_equinox_module():
    model = EqxNet(**kinds_of_trees()["dict"])
    tx = aj.route([("biases", "bias$", aj.sgd(0.01))], ("kernels", aj.adamw(0.01)))
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    loss = eqx.filter_value_and_grad(lambda model: jnp.mean(model(x) ** 2))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        value, grads = loss(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(5):
        model, state, value = step(model, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert (model.calls, model.activation) == (3, jax.nn.relu)


def test_a_rule_that_matches_nothing_on_every_kind_of_tree():
    tx = aj.route([("tail", "^tail", aj.sgd(0.1))], aj.adamw(0.1))
    for params in kinds_of_trees().values():
        with pytest.raises(ValueError, match=r"the rule 'tail' .*paths are h\w+/bias, "):
            tx.init(params)


def test_boxed_at_init_and_plain_in_update():
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, NET_RULES, wrt=nnx.Param)
    xs, grads = jnp.ones((2, 3)), []
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):
            g = nnx.grad(lambda model: jnp.mean(model(xs) ** 2))(model)
        grads.append(jax.tree.map(jnp.copy, nnx.to_pure_dict(g)))
        optimizer.update(model, g)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    expected = walk(NET_RULES, before, grads)[-1]
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


# --- expressions --------------------------------------------------------------


def test_slots_of_a_route():
    tx = aj.muon(0.02)
    assert aj.part(tx, "muon.direction") == aj.nesterov_trace(0.95)
    polyak = aj.swap(tx, "muon.direction", aj.scale_by_momentum(0.95, gain=1.0))
    params = {"w": jnp.ones((2, 3))}
    grads = [{"w": jnp.ones((2, 3))}, {"w": jnp.eye(2, 3)}]
    expected = walk(aj.muon(0.02, nesterov=False), params, grads)
    assert_equal(walk(polyak, params, grads), expected)
    slower = aj.replace(tx, "adamw", learning_rate=1e-5)
    assert aj.part(slower, "adamw.learning_rate") == aj.scale_by_learning_rate(1e-5)
    assert aj.part(slower, "muon") == aj.part(tx, "muon")
    by_rule = aj.swap(ROUTED, "head", aj.scale(11.0))
    assert aj.routes(by_rule, PARAMS) == aj.routes(ROUTED, PARAMS)
    np.testing.assert_array_equal(step(by_rule)[0]["head"]["kernel"], 11 * GRADS["head"]["kernel"])


TEXT_RULES = [
    NET_RULES,
    aj.route([("bias$", aj.sgd(1.0))], aj.adamw(0.1)),
    aj.masked(aj.scale(0.5), {"a": True, "b": [False, True]}),
    aj.muon(0.02, others=aj.sgd(0.1)),
    aj.swap(NET_RULES, "biases", aj.sign()),
    aj.expand(NET_RULES),
]


@pytest.mark.parametrize("tx", TEXT_RULES, ids=range(len(TEXT_RULES)))
def test_written_and_read_again(tx):
    assert eval(repr(tx), dict(vars(aj))) == tx
    for again in (pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert again == tx
        assert hash(again) == hash(tx)
        assert repr(again) == repr(tx)
    assert tx != aj.muon(0.5)


def test_a_route_is_data():
    """One trace for many learning rates, and none of the rules becomes a leaf."""
    traces = []

    @jax.jit
    def update(tx, grads, state, params):
        traces.append(1)
        return tx.update(grads, state, params)[0]

    make = lambda rate: aj.route([("bias$", aj.sgd(rate))], aj.sgd(2 * rate))
    for rate in (0.1, 0.2):
        out = update(make(rate), GRADS, make(rate).init(PARAMS), PARAMS)
        np.testing.assert_allclose(out["head"]["bias"], -rate * GRADS["head"]["bias"], rtol=1e-6)
    assert len(traces) == 1
    assert jax.tree.leaves(make(0.1)) == [0.1, 0.2]


# --- masked -------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        {"embed": False, "layers": True, "head": {"kernel": True, "bias": False}},
        lambda params: {"embed": False, "layers": True, "head": {"kernel": True, "bias": False}},
        {
            "embed": {"embedding": False},
            "layers": [{"kernel": True, "bias": True}] * 2,
            "head": {"kernel": True, "bias": False},
        },
    ],
    ids=["prefix", "function", "whole"],
)
def test_masks(mask):
    tx = aj.masked(aj.scale_by_momentum(0.5), mask)
    updates, state = step(tx)
    chosen = {"head/kernel", *(path for path in PATHS if "layers" in path)}
    for path, u in by_path(updates).items():
        expected = by_path(GRADS)[path] * (0.5 if path in chosen else 1.0)
        np.testing.assert_array_equal(u, expected)
    assert len(jax.tree.leaves(state)) == len(chosen)
    assert avals(tx.update(GRADS, state, PARAMS)[1]) == avals(state)


def test_all_or_nothing():
    everything, nothing = aj.masked(aj.scale(0.5), True), aj.masked(aj.scale(0.5), False)
    assert_equal(step(everything)[0], jax.tree.map(lambda g: g / 2, GRADS))
    assert_equal(step(nothing)[0], GRADS)


# --- evaluating where it should be --------------------------------------------


FREE = aj.schedule_free(aj.sgd(0.1), 0.1, 0.75)
DICT = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}


def trained(tx, params=DICT, steps=3):
    """The state and parameters after three steps on (θ - 1)²/2."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda p: p - 1, params), state, params)
        params = optax.apply_updates(params, updates)
    return state, params


@pytest.mark.parametrize(
    ("tx", "averaged"),
    [
        (FREE, "ab"),
        (aj.chain(aj.clip(10.0), FREE), "ab"),
        (aj.chain(first=aj.identity(), second=FREE), "ab"),
        (aj.route([("a", FREE)], aj.sgd(0.1)), "a"),
        (aj.route([("a", aj.sgd(0.1))], ("rest", FREE)), "b"),
        (aj.chain(aj.route([("a", FREE)], aj.sgd(0.1)), aj.scale(1.0)), "a"),
        (aj.masked(FREE, {"a": False, "b": True}), "b"),
        (aj.observe(FREE), "ab"),
        (aj.skip_nonfinite(FREE), "ab"),
        (aj.chain(aj.clip(10.0), aj.skip_nonfinite(aj.observe(FREE))), "ab"),
        (aj.masked(FREE, lambda params: {"a": True, "b": False}), "a"),
        (aj.sgd(0.1), ""),
        (optax.sgd(0.1), ""),
        (aj.delay(aj.identity()), ""),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_eval_params(tx, averaged):
    """x = (y - 0.25 z) / 0.75 on the leaves that an average is kept of, y on the others."""
    state, params = trained(tx)
    found = aj.eval_params(tx, state, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    alone, alone_params = trained(FREE)
    for name in "ab":
        if name not in averaged:
            assert_equal(found[name], params[name])
            continue
        np.testing.assert_allclose(params[name], alone_params[name], rtol=1e-6)
        x = (params[name] - 0.25 * alone.z[name]) / 0.75
        np.testing.assert_allclose(found[name], x, rtol=1e-6)
        assert np.abs(np.asarray(x - params[name])).max() > 1e-3


FREE_ADAMW = aj.schedule_free_adamw(0.1)


@pytest.mark.parametrize(
    "wrapped",
    [
        aj.observe(FREE_ADAMW),
        aj.skip_nonfinite(FREE_ADAMW),
        aj.chain(aj.clip(10.0), FREE_ADAMW),
        aj.route([("a", aj.sgd(0.1))], FREE_ADAMW),
        aj.scheduled(FREE_ADAMW, eps=aj.constant(1e-8)),
    ],
    ids=lambda tx: tx.factory.__name__,
)
def test_eval_params_looks_into_what_has_a_name(wrapped):
    """A composite is found wherever it stands, as what it is made of would be."""
    own, params = trained(FREE_ADAMW)
    expected = aj.eval_params(FREE_ADAMW, own, params)["b"]
    assert np.abs(np.asarray(expected - params["b"])).max() > 1e-4
    found = aj.eval_params(wrapped, *trained(wrapped))
    np.testing.assert_allclose(found["b"], expected, rtol=1e-6)


OPTAX_FREE = optax.contrib.schedule_free_sgd(0.1)


def test_eval_params_of_the_one_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        state, params = trained(OPTAX_FREE)
        expected = optax.contrib.schedule_free_eval_params(state, params)
        assert np.abs(np.asarray(expected["a"] - params["a"])).max() > 1e-4
        assert_equal(aj.eval_params(OPTAX_FREE, state, params), expected)
        tx = aj.chain(aj.clip(10.0), aj.route([("a", OPTAX_FREE)], aj.sgd(0.1)))
        found = aj.eval_params(tx, *trained(tx))
        np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-6)


@pytest.mark.parametrize("inner", [FREE_ADAMW, OPTAX_FREE], ids=["ours", "optax"])
def test_eval_params_refuses_what_it_cannot_look_into(inner):
    wrapped = optax.chain(optax.clip(10.0), inner)
    for tx in (wrapped, aj.chain(aj.clip(10.0), wrapped)):
        with jax.numpy_dtype_promotion("standard"):
            found = trained(tx)
            with pytest.raises(ValueError, match="eval_params: schedule_free is inside a transf"):
                aj.eval_params(tx, *found)


def test_rules_see_what_they_will_see_in_training():
    """At least float32 arrays, whether the parameters are numbers or 16 bits wide."""
    params = {"a": 1.0, "b": jnp.ones((2, 2), "bfloat16")}
    rule = lambda path, leaf: leaf.ndim == 2 and leaf.dtype == jnp.float32
    tx = aj.route([("matrices", rule, aj.sgd(0.1))], aj.adamw(0.1))
    tx.init(params)
    assert aj.routes(tx, params) == {"a": "default", "b": "matrices"}


# --- masks that are data -------------------------------------------------------------------

HEADLESS = aj.matches("kernel", exclude=("^head",))
PLACES = {  # wherever there is a mask or a rule
    "masked": lambda m: aj.masked(aj.scale(2.0), m),
    "route": lambda m: aj.route([(m, aj.sgd(0.1))], ("rest", aj.adamw(0.1))),
    "routed": lambda m: aj.routed((m,), a=aj.sgd(0.1), b=aj.adamw(0.1)),
    "matrices": lambda m: aj.muon(0.1, matrices=m),
    "l2": lambda m: aj.adam_l2(0.1, mask=m),
    "shrink": lambda m: aj.shrink(0.1, None, m),
    "proximal": lambda m: aj.proximal_decay(0.1, None, m),
    **{row.name: row.make for row in zoo.ROWS if "mask" in row.make.signature.parameters},
}


def put(name, mask):
    make = PLACES[name]
    return make(0.1, mask=mask) if hasattr(make, "signature") else make(mask)


@pytest.mark.parametrize("name", PLACES)
def test_a_mask_of_regular_expressions_is_data(name):
    tx = put(name, HEADLESS)
    assert "matches('kernel', exclude=('^head',))" in repr(tx)
    for again in (aj.parse(repr(tx)), pickle.loads(pickle.dumps(tx))):
        assert again == tx
        assert hash(again) == hash(tx)
    assert put(name, aj.matches("kernel")) != tx
    params = {k: v for k, v in PARAMS.items() if k != "embed"}
    tree = lambda path, x: "kernel" in path and not path.startswith("head")
    plain = put(name, tree if name in ("route", "routed", "matrices") else HEADLESS(params))
    extra = {}
    if name.startswith("sophia"):
        extra = {"obj_fn": lambda p: 0.0 * p["head"]["bias"].sum()}
        extra |= {"logits_fn": lambda p: jnp.zeros((2, 2)) + 0.0 * p["head"]["bias"].sum()}
        extra = {k: extra[k] for k in (["obj_fn"] if name == "sophia_h" else ["logits_fn"])}
    step = lambda tx: tx.update(params, tx.init(params), params, **extra)[0]
    assert_equal(step(tx), step(plain))
    with pytest.raises(ValueError, match=r"^matches: 'kernle' is found in no parameter\.") as error:
        put(name, aj.matches("bias", "kernle")).init(params)
    assert "layers/0/kernel" in str(error.value)
    with pytest.raises(ValueError, match=r"^matches: 'haed' is found in no parameter\."):
        put(name, aj.matches("kernel", exclude=("haed",))).init(params)


def test_a_regular_expression_may_match_what_another_route_has():
    tx = aj.route([("head", aj.adamw(0.1, mask=HEADLESS))], aj.sgd(0.1))
    tx.init(PARAMS)
    tree = jax.tree.map(lambda p: p.ndim > 1, PARAMS)  # of all parameters, as users have it
    tx = aj.route([("head", aj.adamw(0.1, mask=tree))], aj.sgd(0.1))
    tx.init(PARAMS)
    with pytest.raises(ValueError, match="the mask names 'tail'"):
        aj.route([("head", aj.adamw(0.1, mask={**tree, "tail": True}))], aj.sgd(0.1)).init(PARAMS)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (
            lambda: aj.matches("("),
            ValueError,
            r"^matches: '\(' is no regular .*Correct",
        ),
        (lambda: aj.matches("a", exclude=("[",)), ValueError, r"^matches: '\[' is no regular"),
        (lambda: aj.matches(3), TypeError, "^matches: 3 is no regular expression"),
        (lambda: aj.matches("a", exclude="b"), TypeError, "^matches: exclude is 'b'"),
        (lambda: aj.matches(), TypeError, "^matches: got no regular expression"),
    ],
)
def test_a_wrong_regular_expression_is_told_at_once(wrong, kind, message):
    with pytest.raises(kind, match=message):
        wrong()


# --- what a mask is ------------------------------------------------------------------------


class Affine(eqx.Module):
    kernel: object
    bias: object
    odd: object

    def __call__(self, x):
        raise AssertionError("a model is called")

    def chosen(self, params):
        return {"w": self.bias is None}


AFFINE = Affine(jnp.ones((3, 2)), jnp.ones(2), {("a", 1): jnp.ones(2)})


@pytest.mark.parametrize("name", [n for n in PLACES if n not in ("route", "routed", "matrices")])
def test_a_mask_that_can_be_called_is_a_tree(name):
    if name.startswith("sophia"):
        pytest.skip("takes a function of the parameters; its mask is the others'")
    mask = jax.tree.map(lambda p: np.bool_(p.ndim > 1), AFFINE)
    tx, plain = put(name, mask), put(name, lambda params: jax.tree.map(bool, mask))
    assert aj.lint(tx) == aj.lint(plain) or name == "masked"
    for update in (lambda tx: tx.update, lambda tx: jax.jit(tx.update)):
        step = lambda tx, run=update: run(tx)(AFFINE, tx.init(AFFINE), AFFINE)[0]
        assert_equal(step(tx), step(plain))
    aj.describe(tx, AFFINE)
    assert put(name, mask) == tx


def test_what_has_leaves_and_is_a_function_is_one():
    params = {"w": 1.0}
    for mask, expected in (
        (jax.tree_util.Partial(lambda flag, params: {"w": flag is None}, None), 2.0),
        (jax.tree_util.Partial(lambda x, params: {"w": False}, jnp.ones(2)), 1.0),
        (Affine(1, None, 3).chosen, 2.0),
        (Affine(True, False, True).chosen, 1.0),
        (aj.matches("w", exclude=("w",)), 1.0),
    ):
        tx = aj.masked(aj.scale(2.0), mask)
        assert tx.update(params, tx.init(params))[0]["w"] == expected
    with pytest.raises(ValueError, match=r"mask leaf 'kernel' is 1\."):
        aj.masked(aj.scale(2.0), Affine(1, True, False))
    with pytest.raises(TypeError, match=r"^route: the matcher of 'rule0' is Affine"):
        aj.route([(Affine(True, False, True), aj.sgd(0.1))], aj.sgd(0.1))
