"""What is compared with Optax: the same work, the same arrays, the same precision."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax
from benchmarks.measure import Summary, ratio, rounds, stopwatch, summary


class Case(NamedTuple):
    """One row of the table: what it says, the largest value wanted, and how to measure."""

    name: str
    bar: float
    measure: Callable[[], Summary]
    unit: str = ""


# --- trees -------------------------------------------------------------------


def one_leaf():
    """A single matrix of 16 million parameters."""
    return {"kernel": jnp.zeros((4096, 4096))}


def gpt2(width=256, vocabulary=8000):
    """The 148 leaves of GPT-2's twelve blocks, at a third of its width: 12 million parameters."""
    norm = lambda: {"scale": jnp.zeros(width), "bias": jnp.zeros(width)}
    dense = lambda n, m: {"kernel": jnp.zeros((n, m)), "bias": jnp.zeros(m)}
    block = lambda: {
        "norm_1": norm(),
        "qkv": dense(width, 3 * width),
        "out": dense(width, width),
        "norm_2": norm(),
        "up": dense(width, 4 * width),
        "down": dense(4 * width, width),
    }
    blocks = {f"block_{i}": block() for i in range(12)}
    tokens, positions = jnp.zeros((vocabulary, width)), jnp.zeros((1024, width))
    return {"tokens": tokens, "positions": positions, "norm": norm(), **blocks}


def many_leaves(layers, kinds=5):
    """Three small leaves a layer, of a few different shapes."""
    layer = lambda i: {
        "kernel": jnp.zeros((8 + i % kinds, 4)),
        "bias": jnp.zeros(4),
        "scale": jnp.zeros(4),
    }
    return {f"layer_{i}": layer(i) for i in range(layers)}


# --- work --------------------------------------------------------------------


def adamw(library):
    return library.adamw(1e-3)


def clipped_adamw(library):
    return library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3))


def step(tx, params, extra=None):
    """One jitted training step without the model: update, apply, buffers donated."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params, **(extra or {}))
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)
    # Copies, since some optimizers keep the very parameters, which are donated.
    carried = jax.tree.map(jnp.copy, [params, tx.init(params)])

    def run():
        carried[:] = compiled(*carried, grads)
        jax.block_until_ready(carried)

    return run


def trace_and_lower(tx, params):
    """What jit does before XLA compiles, from cold caches."""
    state = tx.init(params)

    def run():
        jax.clear_caches()
        jax.jit(lambda g, s, p: tx.update(g, s, p)).trace(params, state, params).lower()

    return run


def eager(tx, params):
    """An update outside of jit."""
    state = tx.init(params)
    return lambda: jax.block_until_ready(tx.update(params, state, params))


def against_optax(work, optimizer, params, count):
    """The ratio of the same work with our optimizer and with Optax's."""
    params = params()
    set_up = lambda library: lambda: stopwatch(work(optimizer(library), params))
    return ratio(set_up(adamw_jax), set_up(optax), count)


def control(params, count):
    """Optax against itself: what the method calls equal."""
    params = params()
    set_up = lambda: stopwatch(step(adamw(optax), params))
    return ratio(set_up, set_up, count)


def import_seconds(module):
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def extra_import_time(count):
    """Seconds that `import adamw_jax` takes beyond `import optax`."""
    ours, theirs = (lambda: import_seconds("adamw_jax")), (lambda: import_seconds("optax"))
    return summary([a - b for a, b in rounds(ours, theirs, count)])


def worked_example_error():
    """The largest float32 error of four AdamW steps by hand, in units of Optax's.

    Optax decays by lr·λ: its λ is ten times that of the independent form."""
    exact = np.array([0.395000005, 0.292792502363, 0.190990028271, 0.100742827916])

    def error(tx):
        theta = jnp.float32(0.5)
        state, path = tx.init(theta), []
        for g in jnp.array([0.2, 0.15, 0.25, 0.05], jnp.float32):
            updates, state = tx.update(g, state, theta)
            theta = optax.apply_updates(theta, updates)
            path.append(float(theta))
        return np.abs(np.array(path) - exact).max()

    ours = error(adamw_jax.adamw(0.1, weight_decay=0.01, coupling="independent"))
    value = float(ours / error(optax.adamw(0.1, weight_decay=0.1)))
    return Summary(value, value, value)


CASES = (
    Case("step, one leaf of 16M", 1.03, lambda: against_optax(step, adamw, one_leaf, 8)),
    Case("step, GPT-2-shaped, 148 leaves", 1.03, lambda: against_optax(step, adamw, gpt2, 16)),
    Case(
        "step with clipping, one leaf of 16M",
        0.75,
        lambda: against_optax(step, clipped_adamw, one_leaf, 6),
    ),
    Case(
        "step with clipping, GPT-2-shaped",
        0.75,
        lambda: against_optax(step, clipped_adamw, gpt2, 10),
    ),
    Case(
        "trace and lower, 600 leaves",
        0.5,
        lambda: against_optax(trace_and_lower, adamw, lambda: many_leaves(200), 2),
    ),
    Case(
        "update outside of jit, 100 leaves",
        0.15,
        lambda: against_optax(eager, adamw, lambda: many_leaves(34), 10),
    ),
    Case("import, seconds over Optax's", 0.2, lambda: extra_import_time(10), " s"),
    Case("float32 error of the worked example", 0.25, worked_example_error),
    Case("control: Optax's step against itself", np.inf, lambda: control(one_leaf, 8)),
)
