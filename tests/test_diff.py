"""Differences between optimizers: minimal, named, and enough to make one from the other."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.core.flow import opened
from adamw_jax.inspect.periodic import factories

EPS = "direction.denominator.root"
DECAY, LR = aj.add_decoupled_weight_decay(0.1), aj.scale_by_learning_rate(0.1)
COSINE = aj.cosine(1e-3, 100)

CASES = [
    # one hyperparameter of the outermost call they share
    (aj.adamw(1e-3), aj.adamw(3e-4), "learning_rate: 0.001 -> 0.0003", "learning_rate=0.0003"),
    (aj.adamw(1e-3, b1=0.8), aj.adamw(1e-3), "b1: 0.8 -> 0.9", "b1=0.9"),
    (aj.adamw(1e-3), aj.adamw(1e-3, coupling="independent"), "coupling: 'lr' -> 'independent'",
     "coupling='independent'"),
    (aj.adamw(1e-3), aj.adamw(COSINE), "learning_rate: 0.001 -> cosine(0.001, 100)",
     "learning_rate=cosine(0.001, 100)"),
    (aj.soap(1.0), aj.soap(1.0, b3=0.5), "b3: None -> 0.5", "b3=0.5"),
    (aj.adamw(jnp.array([1.0, 2.0])), aj.adamw(1.0),
     "learning_rate: [1.0, 2.0] -> 1.0", "learning_rate=1.0"),
    # of a part
    (aj.adamw(1e-3), aj.replace(aj.adamw(1e-3), EPS, eps=1e-6), f"{EPS}.eps: 1e-08 -> 1e-06",
     "root.eps=1e-06"),
    (aj.chain(aj.clip(1.0), LR), aj.chain(aj.clip(2.0), LR), "0.max_abs: 1.0 -> 2.0",
     "0.max_abs=2.0"),
    (aj.expand(aj.adam(1e-3)), aj.expand(aj.adam(1e-3, eps=1.0)), f"{EPS}.eps: 1e-08 -> 1.0",
     "root.eps=1.0"),
    (aj.join(aj.add, a=LR, b=LR), aj.join(aj.divide, a=LR, b=LR), "op: add -> divide", "op=divide"),
    # a swapped piece
    (aj.adamw(1e-3), aj.swap(aj.adamw(1e-3), "weight_decay", aj.identity()),
     "weight_decay: add_decoupled_weight_decay(0.0001) -> identity()", "weight_decay=identity"),
    (aj.adamw(1e-3), aj.swap(aj.adamw(1e-3), "direction.numerator.1", aj.identity()),
     "direction.numerator.1: bias_correction(0.9) -> identity()", "numerator.1=identity"),
    (aj.adam(0.1), aj.sgd(0.1), "direction: scale_by_adam() -> identity()", "direction=identity"),
    (aj.muon(0.02), aj.muon(0.02, others=aj.sgd(0.1)),
     "adamw: adamw(0.0003, b2=0.95, eps=1e-10) -> sgd(0.1)", "adamw=sgd"),
    (aj.muon(0.02), aj.muon(0.02, others=aj.adamw(0.1, 0.9, 0.95, 1e-10)),
     "adamw.learning_rate: 0.0003 -> 0.1", "adamw.learning_rate=0.1"),
    (aj.muon(0.02), aj.muon(0.02, orthogonalizer=aj.sign()), None, "orthogonalize=sign"),
    (aj.chain(LR, aj.sgd(0.1)), aj.chain(LR, optax.sgd(0.1)), None, "1=foreign"),
    # present or absent
    (aj.adamw(1e-3), aj.adam(1e-3), "weight_decay: add_decoupled_weight_decay(0.0001) -> absent",
     "no weight_decay"),
    (aj.adam(1e-3), aj.adamw(1e-3), "weight_decay: absent -> add_decoupled_weight_decay(0.0001)",
     "weight_decay=add_decoupled_weight_decay"),
    (aj.precondition(aj.identity(), aj.rms(0.9)),
     aj.precondition(aj.identity(), aj.rms(0.9), basis=aj.eigenbasis(0.9)),
     "basis: absent -> eigenbasis(0.9)", "basis=eigenbasis"),
    # nothing shared, or an order that slots cannot say
    (aj.adam(0.1), aj.chain(aj.clip(1.0), aj.adam(0.1)),
     "(whole): adam(0.1) -> chain(clip(1.0), adam(0.1))", "chain(clip(1.0), adam(0.1))"),
    (aj.adam(0.1), aj.chain(optax.clip(1.0), aj.adam(0.1)),
     "(whole): adam(0.1) -> chain(foreign(clip), adam(0.1))", "chain(foreign(clip), adam(0.1))"),
    (aj.chain(a=LR, b=DECAY), aj.chain(b=DECAY, a=LR), None, None),
    (aj.chain(aj.square(), aj.clip(1.0)), aj.chain(aj.sign(), aj.floor(0.1)), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "text", "name"), CASES)
def test_one_change_is_one_entry(a, b, text, name):
    found = aj.diff(a, b)
    assert len(found) == 1
    assert text is None or str(found) == text
    assert name is None or found.name == name
    (back,) = aj.diff(b, a)
    path, old, new = found[0]
    assert back.path == path
    assert (repr(back.old), repr(back.new)) == (repr(new), repr(old))


def test_equal_expressions():
    for make in factories().values():
        assert aj.diff(make(0.1), make(0.1)) == []
    assert aj.diff(aj.adamw(1e-3), aj.expand(aj.adamw(1e-3))) == []
    assert aj.diff(aj.adamw(0.5), aj.adamw(np.float32(0.5))) == []
    assert aj.diff(aj.sgd(0.1), aj.sgd(0.1)).name == ""
    tx = optax.sgd(0.1)
    assert aj.diff(tx, tx) == []


def test_several_changes():
    found = aj.diff(aj.adamw(1e-3), aj.adamw(3e-4, eps=1e-6, weight_decay=0.1))
    assert [tuple(change) for change in found] == [
        ("learning_rate", 1e-3, 3e-4),
        ("eps", 1e-8, 1e-6),
        ("weight_decay", 1e-4, 0.1),
    ]
    assert found.name == "learning_rate=0.0003, eps=1e-06, weight_decay=0.1"
    assert len(str(found).splitlines()) == 3


MORE = [
    # one more stage in front, or at the end
    (aj.chain(DECAY, LR), aj.chain(aj.clip(1.0), DECAY, LR), "0: absent -> clip(1.0)", "0=clip"),
    (aj.chain(DECAY, LR), aj.chain(DECAY, LR, aj.scale(0.5)), "2: absent -> scale(0.5)",
     "2=scale"),
    (aj.chain(LR, LR), aj.chain(LR, LR, LR), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "text", "name"), MORE)
def test_one_more_stage_is_one_entry(a, b, text, name):
    test_one_change_is_one_entry(a, b, text, name)


def test_changes_behind_a_new_stage_are_followed():
    found = aj.diff(aj.chain(aj.adamw(1e-3), DECAY), aj.chain(aj.clip(1.0), aj.adamw(0.1), DECAY))
    assert str(found) == "0: absent -> clip(1.0)\n1.learning_rate: 0.001 -> 0.1"


def test_what_strangers_make_is_followed_like_ours():
    @aj.transformation
    def mine(rate):
        return aj.chain(aj.sign(), aj.scale(rate))

    (change,) = aj.diff(mine(0.1), mine(0.2))
    assert tuple(change) == ("rate", 0.1, 0.2)
    (change,) = aj.diff(aj.expand(mine(0.1)), aj.expand(mine(0.2)))
    assert tuple(change) == ("1.factor", 0.1, 0.2)


def test_masks_and_matchers_are_values():
    mask = {"w": True, "b": False}
    assert aj.diff(aj.adamw(0.1, mask=mask), aj.adamw(0.1, mask=dict(mask))) == []
    (change,) = aj.diff(aj.adamw(0.1, mask=mask), aj.adamw(0.1))
    assert tuple(change) == ("mask", mask, None)
    route = lambda pattern: aj.route([("x", pattern, aj.sgd(0.1))], ("y", aj.sgd(0.2)))
    (change,) = aj.diff(route("bias"), route("scale"))
    assert tuple(change) == ("matchers", ("bias",), ("scale",))


def apply(tx, change, target):
    """One change made to an expression, with `swap` and `replace`."""
    path, old, new = change
    outer, _, last = path.rpartition(".")
    if not any(isinstance(value, aj.Transformation) for value in (old, new)):
        return aj.replace(tx, outer, **{last: new})
    if new is not None and path in {"", *aj.parts(tx)}:
        return aj.swap(tx, path, new)
    here, there = (opened(aj.part(x, outer)) for x in (tx, target))
    if not repr(here).startswith("chain("):
        return aj.swap(tx, outer, aj.replace(here, "", **{last: new}))
    # A stage of a chain comes or goes; the target knows the order.
    stages = {**here.arguments, last: new}
    kept = [name for name in (*there.arguments, *here.arguments) if stages.get(name) is not None]
    return aj.swap(tx, outer, aj.chain(**{name: stages[name] for name in kept}))


SAMPLE = {
    **{name: make(0.1) for name, make in factories().items()},
    "adamw other": aj.adamw(1e-3, b1=0.8, weight_decay=0.1, mask={"w": True}),
    "adamw swapped": aj.swap(aj.adamw(1e-3), "direction.numerator.1", aj.identity()),
    "independent": aj.adamw(0.1, coupling="independent"),
    "scheduled": aj.adamw(COSINE),
    "positional": aj.chain(aj.clip(1.0), aj.adamw(0.1)),
    "routed": aj.route([("x", "bias", aj.adamw(0.1))], ("rest", aj.sgd(0.1))),
    "routed other": aj.route([("x", "scale", aj.adamw(0.2))], ("rest", aj.adam(0.1))),
    "expanded": aj.expand(aj.nadamw(0.3)),
    "foreign": optax.adam(0.1),
}
SAMPLE = {name: aj.chain(tx).arguments["0"] for name, tx in SAMPLE.items()}


def test_the_changes_make_one_from_the_other():
    for (name, a), (other, b) in itertools.product(SAMPLE.items(), repeat=2):
        tx = a
        for change in aj.diff(a, b):
            tx = apply(tx, change, b)
        assert aj.expand(tx) == aj.expand(b), (name, other)
