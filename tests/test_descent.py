"""Every optimizer minimises: at its defaults, at the rate of its row, where it is evaluated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from sklearn.datasets import load_digits

import adamw_jax as aj


def trained(row, loss, params, steps, **extra):
    """The loss at the parameters to evaluate, after training at a constant rate."""
    tx = row.tx()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        end, _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return loss(aj.eval_params(tx, end[1], end[0]))

    return run(params)


@zoo.rows()
def test_a_quadratic_of_condition_number_1000(row):
    """From 1 to less than 0.05; without momentum, at the rate 0.1, to 0.03."""
    if row.make is aj.sophia_g:
        pytest.skip("a quadratic has no labels to draw")
    curvature = jnp.asarray(np.geomspace(1, 1e-3, 24).reshape(6, 4), jnp.float32)
    loss = lambda p: jnp.sum(curvature * p["w"] ** 2) / jnp.sum(curvature)
    start = {"w": jnp.ones((6, 4))}
    assert loss(start) == 1
    assert trained(row, loss, start, 300, obj_fn=loss) < 0.05


@functools.cache
def digits():
    """1000 digits, and a net with one hidden layer of 32 to tell them apart."""
    data, rng = load_digits(), np.random.default_rng(0)
    images = jnp.asarray(data.data[:1000] / 16, jnp.float32)

    def dense(fan_in, fan_out):
        kernel = rng.normal(size=(fan_in, fan_out)) / fan_in**0.5
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(fan_out)}

    def logits(params):
        hidden, head = params["hidden"], params["head"]
        x = jax.nn.relu(images @ hidden["kernel"] + hidden["bias"])
        return x @ head["kernel"] + head["bias"]

    def loss(params):
        rows = jax.nn.log_softmax(logits(params))
        return -jnp.mean(rows[jnp.arange(len(rows)), jnp.asarray(data.target[:1000])])

    return logits, loss, {"hidden": dense(64, 32), "head": dense(32, 10)}


@zoo.rows()
def test_handwritten_digits(row):
    """To less than a third of the loss of guessing, which is ln 10."""
    logits, loss, start = digits()
    assert loss(start) > 2
    end = trained(row, loss, start, 200, obj_fn=loss, logits_fn=logits)
    assert end < np.log(10) / 3
