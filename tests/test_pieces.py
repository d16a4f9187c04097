"""Every piece alone: two steps by hand, purity, and a state that never changes shape."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from support import assert_equal, avals

import adamw_jax as aj


@dataclasses.dataclass(frozen=True)
class Case:
    """Two updates of one piece on one array, each line of arithmetic done by hand.

    `outs` is what leaves, `state` every leaf of the state after both steps."""

    name: str
    tx: Any
    ins: Any
    outs: Any
    state: tuple = ()
    params: Any = 10.0


CASES = [
    # maps
    Case("identity", aj.identity(), (3.0, -2.0), (3.0, -2.0)),
    Case("square", aj.square(), (3.0, -2.0), (9.0, 4.0)),
    Case("square complex", aj.square(), (3 + 4j, -2j), (25.0, 4.0), params=0j),  # |u|^2
    Case("sign", aj.sign(), ([3.0, 0.0], [-2.0, -0.0]), ([1.0, 0.0], [-1.0, 0.0])),
    Case("sign complex", aj.sign(), (3 + 4j, -2j), (0.6 + 0.8j, -1j), params=0j),  # u / |u|
    Case("scale", aj.scale(-0.5), (3.0, -2.0), (-1.5, 1.0)),
    Case("clip", aj.clip(1.5), ([3.0, 1.0], [-2.0, -1.5]), ([1.5, 1.0], [-1.5, -1.5])),
    # |3 + 4i| = 5 is scaled to 2.5; |-2i| = 2 passes
    Case("clip complex", aj.clip(2.5), (3 + 4j, -2j), (1.5 + 2j, -2j), params=0j),
    Case("root", aj.root(0.5), (9.0, 0.25), (3.5, 1.0)),
    Case("root inside", aj.root(eps_root=7.0), (9.0, 2.0), (4.0, 3.0)),  # √(9+7), √(2+7)
    Case("root of nothing", aj.root(), (0.0, 0.0), (0.0, 0.0)),
    Case("floor", aj.floor(0.5), (9.0, 0.25), (9.0, 0.5)),
    # moments
    # 0.75*0 + 0.25*4 = 1;  0.75*1 + 0.25*(-8) = -1.25
    Case("momentum", aj.scale_by_momentum(0.75), (4.0, -8.0), (1.0, -1.25), (-1.25,)),
    # 0.75*0 + 4 = 4;  0.75*4 - 8 = -5
    Case("velocity", aj.scale_by_momentum(0.75, gain=1.0), (4.0, -8.0), (4.0, -5.0), (-5.0,)),
    Case(
        "momentum before",
        aj.scale_by_momentum(0.75, read="before"),
        (4.0, -8.0),
        (0.0, 1.0),
        (-1.25,),
    ),
    # 0.25*16 = 4;  0.75*4 + 0.25*64 = 19
    Case("second moment", aj.second_moment(0.75), (4.0, -8.0), (4.0, 19.0), (19.0,)),
    # 0.25*25 = 6.25;  0.75*6.25 + 0.25*4 = 5.6875
    Case(
        "second moment complex",
        aj.second_moment(0.75),
        (3 + 4j, -2j),
        (6.25, 5.6875),
        (5.6875,),
        params=0j,
    ),
    Case("sum of squares", aj.sum_of_squares(1.0), (4.0, -8.0), (17.0, 81.0), (81.0,)),
    Case(
        "running max",
        aj.running_max(),
        ([4.0, 1.0], [2.0, 3.0]),
        ([4.0, 1.0], [4.0, 3.0]),
        ([4.0, 3.0],),
    ),
    Case("difference", aj.difference(), (4.0, -8.0), (0.0, -12.0), (2, -8.0)),
    # 1/(1 - 0.5) = 2;  3/(1 - 0.25) = 4
    Case("bias correction", aj.bias_correction(0.5), (1.0, 3.0), (2.0, 4.0), (2,)),
    # one ahead: 3/(1 - 0.25) = 4;  7/(1 - 0.125) = 8
    Case("bias correction ahead", aj.bias_correction(0.5, ahead=1), (3.0, 7.0), (4.0, 8.0), (2,)),
    # rescaling: v = 4, then 19 (above);  4/(√4 + 2) = 1;  -8/(√19 + 2)
    Case("rms", aj.scale_by_rms(0.75, 2.0), (4.0, -8.0), (1.0, -8.0 / (19**0.5 + 2)), (19.0,)),
    # momentum 0.25 as above over the same root
    Case(
        "rms with slots",
        aj.scale_by_rms(
            0.75, 2.0, numerator=aj.scale_by_momentum(0.75), correction=aj.bias_correction(0.75)
        ),
        (4.0, -8.0),
        # v = 4 / (1 - 0.75) = 16, root 4;  v = 19 / (1 - 0.5625) = 19/0.4375
        (1.0 / (4 + 2), -1.25 / ((19 / 0.4375) ** 0.5 + 2)),
        (2, 19.0, -1.25),
    ),
    # state: updates so far, rate last applied
    Case("learning rate", aj.scale_by_learning_rate(0.5), (4.0, -8.0), (-2.0, 4.0), (2, 0.5)),
    # 1 * min(1, t/4) at t = 0, 1
    Case(
        "learning rate schedule",
        aj.scale_by_learning_rate(aj.linear_warmup(1.0, 4)),
        (4.0, -8.0),
        (0.0, 2.0),
        (2, 0.25),
    ),
    # ‖(3, 4)‖ = 5 > 2.5 halves;  ‖(0, 2)‖ = 2 passes
    Case(
        "global norm",
        aj.clip_by_global_norm(2.5),
        ([3.0, 4.0], [0.0, 2.0]),
        ([1.5, 2.0], [0.0, 2.0]),
    ),
    # decay, at the parameter 10
    Case("decoupled decay", aj.add_decoupled_weight_decay(0.5), (4.0, -8.0), (9.0, -3.0)),
    Case("l2", aj.add_l2_gradient(0.5), (4.0, -8.0), (9.0, -3.0)),
    Case("shrink", aj.shrink(0.5), (4.0, -8.0), (-1.0, -13.0), (2,)),
    # 4 - 0 * 0.5 * 10;  -8 - 0.25 * 0.5 * 10
    Case(
        "shrink by a schedule",
        aj.shrink(0.5, aj.linear_warmup(1.0, 4)),
        (4.0, -8.0),
        (4.0, -9.25),
        (2,),
    ),
    Case("no decay", aj.shrink(0.5, mask=False), (4.0, -8.0), (4.0, -8.0), (2,)),
    # combinators
    # (4 * 2) clipped to 5;  (-8 * 2) clipped to -5
    Case("chain", aj.chain(aj.scale(2.0), aj.clip(5.0)), (4.0, -1.0), (5.0, -2.0)),
    Case("chain of nothing", aj.chain(), (4.0, -8.0), (4.0, -8.0)),
    Case(
        "fork",
        aj.fork(m=aj.scale_by_momentum(0.75), g=aj.identity()),
        (4.0, -8.0),
        ({"m": 1.0, "g": 4.0}, {"m": -1.25, "g": -8.0}),
        (-1.25,),
    ),
    Case(
        "merge",
        aj.merge(lambda g, m: g - m),
        ({"m": 1.0, "g": 4.0}, {"m": -1.25, "g": -8.0}),
        (3.0, -6.75),
    ),
    Case("pick", aj.pick("m"), ({"m": 1.0, "g": 4.0}, {"m": -1.25, "g": 0.0}), (1.0, -1.25)),
    Case(
        "join by name",
        aj.join(lambda g, m: g - m, m=aj.scale_by_momentum(0.75), g=aj.identity()),
        (4.0, -8.0),
        (3.0, -6.75),
        (-1.25,),
    ),
    Case(
        "join in order",
        aj.join(lambda x, y: x - y, m=aj.scale_by_momentum(0.75), g=aj.identity()),
        (4.0, -8.0),
        (-3.0, 6.75),
        (-1.25,),
    ),
    Case("add", aj.join(aj.add, a=aj.identity(), b=aj.square()), (4.0, -3.0), (20.0, 6.0)),
    # 4 / √4;  -8 / √19
    Case(
        "precondition",
        aj.precondition(aj.identity(), aj.chain(aj.second_moment(0.75), aj.root())),
        (4.0, -8.0),
        (2.0, -8.0 / 19**0.5),
        (19.0,),
    ),
    Case("0 / 0", aj.precondition(aj.identity(), aj.square()), (0.0, 2.0), (0.0, 0.5)),
    # 0.25 * m + 0.75 * g with m = 1, -1.25
    Case(
        "interpolate",
        aj.interpolate(0.25, aj.scale_by_momentum(0.75)),
        (4.0, -8.0),
        (3.25, -6.3125),
        (-1.25,),
    ),
    Case(
        "masked",
        aj.masked(aj.scale_by_momentum(0.75), {"a": True, "b": False}),
        ({"a": 4.0, "b": 5.0}, {"a": -8.0, "b": 6.0}),
        ({"a": 1.0, "b": 5.0}, {"a": -1.25, "b": 6.0}),
        (-1.25,),
        params={"a": 0.0, "b": 0.0},
    ),
    Case(
        "masked by a function",
        aj.masked(aj.scale(0.5), lambda params: jax.tree.map(lambda p: p.ndim == 1, params)),
        ({"a": 4.0, "b": [5.0]}, {"a": -8.0, "b": [6.0]}),
        ({"a": 4.0, "b": [2.5]}, {"a": -8.0, "b": [3.0]}),
        params={"a": 0.0, "b": [0.0]},
    ),
]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
modes = pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])


def arrays(tree, like=np.asarray):
    """Numbers and lists of numbers as arrays, in the default precision."""
    is_leaf = lambda x: isinstance(x, list | float | int | complex)
    return jax.tree.map(lambda x: like(jnp.asarray(x)), tree, is_leaf=is_leaf)


def shaped(case):
    """Parameters of the shape of what the piece receives (a fork's branches share one)."""
    first = case.ins[0]
    fork = isinstance(first, dict) and not isinstance(case.params, dict)
    like = next(iter(first.values())) if fork else first
    if isinstance(case.params, dict):
        return arrays(case.params)
    return jax.tree.map(lambda x: np.full_like(x, case.params), arrays(like))


def run(case, jitted):
    update = jax.jit(case.tx.update) if jitted else case.tx.update
    params = shaped(case)
    states, outs = [case.tx.init(params)], []
    for u in case.ins:
        out, state = update(arrays(u), states[-1], params)
        states.append(state)
        outs.append(out)
    return outs, states


@modes
@cases
def test_two_steps_by_hand(case, jitted, x64):
    outs, states = run(case, jitted)
    for out, expected in zip(outs, case.outs, strict=True):
        expected = arrays(expected)
        assert jax.tree.structure(out) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-15, atol=0, strict=True)
    leaves = jax.tree.leaves(states[-1])
    for x, y in zip(leaves, case.state, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-15, atol=0)


@modes
@cases
def test_the_state_keeps_structure_shapes_and_dtypes(case, jitted):
    _, states = run(case, jitted)
    assert avals(states[0]) == avals(states[1]) == avals(states[2])


@cases
def test_an_update_is_pure(case):
    """The same arguments give the same result twice, and are left as they were."""
    params = shaped(case)
    state = jax.tree.map(np.array, case.tx.init(params))  # writable, so that a write would show
    arguments = arrays(case.ins[0], np.array), state, jax.tree.map(np.array, params)
    before = copy.deepcopy(arguments)
    first = case.tx.update(*arguments)
    assert_equal(first, case.tx.update(*arguments))
    assert_equal(arguments, before)


def test_every_piece_is_here():
    """All public factories of transformations, less the optimizers (they have zoo.py)."""
    optimizers = {row.make.__name__ for row in zoo.ROWS} | {"scale_by_adam"}
    public = {name for name in aj.__all__ if hasattr(getattr(aj, name), "declared")}
    schedules = {"constant", "cosine", "inverse_sqrt", "linear_warmup", "relative"}
    pieces = public - optimizers - schedules - {"warmup_stable_decay"}
    shown = {case.tx.factory.__name__ for case in CASES}
    assert shown == pieces


def test_no_piece_needs_parameters_but_decay():
    """`update` without parameters is Optax's rule for what does not read them."""
    decay = (aj.add_decoupled_weight_decay, aj.add_l2_gradient, aj.shrink)
    for case in CASES:
        if case.tx.factory in decay:
            continue
        state = case.tx.init(shaped(case))
        alone = case.tx.update(arrays(case.ins[0]), state)
        assert_equal(alone, case.tx.update(arrays(case.ins[0]), state, shaped(case)))


def test_a_piece_is_a_transformation_of_optax():
    """Inside optax.chain, next to Optax's own."""
    tx = optax.chain(aj.scale_by_momentum(0.75), optax.scale(2.0), aj.clip(2.25))
    state = tx.init(jnp.zeros(()))
    assert isinstance(state, tuple)
    out, state = tx.update(jnp.asarray(4.0), state)
    assert out == 2.0
    out, state = tx.update(jnp.asarray(-8.0), state)
    assert out == -2.25  # 2 * -1.25, clipped
