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
    "dampened": (
        sgd,
        {"dampening": 0.1},
        aj.swap(aj.heavy_ball(RATE), "direction", aj.scale_by_momentum(0.9, gain=1 - 0.1)),
    ),
    "average": (sgd, {}, aj.momentum(RATE / (1 - 0.9), 0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_goes_on(name, x64):
    reference, settings, tx = CASES[name]
    path = reference(START, GRADS, **settings)
    arrays, saved = path[3]
    params, step = ours(arrays), None if reference is adamw else 4
    state, report = aj.from_torch(saved, tx, params, NAMES, step=step)
    assert not report.reset
    assert aj.read(state)["step"] == 4
    assert aj.read(state)["learning_rate"] == RATE
    for gradient, (expected, _) in zip(GRADS[4:], path[4:], strict=True):
        params, state = stepper(tx)(params, state, ours(gradient))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14),
            params,
            ours(expected),
        )


def test_to_another_optimizer():
    """What is imported is transplanted: momentum for Muon's matrices, both moments for the rest."""
    arrays, saved = adamw(START, GRADS)[-1]
    params = ours(np.float32(x) for x in arrays)
    tx = aj.muon(0.02, others=aj.adamw(RATE, 0.9, 0.99))
    state, report = aj.from_torch(saved, tx, params, NAMES)
    m = ours(np.float32(saved["state"][i]["exp_avg"]) for i in range(4))
    kept = state["adamw"]["direction"]["numerator"][0].momentum["fc"]["bias"]
    assert_equal(kept, m["fc"]["bias"])
    matrix = state["muon"]["direction"]["momentum"].momentum["fc"]["kernel"]
    np.testing.assert_allclose(matrix, 9.5 * m["fc"]["kernel"], rtol=1e-6)
    assert not report.reset


def test_indices_and_keys_by_name():
    """The same by index, by name, and from a state that is keyed by names."""
    arrays, saved = adamw(START, GRADS[:2])[-1]
    params, tx = ours(np.float32(x) for x in arrays), aj.adamw(RATE)
    expected = aj.from_torch(saved, tx, params, NAMES).state
    by_index = {
        "fc/kernel": (0, np.transpose),
        "fc/bias": 1,
        "head/kernel": (2, np.transpose),
        "conv/kernel": (3, to_hwio),
    }
    assert_equal(aj.from_torch(saved, tx, params, by_index).state, expected)
    keyed = {"state": dict(zip(THEIRS, saved["state"].values(), strict=True))}
    keyed["param_groups"] = [group(betas=(0.9, 0.99), amsgrad=False, params=[*THEIRS])]
    del keyed["param_groups"][0]["param_names"]
    assert_equal(aj.from_torch(keyed, tx, params, NAMES).state, expected)


def test_groups_with_other_rates():
    """Their moments are alike, and no rate is the one last applied."""
    arrays, saved = adamw(START, GRADS[:2])[-1]
    params, tx = ours(np.float32(x) for x in arrays), aj.adamw(RATE)
    one = saved["param_groups"][0]
    halves = [
        {**one, "params": [0, 1], "param_names": [*THEIRS][:2]},
        {**one, "params": [2, 3], "param_names": [*THEIRS][2:], "lr": 1.0, "weight_decay": 0.0},
    ]
    state = aj.from_torch({**saved, "param_groups": halves}, tx, params, NAMES).state
    whole = aj.from_torch(saved, tx, params, NAMES).state
    assert_equal(state["direction"], whole["direction"])
    assert aj.read(state)["learning_rate"] == 0


def test_a_parameter_that_begins_anew():
    """A new head, beside imported parameters: in a route of its own, since its count is another."""
    arrays, saved = adamw(START, GRADS[:2])[-1]
    params = ours(np.float32(x) for x in arrays)
    names = NAMES | {"head/kernel": None}
    tx = aj.route([("new", "head", aj.adamw(RATE))], ("old", aj.adamw(RATE)))
    state, report = aj.from_torch(saved, tx, params, names)
    new, old = state["new"]["direction"], state["old"]["direction"]
    assert_equal(new["numerator"], tx.init(params)["new"]["direction"]["numerator"])
    assert old["numerator"][1].count == 2
    assert {m.leaf for m in report.reset if m.leaf} == {"head/kernel"}
    nothing = aj.from_torch(saved, aj.adamw(RATE), params, dict.fromkeys(NAMES), step=5).state
    assert aj.read(nothing)["step"] == 5
    assert nothing["direction"]["numerator"][1].count == 0


def test_every_leaf_may_be_an_array():
    """As `jax.tree.map(numpy.asarray, state_dict)` makes them, names and indices too."""
    arrays, saved = adamw(START, GRADS[:3])[-1]
    params, tx = ours(np.float32(x) for x in arrays), aj.adamw(RATE, 0.9, 0.99, 1e-8, 0.1)
    found = aj.from_torch(jax.tree.map(np.asarray, saved), tx, params, NAMES)
    assert_equal(found.state, aj.from_torch(saved, tx, params, NAMES).state)


def test_a_model_is_no_optimizer():
    params, tx = ours(START), aj.adamw(RATE)
    for given in ({"fc.weight": START[0]}, {}, {"state": {}}, {"state": {}, "param_groups": []}):
        said = r"^from_torch: state_dict has no '(state|param_groups)'\. Pass the state_dict\(\) of"
        with pytest.raises(ValueError, match=said):
            aj.from_torch(given, tx, params, NAMES)


def test_what_is_wrong_is_said():
    arrays, saved = adamw(START, GRADS[:2])[-1]
    params, tx = ours(np.float32(x) for x in arrays), aj.adamw(RATE)
    one = saved["param_groups"][0]

    def refused(said, names=NAMES, params=params, step=None, state=None, **settings):
        given = {"state": state or saved["state"], "param_groups": [{**one, **settings}]}
        with pytest.raises(ValueError, match="^from_torch: " + said) as error:
            aj.from_torch(given, tx, params, names, step=step)
        assert re.search(r"\. [A-Z].*\.$", str(error.value))

    # A square matrix fits either way round: nothing is guessed.
    refused(r"'fc/kernel' has the shape \(3, 3\) in any order", NAMES | {"fc/kernel": 0})
    aj.from_torch(saved, tx, params, NAMES | {"fc/kernel": (0, None)})
    refused(r"'head/kernel' has the shape \(3, 2\), and .* \(2, 3\)", NAMES | {"head/kernel": 2})
    refused("names says nothing of 'head/kernel'", {k: NAMES[k] for k in NAMES if "head" not in k})
    refused("names names no parameter: 'tail'", NAMES | {"tail": 1})
    refused("there is no parameter 7 for 'fc/bias'", NAMES | {"fc/bias": 7})
    refused("there is no parameter 'bias' for 'fc/bias'", NAMES | {"fc/bias": "bias"})
    refused("the numbers of updates differ", step=9)
    behind = saved["state"] | {1: saved["state"][1] | {"step": 1.0}}
    refused(r"the numbers of updates differ: .*'fc/bias': 1", state=behind)
    nadam = saved["state"] | {1: saved["state"][1] | {"mu_product": 0.5}}
    refused("'fc.bias' has 'mu_product'", state=nadam)
    never = {i: saved["state"][i] for i in (0, 2, 3)}
    refused("there is no 'exp_avg.*' for 'fc/bias', which was never updated", state=never)
    refused("maximize is set", maximize=True)
    with pytest.raises(ValueError, match="param_groups are not those of Adam"):
        aj.from_torch({"state": {}, "param_groups": [{"lr": 0.1, "rho": 0.9}]}, tx, params, NAMES)
    groups = [{**one, "params": [0, 1]}, {**one, "params": [2, 3], "betas": (0.5, 0.9)}]
    with pytest.raises(ValueError, match="the groups differ in 'betas'"):
        aj.from_torch({"state": saved["state"], "param_groups": groups}, tx, params, NAMES)
    buffers = sgd(START, GRADS[:2])[-1][1]
    with pytest.raises(ValueError, match=r"says how many updates it has seen \(SGD.*step="):
        aj.from_torch(buffers, tx, params, NAMES)
    for step in (-1, 2.5):
        with pytest.raises(ValueError, match=f"step is {step}"):
            aj.from_torch(buffers, tx, params, NAMES, step=step)
    buffers["param_groups"][0]["dampening"] = 1.0
    with pytest.raises(ValueError, match="dampening is 1"):
        aj.from_torch(buffers, tx, params, NAMES, step=2)
