"""Every piece alone: two steps by hand, purity, and a state that never changes shape."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_equal, avals

import adamw_jax as aj
from adamw_jax.inspect import periodic


@dataclasses.dataclass(frozen=True)
class Case:
    """Two updates of one piece on one array (more where two show too little), each line
    of arithmetic done by hand.

    `outs` is what leaves, `state` every leaf of the state in the end, `extra` the extra
    arguments of `update`, `rtol` the rounding of the functions that the arithmetic needs."""

    name: str
    tx: Any
    ins: Any
    outs: Any
    state: tuple = ()
    params: Any = 10.0
    extra: Mapping = dataclasses.field(default_factory=dict)
    rtol: float = 1e-15


def key_after(draws):
    """The key of an estimator with seed 0 after so many estimates."""
    key = jax.random.PRNGKey(0)
    for _ in range(draws):
        key, _ = jax.random.split(key)
    return np.asarray(key)


# ‖(3, 4)‖ = 5 in one leaf, ‖(0, 1)‖ = 1 in the other
LEAVES = {"a": [3.0, 4.0], "b": [0.0, 1.0]}
NO_LEAVES = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
SPLIT = {"a": 4.0, "b": 5.0}, {"a": -8.0, "b": 6.0}

RHO = 7 - 16 * 0.75**8 / (1 - 0.75**8)

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
    Case(
        "masked by a prefix",
        aj.masked(aj.scale(0.5), {"a": True, "b": False}),
        ({"a": LEAVES, "b": 4.0}, {"a": NO_LEAVES, "b": 1.0}),
        (
            {"a": {"a": [1.5, 2.0], "b": [0.0, 0.5]}, "b": 4.0},
            {"a": NO_LEAVES, "b": 1.0},
        ),
        params={"a": NO_LEAVES, "b": 0.0},
    ),
    Case(
        "route",
        aj.route([("b$", aj.scale(3.0))], aj.scale_by_momentum(0.75)),
        SPLIT,
        ({"a": 1.0, "b": 15.0}, {"a": -1.25, "b": 18.0}),
        (-1.25,),
        params={"a": 0.0, "b": 0.0},
    ),
    Case(
        "routed",
        aj.routed(("b",), left=aj.scale_by_momentum(0.75), right=aj.scale(3.0)),
        SPLIT,
        ({"a": 12.0, "b": 1.25}, {"a": -24.0, "b": 2.4375}),  # 0.75 * 1.25 + 0.25 * 6
        (2.4375,),
        params={"a": 0.0, "b": 0.0},
    ),
    # quotients in one word: m = 2, -3 (decay 0.5) over 1 - 0.5^t;  v = 4, 19 (decay 0.75)
    Case("average", aj.average(0.5), (4.0, -8.0), (4.0, -4.0), (-3.0, 2)),
    Case("rms statistic", aj.rms(0.75, 2.0), (4.0, -8.0), (6.0, (19 / 0.4375) ** 0.5 + 2), (2, 19)),
    Case(
        "adam's direction",
        aj.scale_by_adam(0.5, 0.75, 2.0),
        (4.0, -8.0),
        (4.0 / 6, -4.0 / ((19 / 0.4375) ** 0.5 + 2)),
        (2, 19.0, -3.0, 2),
    ),
    # timing
    # the first is not seen: 0.25 * -8
    Case("delay", aj.delay(aj.scale_by_momentum(0.75)), (4.0, -8.0), (0.0, -2.0), (2, -2.0)),
    Case(
        "delay by two",
        aj.delay(aj.scale_by_momentum(0.75), 2),
        (4.0, -8.0, 16.0),
        (0.0, 0.0, 4.0),
        (3, 4.0),
    ),
    # means of two, -2 and 4: 0.25 * -2, then 0.75 * -0.5 + 0.25 * 4; the last one waits
    Case(
        "accumulate",
        aj.accumulate(aj.scale_by_momentum(0.75), 2),
        (4.0, -8.0, 3.0, 5.0, 6.0),
        (0.0, -0.5, 0.0, 0.625, 0.0),
        (1, 6.0, 0.625),
    ),
    # the factor is 1 * t / 4 at t = 0, 1
    Case(
        "scheduled",
        aj.scheduled(aj.scale(9.0), factor=aj.linear_warmup(1.0, 4)),
        (4.0, -8.0),
        (0.0, -2.0),
        (2,),
    ),
    Case(
        "scheduled part",
        aj.scheduled(
            aj.chain(m=aj.scale_by_momentum(0.75), s=aj.scale(9.0)),
            "s",
            factor=aj.linear_warmup(1.0, 4),
        ),
        (4.0, -8.0),
        (0.0, -0.3125),  # -1.25 / 4
        (2, -1.25),
    ),
    # looking ahead and behind
    # the buffer is 0.75 (0.75 * 0 + 4) = 3;  0.75 (4 * 0.75 - 8) = -3.75
    Case("nesterov trace", aj.nesterov_trace(0.75), (4.0, -8.0), (7.0, -11.75), (-3.75,)),
    # m = 2, -3 over 1 - 0.25 and 1 - 0.125, halved; g over 1 - 0.5 and 1 - 0.25, halved
    Case(
        "nesterov average",
        aj.nesterov_average(0.5),
        (4.0, -8.0),
        (1 / 0.75 + 4, -1.5 / 0.875 - 4 / 0.75),
        (2, -3.0, 2),
    ),
    # μ = 0.26, 0.2696, 0.278816;  Π = 0.26, 0.070096, 0.070096 * 0.278816;  m = 2, -3
    Case(
        "warming nesterov",
        aj.warming_nesterov(0.5, psi=1.0),
        (4.0, -8.0),
        (
            4 + 0.2696 * 2 / (1 - 0.26 * 0.2696),
            0.7304 * -8 / (1 - 0.070096) + 0.278816 * -3 / (1 - 0.070096 * 0.278816),
        ),
        (2, 0.070096, -3.0),
        rtol=4e-15,
    ),
    # v = 16, then 0.75 * 16 + 0.25 * 64 = 28: each is seen an update later
    Case(
        "previous second moment",
        aj.previous_second_moment(0.75),
        (4.0, -8.0, 1.0),
        (0.0, 16.0, 28.0),
        (3, 21.25),  # 0.75 * 28 + 0.25
    ),
    # 0.5 * 0.75 / 0.25 = 1.5:  4 + 1.5 * 4;  -8 + 1.5 * (-8 - 4)
    Case(
        "variance reduction", aj.variance_reduction(0.75, 0.5), (4.0, -8.0), (10.0, -26.0), (-8.0,)
    ),
    # guards
    # half of the coordinates agree, then none does
    Case(
        "cautious",
        aj.cautious(),
        (
            {"update": [1.0, 2.0, -1.0, 2.0], "gradient": [1.0, -1.0, -1.0, 0.0]},
            {"update": [1.0, 2.0, -1.0, 2.0], "gradient": [-1.0, -1.0, 1.0, -1.0]},
        ),
        ([2.0, 0.0, -2.0, 0.0], [0.0, 0.0, -0.0, 0.0]),
    ),
    # √(mean(9/1, 16/0.25)): the root of 0.04 is lifted to 0.5;  then √0.01 < 1
    Case(
        "update rms",
        aj.update_rms(0.5),
        (
            {"gradient": [3.0, 4.0], "second_moment": [1.0, 0.04]},
            {"gradient": [0.1, 0.1], "second_moment": [1.0, 1.0]},
        ),
        (36.5**0.5, 1.0),
    ),
    # RMS(3, 4) = √12.5 > 2;  RMS(2, 2) passes
    Case(
        "clip by rms",
        aj.clip_by_rms(2.0),
        ([3.0, 4.0], [2.0, 2.0]),
        ([6 / 12.5**0.5, 8 / 12.5**0.5], [2.0, 2.0]),
    ),
    Case(
        "clip by leaf norm",
        aj.clip_by_leaf_norm(2.5),
        (LEAVES, NO_LEAVES),
        ({"a": [1.5, 2.0], "b": [0.0, 1.0]}, NO_LEAVES),
        params=NO_LEAVES,
    ),
    # bounds 0^0.5, 1^0.5, 2^0.5
    Case(
        "clip by age",
        aj.clip_by_age(0.5),
        ([4.0, 1.0], [-8.0, 0.5], [4.0, 1.0]),
        ([0.0, 0.0], [-1.0, 0.5], [2**0.5, 1.0]),
        (3,),
    ),
    # the parameters are 10;  those of RMS 0.25 count as 0.5
    Case("scale by parameter rms", aj.scale_by_parameter_rms(0.5), (4.0, -8.0), (40.0, -80.0)),
    Case(
        "scale by small parameters",
        aj.scale_by_parameter_rms(0.5),
        (4.0, -8.0),
        (2.0, -4.0),
        params=0.25,
    ),
    # ρ∞ = 7, ρ = 7 - 2t 0.75^t / (1 - 0.75^t) reaches 5 at t = 8 (4.84 at t = 7)
    Case(
        "rectify",
        aj.rectify(0.75),
        (4.0,) * 8,
        (1.0,) * 7 + (4 / ((RHO - 4) * (RHO - 2) * 7 / (3 * 5 * RHO)) ** 0.5,),
        (8,),
        rtol=4e-15,
    ),
    # √(1 - 0.75) = 0.5;  √(1 - 0.5625)
    Case(
        "root bias correction",
        aj.root_bias_correction(0.75),
        (4.0, -8.0),
        (8.0, -8 / 0.4375**0.5),
        (2,),
    ),
    # frugal second moments
    # rows (2.5, 12.5), columns (5, 10), mean 7.5;  then rows (2, 2), columns (2, 2) half and half
    Case(
        "factored second moment",
        aj.factored_second_moment(1.0, 0.0),
        ([[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, 2.0]]),
        (
            [[2.5 * 5 / 7.5, 2.5 * 10 / 7.5], [12.5 * 5 / 7.5, 12.5 * 10 / 7.5]],
            [[2.25 * 3.5 / 4.75, 2.25 * 6 / 4.75], [7.25 * 3.5 / 4.75, 7.25 * 6 / 4.75]],
        ),
        (2, [2.25, 7.25], [3.5, 6.0]),
    ),
    # all of v: 16 + 1, then (17 + 64 + 1) / 2
    Case(
        "factored vector",
        aj.factored_second_moment(1.0, 1.0),
        ([4.0], [-8.0]),
        ([17.0], [41.0]),
        (2, [41.0], []),
    ),
    # one v a column: (1 + 9)/2 = 5, (4 + 16)/2 = 10, a quarter each; then means of 2
    Case(
        "block second moment",
        aj.block_second_moment(0.75),
        ([[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, 2.0]]),
        ([[1.25, 2.5], [1.25, 2.5]], [[1.4375, 2.375], [1.4375, 2.375]]),
        ([[1.4375, 2.375]],),
    ),
    # decay after the step, at 10: 4 - 0.5 * 14;  -8 - 0.5 * 2
    Case("shrink after", aj.shrink_after(0.5), (4.0, -8.0), (-3.0, -9.0), (2,)),
    Case(
        "shrink after by a schedule",
        aj.shrink_after(0.5, aj.linear_warmup(1.0, 4)),
        (4.0, -8.0),
        (4.0, -8.25),  # a quarter of 0.5 * 2
        (2,),
    ),
    # (10 + 4)/1.25 - 10;  (10 - 8)/1.25 - 10
    Case("proximal decay", aj.proximal_decay(0.25), (4.0, -8.0), (1.2, -8.4), (2,)),
    # k = 0, then 0.25 * 1: (10 - 8)/1.25 - 10
    Case(
        "proximal decay by a schedule",
        aj.proximal_decay(1.0, aj.linear_warmup(1.0, 4)),
        (4.0, -8.0),
        (4.0, -8.4),
        (2,),
    ),
    # curvature: the estimate is g², 16 and 64
    Case("curvature", aj.curvature(aj.square(), 0.75), (4.0, -8.0), (4.0, 4.0), (2, 4.0)),
    Case(
        "curvature every time",
        aj.curvature(aj.square(), 0.75, every=1),
        (4.0, -8.0),
        (4.0, 19.0),
        (2, 19.0),
    ),
    Case(
        "curvature every other time",
        aj.curvature(aj.square(), 0.75, every=2),
        (4.0, 9.0, -8.0, 9.0),
        (4.0, 4.0, 19.0, 19.0),
        (4, 19.0),
    ),
    Case(
        "curvature after",
        aj.curvature(aj.square(), 0.75, every=2, refresh="after"),
        (4.0, 9.0, -8.0, 9.0),
        (0.0, 4.0, 4.0, 19.0),
        (4, 19.0),
    ),
    # f = 1.5 p², whose Hessian is 3: z * 3 * z with z = ±1
    Case(
        "hutchinson",
        aj.hutchinson(distribution="rademacher"),
        ([4.0, 4.0], [-8.0, 1.0]),
        ([3.0, 3.0], [3.0, 3.0]),
        (key_after(2),),
        extra={"obj_fn": lambda p: jnp.sum(1.5 * p**2)},
    ),
    # three rows of logits (p, 0) at p = 0: whatever label is drawn, ĝ = ±0.5/3;  3 ĝ² = 1/12
    Case(
        "gauss newton bartlett",
        aj.gauss_newton_bartlett(),
        ([4.0, 4.0, 4.0], [-8.0, 1.0, 2.0]),
        ([1 / 12] * 3, [1 / 12] * 3),
        (key_after(2),),
        params=0.0,
        extra={"logits_fn": lambda p: jnp.stack([p, 0 * p], axis=-1)},
    ),
    # watching: state is what was measured.  RMS of (6, -8) is √50, of (0, 2) √2
    Case(
        "probe",
        aj.chain(aj.scale(2.0), aj.probe("twice")),
        ([3.0, -4.0], [0.0, 1.0]),
        ([6.0, -8.0], [0.0, 2.0]),
        (2, 2**0.5, 2.0, 0.0),
    ),
    Case(
        "probe every other time",
        aj.probe("u", every=2),
        ([6.0, -8.0], [0.0, 2.0]),
        ([6.0, -8.0], [0.0, 2.0]),
        (2, 50**0.5, 8.0, 0.0),
    ),
    # the last: RMS of gradient, update and parameters √5, √5/2 and 10; the cosine is -1
    Case(
        "observe",
        aj.observe(aj.sgd(0.5)),
        ([6.0, -8.0], [1.0, 3.0]),
        ([-3.0, 4.0], [-0.5, -1.5]),
        (2, 5**0.5, 5**0.5 / 2, 10.0, 5**0.5 / 20, -1.0, 0.0, 0.0, 0.5, 2, 0.5),
    ),
    # a clip to 5: the first gradient is halved, the second is not; no learning rate is known
    Case(
        "observe a clip",
        aj.observe(aj.clip_by_global_norm(5.0)),
        ([6.0, -8.0], [3.0, 4.0]),
        ([3.0, -4.0], [3.0, 4.0]),
        (2, 12.5**0.5, 12.5**0.5, 10.0, 12.5**0.5 / 10, 1.0, 0.0, 0.0, 1.0, 0.5),
    ),
    # the second step did not happen: m = 0.25 * 4, and 0.75 * 1 + 0.25 * -8
    Case(
        "skip nonfinite",
        aj.skip_nonfinite(aj.scale_by_momentum(0.75)),
        (4.0, np.nan, -8.0, np.inf, -np.inf),
        (1.0, 0.0, -1.25, 0.0, 0.0),
        (3, 2, -1.25),
    ),
    Case(
        "skip nonfinite, then give up",
        aj.skip_nonfinite(aj.scale_by_momentum(0.75), max_consecutive=2),
        (4.0, np.nan, np.inf, -8.0),
        (1.0, 0.0, np.nan, -1.25),
        (2, 0, -1.25),
    ),
    # averages over time.  The parameters stay 10 here, whatever the update is.
    # z = 10 - 2, all of the average;  z = 8 + 4, half of it
    Case(
        "schedule free",
        aj.schedule_free(aj.scale(-0.5), 0.5, 0.75),
        (4.0, -8.0),
        (-2.0, 1.5),  # 0.5 (8 - 10) + (1 - 0.75 * 0.5) 4
        (2, 12.0, 0.5, 0.5),
    ),
    # d = 2, never further than the start: -2 (2 * 4), 2 (2 * 8);  s = 4, 0.75 * 4 - 8
    Case(
        "by distance",
        aj.by_distance(aj.scale(-1.0), 0.5, 0.75, d0=2.0),
        (4.0, -8.0),
        (-16.0, 32.0),
        (2, 10.0, -5.0, 0.0, 2.0),
    ),
    Case(
        "distance root", aj.distance_root(0.5), (9.0, 0.25), (4.0, 1.5), extra={"distance": 2.0}
    ),  # √9 + 2 * 0.5
    # matrices
    # g gᵀ = diag(4, 1) and gᵀ g = diag(1, 4), a quarter at first; vectors largest first
    Case(
        "eigenbasis",
        aj.eigenbasis(0.75),
        ([[0.0, 2.0], [1.0, 0.0]],) * 2,
        (
            ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]),
            ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]),
        ),
        (
            2,
            [[1.75, 0.0], [0.0, 0.4375]],
            [[0.4375, 0.0], [0.0, 1.75]],
            [[1.0, 0.0], [0.0, 1.0]],
            [[0.0, 1.0], [1.0, 0.0]],
        ),
    ),
    # one step s -> 1.5 s - 0.5 s³ from (3, 4)/5:  0.9 - 0.108;  1.2 - 0.256;  and from 1
    Case(
        "orthogonalize",
        aj.orthogonalize(aj.Table(((1.5, -0.5, 0.0),), 1.0, 0.0), steps=1),
        ([[3.0, 0.0], [0.0, 4.0]], [[0.0, -5.0], [0.0, 0.0]]),
        ([[0.792, 0.0], [0.0, 0.944]], [[0.0, -1.0], [0.0, 0.0]]),
    ),
    # fan-in 1, fan-out 4
    Case(
        "scale by shape",
        aj.scale_by_shape("keller"),
        ([[4.0, 0.0, 1.0, 2.0]], [[-8.0, 0.0, 0.0, 0.0]]),
        ([[8.0, 0.0, 2.0, 4.0]], [[-16.0, 0.0, 0.0, 0.0]]),
    ),
    Case("keller, 4 to 1", aj.scale_by_shape("keller"), ([[4.0]] * 4,) * 2, ([[4.0]] * 4,) * 2),
    Case("spectral", aj.scale_by_shape("spectral"), ([[4.0]] * 4,) * 2, ([[2.0]] * 4,) * 2),
    # 0.2 √4
    Case("moonshot", aj.scale_by_shape("moonshot"), ([[4.0]] * 4,) * 2, ([[1.6]] * 4,) * 2),
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
    update = functools.partial(case.tx.update, **case.extra)
    update = jax.jit(update) if jitted else update
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
            np.testing.assert_allclose(x, y, rtol=case.rtol, atol=0, strict=True)
    leaves = jax.tree.leaves(states[-1])
    for x, y in zip(leaves, case.state, strict=True):
        np.testing.assert_allclose(x, y, rtol=case.rtol, atol=0)


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
    first = case.tx.update(*arguments, **case.extra)
    assert_equal(first, case.tx.update(*arguments, **case.extra))
    assert_equal(arguments, before)


def test_every_piece_is_here():
    """All public factories of transformations, less the optimizers (they have zoo.py)."""
    declared = {name: getattr(getattr(aj, name), "declared", {}) for name in aj.__all__}
    public = {name for name, what in declared.items() if "leafwise" in what}  # no schedules
    shown = {case.tx.factory.__name__ for case in CASES}
    assert shown == public - set(periodic.factories())


READERS = {
    aj.add_decoupled_weight_decay,
    aj.add_l2_gradient,
    aj.by_distance,
    aj.gauss_newton_bartlett,
    aj.hutchinson,
    aj.proximal_decay,
    aj.scale_by_parameter_rms,
    aj.observe,
    aj.schedule_free,
    aj.shrink,
    aj.shrink_after,
}


@cases
def test_only_some_pieces_need_parameters(case):
    """`update` without parameters is Optax's rule for what does not read them."""
    state = case.tx.init(shaped(case))
    call = lambda *params: case.tx.update(arrays(case.ins[0]), state, *params, **case.extra)
    if case.tx.factory in READERS:
        with pytest.raises(ValueError, match=r"got no parameters.* Call update\(grads, state, par"):
            call()
    else:
        assert_equal(call(), call(shaped(case)))


def test_a_piece_is_a_transformation_of_optax():
    """Inside optax.chain, next to Optax's own."""
    tx = optax.chain(aj.scale_by_momentum(0.75), optax.scale(2.0), aj.clip(2.25))
    state = tx.init(jnp.zeros(()))
    assert isinstance(state, tuple)
    out, state = tx.update(jnp.asarray(4.0), state)
    assert out == 2.0
    out, state = tx.update(jnp.asarray(-8.0), state)
    assert out == -2.25  # 2 * -1.25, clipped


# --- what two steps at fixed parameters do not show ---------------------------


@pytest.mark.usefixtures("x64")
def test_schedule_free_is_three_sequences():
    """x, y, z as the paper writes them, with uneven weights; y is what is trained."""
    rates = aj.ahead(aj.linear_warmup(0.5, 2))  # 0.25, 0.5, 0.5, ...
    tx = aj.schedule_free(aj.scale_by_learning_rate(rates), rates, 0.75, power=1.0)
    gradient = lambda y: y - 1  # of (y - 1)²/2
    y = jnp.asarray(3.0)
    state = tx.init(y)
    z, x, total = 3.0, 3.0, 0.0
    for t, rate in enumerate((0.25, 0.5, 0.5, 0.5), start=1):
        by_hand = 0.25 * z + 0.75 * x
        assert float(y) == pytest.approx(by_hand, rel=1e-14)
        z -= rate * gradient(by_hand)
        weight = t * rate**2
        total += weight
        x += weight / total * (z - x)
        update, state = tx.update(gradient(y), state, y)
        y = y + update
        assert float(state.z) == pytest.approx(z, rel=1e-14)
        assert float(aj.eval_params(tx, state, y)) == pytest.approx(x, rel=1e-14)


@pytest.mark.usefixtures("x64")
def test_by_distance_grows_with_the_way_made():
    """At 7 after a start at 10: r = 4 · 3 (with weight 1), s = 0.75 · 4 + 4, d = 7 r / s = 12."""
    inner = aj.join(aj.add, g=aj.identity(), d=aj.chain(aj.scale(0.0), aj.distance_root(1.0)))
    tx = aj.by_distance(inner, 0.5, 0.75, d0=2.0, growth=7.0)
    first, state = tx.update(4.0, tx.init(10.0), 10.0)
    assert first == 2 * (2 * 4 + 2)  # d (d g + d · 1)
    second, state = tx.update(4.0, state, 7.0)
    assert second == 2 * (2 * 4 + 12)  # the step by the old d; inside, eps by the new
    assert (state.correlation, state.gradient_sum, state.distance) == (12, 7, 12)
    third, state = tx.update(1.0, state, 12.0)  # beyond the start: d stays
    assert third == 12 * (12 * 1 + 12)
    assert state.distance == 12


@pytest.mark.usefixtures("x64")
def test_precondition_in_a_basis():
    """In its own basis this matrix has one entry, whose sign is 1."""
    q, r = np.array([[0.6, -0.8], [0.8, 0.6]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    basis = optax.stateless(lambda g, params: (jnp.asarray(q), jnp.asarray(r)))
    tx = aj.precondition(aj.identity(), aj.chain(aj.square(), aj.root(1.0)), basis=basis)
    g = 3 * np.outer(q[:, 0], r[:, 1])
    out, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(out, 0.75 * np.outer(q[:, 0], r[:, 1]), rtol=1e-14, atol=1e-16)
    only_rows = optax.stateless(lambda g, params: (jnp.asarray(q), None))
    out, _ = aj.swap(tx, "basis", only_rows).update(g, tx.init(g))
    np.testing.assert_allclose(out, 0.75 * np.outer(q[:, 0], r[:, 1]), rtol=1e-14, atol=1e-16)


@pytest.mark.usefixtures("x64")
def test_eigenbasis_turns_into_the_eigenvectors():
    """Decomposed at the first update, kept until the k-th, then turned a step further."""
    rng = np.random.default_rng(0)
    gs = [rng.normal(size=(4, 3)) for _ in range(4)]
    tx = aj.eigenbasis(0.5, every=2)
    state, grams, seen = tx.init(gs[0]), np.zeros((4, 4)), []
    for g in gs:
        (left, right), state = tx.update(g, state)
        grams = 0.5 * grams + 0.5 * g @ g.T
        np.testing.assert_allclose(state.gram[0], grams, rtol=1e-13)
        np.testing.assert_allclose(left.T @ left, np.eye(4), atol=1e-14)
        np.testing.assert_allclose(right.T @ right, np.eye(3), atol=1e-14)
        seen.append(np.asarray(left))
    assert np.array_equal(seen[0], np.eye(4))
    np.testing.assert_allclose(
        seen[1].T @ gs[0] @ gs[0].T @ seen[1],
        np.diag(np.linalg.eigvalsh(gs[0] @ gs[0].T)[::-1]),
        atol=1e-13,
    )
    assert np.array_equal(seen[1], seen[2])  # the second update renews nothing
    assert not np.allclose(seen[2], seen[3])  # the third does: seen at the fourth


def test_eigenbasis_leaves_long_axes_and_vectors_alone():
    tx = aj.eigenbasis(0.5, max_dim=3)
    params = {"m": jnp.ones((2, 4)), "v": jnp.ones(2), "s": jnp.ones(())}
    state = tx.init(params)
    held = [x.shape for x in jax.tree.leaves((state.gram, state.vectors)) if x.size]
    assert held == [(2, 2), (2, 2)]
    for _ in range(2):
        rotations, state = tx.update(params, state)
        assert [q is None for q in rotations["m"]] == [False, True]
        assert rotations["v"] == (None,)
        assert rotations["s"] == ()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [0.95, 0.99, 0.999])
@pytest.mark.parametrize(("threshold", "first"), [(5.0, 6), (4.0, 5)])
def test_rectification_begins_where_the_papers_does(decay, threshold, first):
    tx = aj.rectify(decay, threshold=threshold)
    state, outs = tx.init(0.0), []
    for _ in range(8):
        out, state = tx.update(1.0, state)
        outs.append(float(out))
    assert [out != 1 for out in outs].index(True) + 1 == first
    assert all(out > 1 for out in outs[first - 1 :])  # a smaller step at first


@pytest.mark.parametrize(
    ("path", "shape", "shared"),
    [
        ("tok_embed/embedding", (50, 8), (50, 1)),
        ("wte", (50, 8), (50, 1)),
        ("attn/query/kernel", (8, 2, 4), (1, 2, 1)),
        ("attn/k/kernel", (8, 2, 4), (1, 2, 1)),
        ("attn/value/kernel", (8, 2, 4), (1, 1, 4)),
        ("mlp/kernel", (8, 4), (1, 4)),
        ("head/kernel", (8, 50), (1, 50)),
        ("conv/kernel", (3, 3, 8, 4), (1, 1, 1, 4)),
        ("norm/scale", (8,), (1,)),
        ("mlp/bias", (8,), (8,)),
        ("gain", (), ()),
    ],
)
def test_which_weights_share_a_second_moment(path, shape, shared):
    """Adam-mini's blocks, in JAX's orientation."""
    params = jnp.ones(shape)
    for name in reversed(path.split("/")):
        params = {name: params}
    (leaf,) = jax.tree.leaves(aj.block_second_moment(0.9).init(params))
    assert leaf.shape == shared


@pytest.mark.parametrize("tx", [aj.factored_second_moment(), aj.factored_second_moment(0.8, 0.0)])
@pytest.mark.parametrize("shape", [(2, 3), (3,), (), (0, 3), (3, 0), (2, 0, 3)])
def test_factors_of_nothing_are_finite(tx, shape):
    zero = jnp.zeros(shape)
    out, state = tx.update(zero, tx.init(zero))
    out, state = tx.update(zero, state)
    assert out.shape == shape
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, state)))


def test_schedules_of_a_schedule():
    early = aj.ahead(aj.linear_warmup(1.0, 4), 3)
    assert [early(t).item() for t in range(3)] == [0.75, 1.0, 1.0]
    assert early.peak == 1.0
    capped = aj.capped_inverse_sqrt(0.6)
    assert [capped(t).item() for t in (0, 3)] == pytest.approx([0.6, 0.5], rel=1e-6)
    assert capped.peak == 0.6
