"""An optimizer is data: printed, compared, pickled, traced, mapped over, rewired."""

import copy
import functools
import inspect
import pickle
import pydoc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from support import assert_equal

import adamw_jax as aj

PARAMS = {"b": jnp.array([0.3, -0.2, 0.5]), "w": jnp.array([[1.0, -2.0, 0.5], [0.1, 0.0, 3.0]])}
GRADS = {"b": jnp.array([0.1, 2.0, -0.4]), "w": jnp.array([[0.5, 0.0, -1.0], [2.0, 0.3, -0.7]])}


@pytest.fixture(autouse=True)
def _count_traces_afresh():
    chex.clear_trace_counter()


def two_steps(tx, params=PARAMS, grads=GRADS):
    """The second update: by then every moment has a past."""
    _, state = tx.update(grads, tx.init(params), params)
    return tx.update(jax.tree.map(jnp.cos, grads), state, params)[0]


# Every kind of argument: numbers, schedules, masks, text, dtypes, functions, parts.
SAMPLES = {
    "sgd": lambda: aj.sgd(0.1),
    "momentum": lambda: aj.momentum(0.1, 0.8),
    "heavy_ball": lambda: aj.heavy_ball(0.1, momentum=0.7),
    "nesterov": lambda: aj.nesterov(0.1),
    "adagrad": lambda: aj.adagrad(0.1, initial_accumulator=0.5),
    "rmsprop": lambda: aj.rmsprop(0.1, 0.99, 1e-7),
    "adam": lambda: aj.adam(1, b2=0.99),
    "adam_l2": lambda: aj.adam_l2(1e-3, weight_decay=0.3),
    "adamw": lambda: aj.adamw(1e-3, weight_decay=0.1),
    "mask": lambda: aj.adamw(1e-3, mask={"b": False, "w": True}),
    "independent": lambda: aj.adamw(aj.cosine(1e-3, 100), coupling="independent"),
    "schedule": lambda: aj.adamw(aj.warmup_stable_decay(0.1, 99, warmup_steps=9, decay_steps=9)),
    "expanded": lambda: aj.expand(aj.adamw(1e-3, 0.8, mask={"b": False, "w": True})),
    "expanded join": lambda: aj.expand(aj.nesterov(0.1)),
    "swapped": lambda: aj.swap(aj.adamw(1e-3), "direction.denominator.correction", aj.identity()),
    "replaced": lambda: aj.replace(aj.adamw(1e-3), "direction.denominator.moment", decay=0.9),
    "chain": lambda: aj.chain(aj.clip(1.0), aj.chain(aj.sign(), aj.scale(-2.0))),
    "named chain": lambda: aj.chain(z=aj.clip(1.0), a=aj.scale(3.0)),
    "awkward names": lambda: aj.chain(stages=aj.clip(1.0), named=aj.scale(3.0)),
    "fork": lambda: aj.chain(aj.fork(z=aj.square(), branches=aj.identity()), aj.pick("z")),
    "interpolate": lambda: aj.interpolate(0.9, aj.scale_by_momentum(0.99, read="before")),
    "dtype": lambda: aj.scale_by_momentum(0.9, gain=1.0, dtype=jnp.bfloat16),
    "slots": lambda: aj.scale_by_rms(0.9, numerator=aj.sign(), correction=aj.bias_correction(0.9)),
    "int": lambda: aj.bias_correction(0.9, ahead=1),
    "scalar array": lambda: aj.root(jnp.float32(0.1), eps_root=np.float64(0.2)),
}
SCHEDULES = {
    "constant": lambda: aj.constant(0.1),
    "linear_warmup": lambda: aj.linear_warmup(0.1, 10),
    "cosine": lambda: aj.cosine(0.1, 100, warmup_steps=10, end=0.01),
    "warmup_stable_decay": lambda: aj.warmup_stable_decay(0.1, 100, decay_steps=20),
    "inverse_sqrt": lambda: aj.inverse_sqrt(0.1, 10.5),
    "relative": lambda: aj.relative(aj.cosine(0.1, 100)),
}
ARRAYS = {"array": lambda: aj.adamw(jnp.array([0.1, 0.2]), b1=np.array([0.8, 0.9]))}

each_sample = pytest.mark.parametrize("make", SAMPLES.values(), ids=SAMPLES)
each_expression = pytest.mark.parametrize(
    "make", (ALL := SAMPLES | SCHEDULES | ARRAYS).values(), ids=ALL
)


# --- a gradient transformation ------------------------------------------------


@each_sample
def test_is_a_gradient_transformation(make):
    tx = make()
    assert isinstance(tx, aj.Transformation)
    assert isinstance(tx, optax.GradientTransformation)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)
    assert init(PARAMS) is not None


def test_extra_arguments_reach_every_part():
    def keep():
        update = lambda updates, state, params=None, *, value, **extra: (
            jax.tree.map(lambda u: u * value, updates),
            state,
        )
        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = aj.chain(aj.identity(), aj.join(aj.add, a=aj.transformation(keep)(), b=aj.identity()))
    out, _ = tx.update(2.0, tx.init(0.0), 0.0, value=10.0)
    assert out == 22.0


# --- printed ------------------------------------------------------------------


@pytest.mark.parametrize("make", (SAMPLES | SCHEDULES).values(), ids=SAMPLES | SCHEDULES)
def test_repr_evaluates_to_an_equal_object(make):
    assert eval(repr(make()), vars(aj)) == make()


def test_repr_is_what_one_would_type():
    assert repr(aj.adamw(1e-3, 0.9, weight_decay=0.1)) == "adamw(0.001, weight_decay=0.1)"
    assert repr(aj.chain(a=aj.clip(2), b=aj.sign())) == "chain(a=clip(2.0), b=sign())"
    assert repr(aj.cosine(0.1, 100)) == "cosine(0.1, 100)"


# --- compared -----------------------------------------------------------------


@each_expression
def test_equal_calls_are_equal(make):
    assert make() == make()
    assert not make() != make()  # noqa: SIM202  tuple has a != of its own
    assert hash(make()) == hash(make())
    assert {make(): "found"}[make()] == "found"


def test_different_expressions_differ():
    everything = [make() for make in ALL.values()]
    for i, one in enumerate(everything):
        for other in everything[i + 1 :]:
            assert one != other
            assert not one == other  # noqa: SIM201


NEAR = {
    "value": (aj.adamw(1e-3), aj.adamw(2e-3)),
    "text": (aj.adamw(1e-3), aj.adamw(1e-3, coupling="independent")),
    "mask value": (aj.adamw(1, mask={"b": True}), aj.adamw(1, mask={"b": False})),
    "mask key": (aj.adamw(1, mask={"b": True}), aj.adamw(1, mask={"w": True})),
    "mask or none": (aj.adamw(1), aj.adamw(1, mask=True)),
    "array value": (aj.scale(jnp.array([1.0, 2.0])), aj.scale(jnp.array([1.0, 3.0]))),
    "array shape": (aj.scale(jnp.array([1.0, 2.0])), aj.scale(jnp.array([[1.0, 2.0]]))),
    "none or zero": (aj.scale_by_momentum(0.9), aj.scale_by_momentum(0.9, gain=0.0)),
    "dtype": (aj.second_moment(0.9), aj.second_moment(0.9, dtype="float32")),
    "order": (aj.chain(aj.sign(), aj.clip(1)), aj.chain(aj.clip(1), aj.sign())),
    "name": (aj.chain(a=aj.sign()), aj.chain(b=aj.sign())),
    "named order": (
        aj.chain(a=aj.sign(), b=aj.clip(1)),
        aj.chain(b=aj.clip(1), a=aj.sign()),
    ),
    "factory": (aj.linear_warmup(1.0, 5), aj.inverse_sqrt(1.0, 5)),
    "written out": (aj.sgd(0.1), aj.expand(aj.sgd(0.1))),
    "function": (aj.sgd(lambda t: 0.1), aj.sgd(lambda t: 0.1)),
}


@pytest.mark.parametrize(("one", "other"), NEAR.values(), ids=NEAR)
def test_near_misses_differ(one, other):
    assert one != other


def test_defaults_and_number_types_do_not_matter():
    plain = aj.adamw(0.5)
    for learning_rate in (np.float32(0.5), np.float64(0.5), jnp.float32(0.5)):
        assert aj.adamw(learning_rate, b1=0.9, eps=1e-8) == plain
        assert hash(aj.adamw(learning_rate)) == hash(plain)
    assert aj.scale_by_momentum(0.9, dtype="bfloat16") == aj.scale_by_momentum(
        0.9, dtype=jnp.bfloat16
    )


# --- stored -------------------------------------------------------------------


def lifted():
    return aj.transformation(optax.clip_by_global_norm)(0.5)


STORED = ALL | {"lifted": lifted, "lifted in a chain": lambda: aj.chain(lifted(), aj.sgd(0.1))}


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
@pytest.mark.parametrize(
    "twin",
    [lambda tx: pickle.loads(pickle.dumps(tx)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)
def test_pickle_and_copy(make, twin):
    tx = make()
    assert twin(tx) == tx
    assert hash(twin(tx)) == hash(tx)
    if isinstance(tx, optax.GradientTransformation) and make not in ARRAYS.values():
        assert_equal(two_steps(twin(tx)), two_steps(tx))


# --- a pytree of its hyperparameters ------------------------------------------


@each_expression
def test_flatten_unflatten_round_trip(make):
    leaves, structure = jax.tree.flatten(make())
    back = jax.tree.unflatten(structure, leaves)
    assert back == make()
    assert repr(back) == repr(make())
    assert jax.tree.structure(back) == structure


def test_leaves_have_the_names_of_arguments():
    tx = aj.chain(rate=aj.adamw(aj.cosine(0.1, 100)), clip=aj.clip(2.0))
    named = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tx)
    }
    assert named == {
        ".rate.learning_rate.peak": 0.1,
        ".rate.learning_rate.total_steps": 100,
        ".rate.learning_rate.warmup_steps": 0,
        ".rate.learning_rate.end": 0.0,
        ".rate.b1": 0.9,
        ".rate.b2": 0.999,
        ".rate.eps": 1e-8,
        ".rate.weight_decay": 1e-4,
        ".clip.max_abs": 2.0,
    }


NUMBERS = ["learning_rate", "b1", "b2", "eps", "weight_decay"]


def kind(value):
    """A test id that is the same in every process."""
    return type(value).__name__


@aj.transformation
def holder(value, *rest, **named):
    """Keeps anything."""
    return optax.identity()


@pytest.mark.parametrize(
    "value",
    [0.5, 1j, np.float32(0.5), np.ones(2), np.arange(3), jnp.ones(2), jnp.arange(3)],
    ids=kind,
)
def test_data_are_leaves(value):
    (leaf,) = jax.tree.leaves(holder(value))
    assert leaf is value
    assert len(jax.tree.leaves(holder({"a": [value], "b": (1, value)}))) == 2


@pytest.mark.parametrize(
    "value",
    [3, True, None, "text", jnp.float32, np.dtype("float32"), jnp.tanh, len, (1, "a"), ()],
    ids=kind,
)
def test_everything_else_is_structure(value):
    tx = holder(value)
    assert jax.tree.leaves(tx) == []
    assert jax.tree.map(lambda x: x, tx).arguments["value"] == value
    assert tx != holder("another")


def test_true_is_not_one():
    # Python says True == 1: a structure that believed it would reuse the wrong program.
    assert holder(True) != holder(1)
    assert jax.tree.structure(holder(True)) != jax.tree.structure(holder(1))


def test_unflatten_accepts_none():
    tx = jax.tree.map(lambda x: None, aj.adamw(1e-3))
    assert tx.arguments == {**aj.adamw(1e-3).arguments, **dict.fromkeys(NUMBERS)}


@pytest.mark.parametrize(
    "leaf", [object(), 7, "x", (), jax.ShapeDtypeStruct((), "float32")], ids=kind
)
def test_unflatten_accepts_any_object(leaf):
    structure = jax.tree.structure(aj.adamw(1e-3))
    tx = jax.tree.unflatten(structure, [leaf] * structure.num_leaves)
    assert tx.arguments["b1"] == leaf
    # and what was a leaf stays one: JAX makes its trees of axes and shapes in this way
    is_leaf = lambda x: x is leaf
    assert jax.tree.leaves(tx, is_leaf=is_leaf) == [leaf] * structure.num_leaves
    assert jax.tree.structure(tx, is_leaf=is_leaf) == structure


def test_abstract_optimizer():
    shapes = jax.eval_shape(lambda tx: tx, aj.adamw(1e-3))
    assert [x.shape for x in jax.tree.leaves(shapes)] == [()] * len(NUMBERS)
    assert jax.tree.structure(shapes) == jax.tree.structure(aj.adamw(1e-3))


# Alphabetical order would change the numbers: clip(1) then 3u is 3, 3u then clip(1) is 1.
ORDERED = {
    "named chain": (aj.chain(z=aj.clip(1.0), a=aj.scale(3.0)), 3.0),
    "ten stages": (  # "10" sorts before "2"
        aj.chain(*[aj.scale(1.0)] * 2, aj.clip(1.0), *[aj.scale(1.0)] * 7, aj.scale(3.0)),
        3.0,
    ),
    "join": (aj.join(jnp.subtract, z=aj.identity(), a=aj.scale(3.0)), 4.0 - 12.0),
    "fork": (
        aj.chain(y=aj.fork(z=aj.identity(), a=aj.scale(3.0)), x=aj.merge(lambda a, z: z - a)),
        4.0 - 12.0,
    ),
    "keywords swapped": (
        aj.precondition(denominator=aj.scale(2.0), numerator=aj.identity()),
        0.5,
    ),
}


@pytest.mark.parametrize(("tx", "expected"), ORDERED.values(), ids=ORDERED)
def test_order_survives_flattening(tx, expected):
    run = lambda tx: tx.update(4.0, tx.init(0.0), 0.0)[0]
    mapped = jax.tree.map(lambda x: x, tx)
    assert run(tx) == run(mapped) == jax.jit(run)(tx) == expected
    assert list(aj.parts(mapped)) == list(aj.parts(tx))
    assert repr(mapped) == repr(tx)


# --- under JAX's transformations ----------------------------------------------


def test_one_trace_for_twenty_learning_rates():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(tx, grads, state, params):
        return tx.update(grads, state, params)

    for learning_rate in np.linspace(1e-4, 1e-1, 20):
        tx = aj.adamw(learning_rate, weight_decay=learning_rate)
        out, _ = step(tx, GRADS, tx.init(PARAMS), PARAMS)
        chex.assert_trees_all_close(out, tx.update(GRADS, tx.init(PARAMS), PARAMS)[0], rtol=1e-6)


def test_eager_update_compiles_once_for_all_hyperparameters():
    traces = 0

    @aj.transformation
    def counting(factor):
        def update(updates, params):
            nonlocal traces
            traces += 1
            return jax.tree.map(lambda u: u * factor, updates)

        return optax.stateless(update)

    for factor in np.linspace(1, 2, 20):
        tx = counting(factor)
        out, _ = tx.update(2.0, tx.init(0.0), 0.0)
        assert out == pytest.approx(2 * factor)
    assert traces == 1


def test_structure_retraces():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(tx):
        return tx.update(1.0, tx.init(0.0), 0.0)[0]

    step(aj.adamw(1e-3))
    with pytest.raises(AssertionError, match="trace"):
        step(aj.adamw(1e-3, coupling="independent"))


@pytest.mark.parametrize("make", [lambda lr: aj.adamw(lr), lambda lr: aj.sgd(aj.cosine(lr, 9))])
def test_static_argument_does_not_retrace(make):
    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(tx, grads):
        return tx.update(grads, tx.init(grads), grads)[0]

    for _ in range(3):
        step(make(1e-3), 1.0)


def stack(expressions):
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x, float) for x in xs]), *expressions)


SWEEPS = {
    "numbers": [aj.adamw(lr, b1=b1) for lr, b1 in [(0.1, 0.0), (0.2, 0.5), (0.3, 0.9)]],
    "schedules": [aj.adamw(aj.cosine(lr, n)) for lr, n in [(0.1, 5), (0.2, 10), (0.3, 15)]],
    "parts": [aj.chain(z=aj.clip(c), a=aj.scale(f)) for c, f in [(0.5, 3.0), (1.0, 2.0)]],
}


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_vmap_over_a_sweep_equals_a_loop(sweep):
    batched = jax.vmap(two_steps)(stack(sweep))
    for i, tx in enumerate(sweep):
        one = jax.tree.map(lambda x, i=i: x[i], batched)
        chex.assert_trees_all_close(one, two_steps(tx), rtol=1e-6)


def test_a_stack_prints_its_grid():
    rates = [aj.scale(0.1), aj.scale(0.2)]
    assert repr(stack(rates)) == "scale([0.1, 0.2])"
    long = repr(aj.scale(jnp.arange(101.0)))
    assert long == "scale([0.0, 1.0, 2.0, ..., 98.0, 99.0, 100.0])"


def test_vmap_over_one_hyperparameter():
    axes = jax.tree.map(lambda x: None, aj.adamw(1.0))
    axes = jax.tree.unflatten(jax.tree.structure(aj.adamw(1.0)), [0, None, None, None, None])
    rates = jnp.array([0.1, 0.2])
    batched = jax.vmap(two_steps, in_axes=(axes,))(aj.adamw(rates))
    for i, rate in enumerate(rates):
        one = jax.tree.map(lambda x, i=i: x[i], batched)
        chex.assert_trees_all_close(one, two_steps(aj.adamw(rate)), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "tx",
    [
        aj.adamw(0.1, 0.8, 0.9, 0.5, 0.3),
        aj.adam_l2(0.1, 0.8, 0.9, 0.5, 0.3),
        aj.nesterov(0.1, 0.7),
        aj.rmsprop(0.1, 0.7, 0.5),
        aj.adagrad(0.1, 0.5, initial_accumulator=0.3),
    ],
    ids=repr,
)
def test_gradient_with_respect_to_hyperparameters(tx):
    params, grads = jax.tree.map(lambda x: jnp.asarray(x, "float64"), (PARAMS, GRADS))
    leaves, structure = jax.tree.flatten(tx)

    def size(*leaves):
        new = two_steps(structure.unflatten(leaves), params, grads)
        return sum(jnp.sum(jnp.sin(u)) for u in jax.tree.leaves(new))

    slopes = jax.tree.leaves(jax.grad(lambda tx: size(*jax.tree.leaves(tx)))(tx))
    h = 1e-6
    for i, slope in enumerate(slopes):
        nudge = lambda d, i=i: [x + d * (i == j) for j, x in enumerate(leaves)]
        central = (size(*nudge(h)) - size(*nudge(-h))) / (2 * h)
        assert slope == pytest.approx(float(central), rel=1e-6, abs=1e-9)
        assert slope != 0


def test_factory_under_jit():
    update = lambda lr: two_steps(aj.adamw(lr, b1=lr))
    chex.assert_trees_all_close(jax.jit(update)(0.1), update(0.1), rtol=1e-6)


def test_tracers_do_not_leak():
    with jax.checking_leaks():
        jax.jit(two_steps)(aj.adamw(aj.cosine(0.1, 10)))


def test_train_state_rebuilt_with_an_equal_optimizer_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state):
        return state.apply_gradients(grads=GRADS)

    for _ in range(3):
        mask = {"b": False, "w": True}
        tx = aj.adamw(aj.cosine(1e-3, 100), mask=mask)
        step(TrainState.create(apply_fn=None, params=PARAMS, tx=tx))


# --- foreign transformations --------------------------------------------------


def test_a_foreign_factory_is_lifted():
    with jax.numpy_dtype_promotion("standard"):
        clip = aj.transformation(optax.clip_by_global_norm)
        theirs = optax.clip_by_global_norm(0.5)
        expected, _ = theirs.update(GRADS, theirs.init(PARAMS))
        out, _ = clip(0.5).update(GRADS, clip(0.5).init(PARAMS))
        chex.assert_trees_all_close(out, expected, rtol=1e-6)
        assert repr(clip(0.5)) == "clip_by_global_norm(0.5)"
        assert jax.tree.leaves(clip(0.5)) == [0.5]
        # lifted twice it is the same factory, so that the two are equal
        assert aj.transformation(optax.clip_by_global_norm)(0.5) == clip(0.5) != clip(0.6)


def test_a_lifted_optimizer_is_data():
    with jax.numpy_dtype_promotion("standard"):
        lion = aj.transformation(optax.lion)
        sweep = [lion(lr, weight_decay=0.1) for lr in (0.1, 0.2)]
        batched = jax.vmap(two_steps)(stack(sweep))
        for i, lr in enumerate((0.1, 0.2)):
            one = jax.tree.map(lambda x, i=i: x[i], batched)
            expected = two_steps(optax.lion(lr, weight_decay=0.1))
            chex.assert_trees_all_close(one, expected, rtol=1e-6)


def test_foreign_objects_print_without_addresses():
    same = lambda updates, state, params=None: (updates, state)
    nameless = optax.GradientTransformation(lambda params: (), functools.partial(same))
    assert repr(aj.chain(optax.clip(1.0), aj.clip(1.0))) == "chain(foreign(clip), clip(1.0))"
    assert repr(aj.chain(nameless)) == "chain(foreign(partial))"


def test_foreign_objects_are_parts():
    foreign = optax.scale(2.0)
    run = lambda tx: tx.update(4.0, tx.init(0.0), 0.0)[0]
    assert run(aj.chain(aj.clip(1.0), foreign)) == 2.0
    assert run(aj.chain(a=foreign, b=aj.clip(1.0))) == 1.0
    assert run(aj.join(aj.add, x=foreign, y=aj.identity())) == 12.0
    assert run(aj.precondition(aj.identity(), foreign)) == 0.5
    assert run(aj.swap(aj.sgd(0.5), "direction", foreign)) == -4.0
    assert aj.chain(foreign) == aj.chain(foreign) != aj.chain(optax.scale(2.0))  # by identity
    assert isinstance(aj.part(aj.chain(foreign), "0"), aj.Transformation)


def test_a_foreign_chain_may_hold_expressions():
    tx = optax.chain(aj.clip(1.0), aj.scale(3.0), optax.scale(2.0))
    assert tx.update(4.0, tx.init(0.0), 0.0)[0] == 6.0


# --- parts --------------------------------------------------------------------

ADAMW_SLOTS = [
    "direction",
    "direction.numerator",
    "direction.numerator.0",
    "direction.numerator.1",
    "direction.denominator",
    "direction.denominator.moment",
    "direction.denominator.correction",
    "direction.denominator.root",
    "weight_decay",
    "learning_rate",
]


def test_parts_are_named():
    assert list(aj.parts(aj.adamw(1e-3))) == ADAMW_SLOTS
    masked = aj.parts(aj.adamw(1e-3, mask=True))
    assert masked["weight_decay.tx"] == aj.add_decoupled_weight_decay(1e-4)
    assert aj.parts(aj.sign()) == {}


@each_sample
def test_every_part_can_be_reached_and_put_back(make):
    tx = make()
    assert aj.part(tx, "") == tx
    for path, piece in aj.parts(tx).items():
        assert aj.part(tx, path) == piece
        same = aj.swap(tx, path, piece)
        assert aj.part(same, path) == piece
        assert aj.expand(same) == aj.expand(tx)
        assert aj.swap(tx, path, aj.scale(123.0)) != tx


def test_swap_changes_one_slot_only():
    tx = aj.adamw(1e-3, mask={"b": False, "w": True})
    new = aj.swap(tx, "direction.denominator.root", aj.floor(0.5))
    changed = [path for path, piece in aj.parts(tx).items() if aj.part(new, path) != piece]
    assert changed == ["direction", "direction.denominator", "direction.denominator.root"]
    assert tx == aj.adamw(1e-3, mask={"b": False, "w": True})
    assert aj.swap(tx, "", aj.sign()) == aj.sign()


def test_swap_the_decay_for_nothing_gives_adam():
    tx = aj.swap(aj.adamw(0.1, weight_decay=0.5), "weight_decay", aj.identity())
    assert_equal(two_steps(tx), two_steps(aj.adam(0.1)))


def test_swap_in_a_fork_and_under_a_mask():
    tx = aj.chain(aj.fork(z=aj.identity(), a=aj.square()), aj.pick("z"))
    tx = aj.swap(tx, "0.z", aj.scale(3.0))
    assert tx.update(2.0, tx.init(0.0))[0] == 6.0
    tx = aj.masked(aj.scale(2.0), {"b": True, "w": False})
    out = aj.swap(tx, "tx", aj.scale(3.0)).update(GRADS, tx.init(PARAMS))[0]
    assert_equal(out, {"b": 3 * GRADS["b"], "w": GRADS["w"]})


def test_replace():
    tx = aj.adamw(1e-3, mask={"b": True, "w": False})
    assert aj.replace(tx, "", learning_rate=0.5, b1=0.8) == aj.adamw(
        0.5, 0.8, mask={"b": True, "w": False}
    )
    new = aj.replace(tx, "direction.denominator.moment", decay=0.5)
    assert aj.part(new, "direction.denominator.moment") == aj.second_moment(0.5)
    assert aj.part(new, "direction.denominator.correction") == aj.bias_correction(0.999)
    new = aj.replace(tx, "learning_rate", learning_rate=aj.cosine(0.1, 9))
    assert aj.part(new, "learning_rate") == aj.scale_by_learning_rate(aj.cosine(0.1, 9))
    chain = aj.chain(aj.sign(), aj.scale(2.0))
    assert aj.replace(chain, "1", factor=3) == aj.chain(aj.sign(), aj.scale(3.0))


@each_sample
def test_expand_writes_out_the_same_optimizer(make):
    tx = make()
    plain = aj.expand(tx)
    assert not any(piece.composite for piece in [plain, *aj.parts(plain).values()])
    assert aj.expand(plain) == plain
    assert list(aj.parts(plain)) == list(aj.parts(tx))
    assert jax.tree.structure(plain.init(PARAMS)) == jax.tree.structure(tx.init(PARAMS))
    chex.assert_trees_all_close(two_steps(plain), two_steps(tx), rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda tx, path: aj.part(tx, path),
        lambda tx, path: aj.swap(tx, path, aj.identity()),
        lambda tx, path: aj.replace(tx, path, decay=0.5),
    ],
    ids=["part", "swap", "replace"],
)
@pytest.mark.parametrize("path", ["direction.numerater", "Direction", "direction.", ".", "0"])
def test_a_wrong_path_lists_the_slots(call, path):
    with pytest.raises(KeyError) as error:
        call(aj.adamw(1e-3), path)
    message = error.value.args[0]
    assert repr(path) in message
    assert message.endswith(f"Choose one of: {', '.join(ADAMW_SLOTS)}.")


# --- pieces of one's own ------------------------------------------------------


@aj.transformation(leafwise=True)
def decaying_noise(size: float = 0.5, *, name: str = "n"):
    """u -> u + size / 2^t: a piece with a state."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), "int32"))

    def update(updates, state, params=None):
        factor = jnp.asarray(size, float) / 2 ** state.count.astype(float)
        new = optax.ScaleByScheduleState(state.count + 1)
        return jax.tree.map(lambda u: u + factor, updates), new

    return optax.GradientTransformation(init, update)


@aj.transformation
def mine(learning_rate):
    """A composite."""
    return aj.chain(noise=decaying_noise(), rate=aj.scale_by_learning_rate(learning_rate))


def test_a_piece_of_ones_own():
    tx = mine(0.1)
    assert repr(tx) == "mine(0.1)"
    assert repr(aj.expand(tx)) == (
        "chain(noise=decaying_noise(), rate=scale_by_learning_rate(0.1))"
    )
    assert tx == mine(0.1) == pickle.loads(pickle.dumps(tx))
    assert jax.tree.leaves(aj.replace(tx, "noise", size=4.0)) == [4.0, 0.1]
    assert list(aj.parts(tx)) == ["noise", "rate"]
    state = tx.init(PARAMS)
    for expected in (0.5, 0.25, 0.125):
        updates, state = tx.update(GRADS, state, PARAMS)
        chex.assert_trees_all_close(
            updates, jax.tree.map(lambda g, e=expected: -0.1 * (g + e), GRADS), rtol=1e-6
        )
    assert state["noise"].count == 3


def test_decorated_functions_keep_their_name_and_signature():
    assert decaying_noise.__name__ == "decaying_noise"
    assert decaying_noise.__doc__.startswith("u -> u + size / 2^t")
    assert aj.adamw.__module__ == "adamw_jax.optimizers.adam"
    assert list(inspect.signature(aj.adamw).parameters) == list(aj.adamw.signature.parameters)


def test_help_begins_with_a_call_that_one_can_read():
    """Not with the domains of the arguments, which are unions and lambdas."""
    page = pydoc.plain(pydoc.render_doc(aj.adamw))
    call = page.splitlines()[2]
    assert call == (
        "adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.0001, mask=None, *, "
        "coupling='lr')"
    )


def test_variadic_arguments_round_trip():
    tx = holder(1, 2.0, "c", key=aj.sign())
    assert jax.tree.map(lambda x: x + 1, tx) == holder(1, 3.0, "c", key=aj.sign())
    assert eval(repr(tx), {**vars(aj), "holder": holder}) == tx
    assert list(aj.parts(tx)) == ["key"]


def test_expand_keeps_the_call_whose_argument_is_scheduled():
    tx = aj.scheduled(aj.adamw(0.1), b1=aj.constant(0.8))
    assert aj.expand(tx) == tx
    slot = aj.scheduled(aj.adamw(0.1), "direction.denominator.root", eps=aj.constant(0.1))
    assert "adamw" not in repr(aj.expand(slot))
