"""Coming from PyTorch: a training that begins there goes on here as if nothing had happened.

The reference is written out in NumPy from PyTorch's documentation, and keeps its
state in the form of a PyTorch `state_dict`."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_equal, stepper

import adamw_jax as aj

RATE = 0.05
RNG = np.random.default_rng(0)
# In PyTorch's order: weights are [out, in], ours [in, out].
THEIRS = {"fc.weight": (3, 3), "fc.bias": (3,), "head.weight": (2, 3), "conv.weight": (5, 2, 3, 4)}
START = [RNG.normal(size=shape) for shape in THEIRS.values()]
GRADS = [[RNG.normal(size=shape) for shape in THEIRS.values()] for _ in range(8)]

to_hwio = lambda x: np.transpose(x, (2, 3, 1, 0))
NAMES = {
    "fc/kernel": ("fc.weight", np.transpose),
    "fc/bias": "fc.bias",
    "head/kernel": ("head.weight", np.transpose),
    "conv/kernel": ("conv.weight", to_hwio),
}


def ours(arrays):
    """Arrays in PyTorch's order as a tree of ours."""
    weight, bias, head, conv = map(np.asarray, arrays)
    tree = {
        "fc": {"kernel": weight.T, "bias": bias},
        "head": {"kernel": head.T},
        "conv": {"kernel": to_hwio(conv)},
    }
    return jax.tree.map(jnp.asarray, tree)


def group(**settings):
    return {"lr": RATE, "maximize": False, "params": [0, 1, 2, 3], "param_names": [*THEIRS]} | (
        settings
    )


def adamw(params, grads, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, amsgrad=False):
    """AdamW as documented; returns parameters and state_dict after each gradient."""
    params, state, path = [p.copy() for p in params], {}, []
    for t, gradient in enumerate(grads, 1):
        for i, g in enumerate(gradient):
            zero = np.zeros_like(g)
            old = state.get(i, {"exp_avg": zero, "exp_avg_sq": zero})
            params[i] = params[i] - RATE * weight_decay * params[i]
            m = b1 * old["exp_avg"] + (1 - b1) * g
            v = b2 * old["exp_avg_sq"] + (1 - b2) * g * g
            state[i] = {"step": np.float32(t), "exp_avg": m, "exp_avg_sq": v}
            if amsgrad:
                v = np.maximum(old.get("max_exp_avg_sq", zero), v)
                state[i]["max_exp_avg_sq"] = v
            denominator = np.sqrt(v) / np.sqrt(1 - b2**t) + eps
            params[i] = params[i] - RATE / (1 - b1**t) * m / denominator
        groups = [group(betas=(b1, b2), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)]
        path.append((list(params), {"state": copy.deepcopy(state), "param_groups": groups}))
    return path


def sgd(params, grads, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False):
    """SGD as documented: the first buffer is the gradient itself."""
    params, state, path = [p.copy() for p in params], {}, []
    settings = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    for gradient in grads:
        for i, g in enumerate(gradient):
            step = g = g + weight_decay * params[i]
            if momentum:
                old = state.get(i)
                b = momentum * old["momentum_buffer"] + (1 - dampening) * g if old else g
                state[i], step = {"momentum_buffer": b}, g + momentum * b if nesterov else b
            params[i] = params[i] - RATE * step
        groups = [group(weight_decay=weight_decay, **settings)]
        path.append((list(params), {"state": copy.deepcopy(state), "param_groups": groups}))
    return path


CASES = {
    "adamw": (adamw, {}, aj.adamw(RATE, 0.9, 0.99, weight_decay=0.1)),
    "adam": (adamw, {"weight_decay": 0.0}, aj.adam(RATE, 0.9, 0.99)),
    "amsgrad": (adamw, {"amsgrad": True}, aj.amsgrad(RATE, 0.9, 0.99, weight_decay=0.1)),
    "clipped": (
        adamw,
        {},
        aj.chain(aj.clip_by_global_norm(1e9), aj.adamw(RATE, 0.9, 0.99, weight_decay=0.1)),
    ),
    "sgd": (sgd, {"momentum": 0.0}, aj.sgd(RATE)),
    "heavy_ball": (sgd, {}, aj.heavy_ball(RATE, 0.9)),
    "l2": (
        sgd,
        {"weight_decay": 0.2},
        aj.chain(aj.add_l2_gradient(0.2), aj.heavy_ball(RATE, 0.9)),
    ),
    "nesterov": (sgd, {"nesterov": True}, aj.nesterov(RATE, 0.9)),
    # With lr (1 - decay) outside it is the averaging form of momentum, once begun.
    "dampened": (sgd, {"dampening": 0.1}, aj.chain(aj.scale(0.9), aj.heavy_ball(RATE, 0.9))),
    "average": (sgd, {}, aj.momentum(RATE / (1 - 0.9), 0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_goes_on(name, x64):
    reference, settings, tx = CASES[name]
    path = reference(START, GRADS, **settings)
    arrays, saved = path[3]
    params, step = ours(arrays), None if reference is adamw else 4
    if name == "dampened":
        # Behind a scale our buffer is of something else; the gain says the same.
        buffer = aj.scale_by_momentum(0.9, gain=1 - 0.1)
        tx = aj.chain(direction=buffer, learning_rate=aj.scale_by_learning_rate(RATE))
    state, report = aj.from_torch(saved, tx, params, NAMES, step=step)
    assert not report.reset
    assert aj.read(state)["step"] == 4
    np.testing.assert_allclose(aj.read(state)["learning_rate"], RATE if "avg" in name else _rate(tx))
    for gradient, (expected, _) in zip(GRADS[4:], path[4:], strict=True):
        params, state = stepper(tx)(params, state, ours(gradient))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14),
            params,
            ours(expected),
        )
