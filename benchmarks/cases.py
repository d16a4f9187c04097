"""What is compared with Optax: the same work, the same arrays, the same precision."""

import gc
import importlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax
from benchmarks.measure import Comparison, cold, in_new_process, steady, stopwatch

jax.config.update("jax_enable_compilation_cache", False)  # no row is answered from the disk


class Bar(NamedTuple):
    """The largest value wanted, and of what: a field of the comparison."""

    most: float
    of: str = "ratio"


class Case(NamedTuple):
    """One row of the table: what it says, how to measure it, its bar, and its unit."""

    what: str
    measure: Callable[[], Comparison]
    bar: Bar | None = None
    unit: str = "s"


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


def leaves(count, shapes=8):
    """Small matrices, of so many different shapes."""
    return {f"kernel_{i}": jnp.zeros((8, 4 + i % shapes)) for i in range(count)}


# --- work --------------------------------------------------------------------


def step(tx, params, extra=None, times=1):
    """Jitted training steps without the model: update, apply, buffers donated."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params, **(extra or {}))
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)
    # Copies, since some optimizers keep the very parameters, which are donated.
    carried = jax.tree.map(jnp.copy, [params, tx.init(params)])

    def run():
        for _ in range(times):
            carried[:] = compiled(*carried, grads)
        jax.block_until_ready(carried)

    return run


def eager(tx, params):
    """An update outside of jit."""
    state = jax.block_until_ready(tx.init(params))
    return lambda: jax.block_until_ready(tx.update(params, state, params))


def lower(tx, params, state):
    """What jit does before XLA compiles, of a function that it has not seen."""
    return jax.jit(lambda g, s, p: tx.update(g, s, p)).trace(params, state, params).lower()


# --- measurements, of `adamw_jax` or of `optax` ------------------------------


def adamw(library):
    return library.adamw(1e-3)


def clipped_adamw(library):
    return library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3))


def accumulated_adamw(library):
    """An update in every fourth call."""
    if library is optax:
        return optax.MultiSteps(optax.adamw(1e-3), 4).gradient_transformation()
    return library.accumulate(library.adamw(1e-3), 4)


def cold_caches():
    """Before the work, to which it gives nothing."""
    jax.clear_caches()
    return ()


def trace_seconds(library, params):
    """Tracing and lowering from cold caches."""
    tx = adamw(library)
    state = tx.init(params)
    return stopwatch(lambda: lower(tx, params, state), cold_caches)


def compile_seconds(library, params):
    """XLA alone, on a program that it has not seen."""
    tx = adamw(library)
    state = tx.init(params)

    def prepare():
        jax.clear_caches()
        return (lower(tx, params, state),)

    return stopwatch(lambda lowered: lowered.compile(), prepare)


def first_eager_seconds(library, count):
    """An update outside of jit in a process that has run none, all that it compiles included."""
    return stopwatch(eager(adamw(importlib.import_module(library)), leaves(count)))()


def resident_megabytes():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def megabytes_kept(library, optimizers):
    """By how much a process grows by so many optimizers, each used once and forgotten."""
    library, params = importlib.import_module(library), leaves(8)

    def trial():
        eager(library.adamw(lambda count: 1e-3), params)()

    for _ in range(3):
        trial()
    before = resident_megabytes()
    for _ in range(optimizers):
        trial()
    return resident_megabytes() - before


def tpu_bytes(library):
    """Bytes through main memory for each parameter of GPT-2 small, compiled for a TPU v5e."""
    params = jax.eval_shape(lambda: gpt2(width=768, vocabulary=50257))
    return adamw_jax.cost(adamw(library), params, topology="v5e:2x2x1").bytes_per_parameter


def import_seconds(library):
    code = f"import time; t = time.perf_counter(); import {library}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def worked_example_error(library):
    """The largest float32 error of four AdamW steps whose values are known."""
    exact = np.array([0.395000005, 0.292792502363, 0.190990028271, 0.100742827916])
    tx, theta = library.adamw(0.1, weight_decay=0.1), jnp.float32(0.5)
    state, path = tx.init(theta), []
    for g in jnp.array([0.2, 0.15, 0.25, 0.05], jnp.float32):
        updates, state = tx.update(g, state, theta)
        theta = optax.apply_updates(theta, updates)
        path.append(float(theta))
    return float(np.abs(np.array(path) - exact).max())


# --- cases -------------------------------------------------------------------


def steadily(measurement, rounds):
    """Both libraries at work that repeats."""
    return lambda: steady(lambda: measurement(adamw_jax), lambda: measurement(optax), rounds)


def afresh(measurement, count):
    """Both libraries at work that starts from nothing."""
    return lambda: cold(lambda: measurement(adamw_jax), lambda: measurement(optax), count)


CASES = {
    "step_one_leaf": Case(
        "jitted step, one leaf of 16M",
        steadily(lambda library: stopwatch(step(adamw(library), one_leaf())), 8),
        Bar(1.02),
    ),
    "step_gpt2": Case(
        "jitted step, GPT-2-shaped, 148 leaves",
        steadily(lambda library: stopwatch(step(adamw(library), gpt2())), 16),
        Bar(1.02),
    ),
    "clip_one_leaf": Case(
        "jitted step with clipping by the global norm, one leaf of 16M",
        steadily(lambda library: stopwatch(step(clipped_adamw(library), one_leaf())), 6),
        Bar(0.6),
    ),
    "clip_gpt2": Case(
        "jitted step with clipping by the global norm, GPT-2-shaped",
        steadily(lambda library: stopwatch(step(clipped_adamw(library), gpt2())), 10),
        Bar(0.6),
    ),
    "accumulate_one_leaf": Case(
        "four jitted calls with one update, against MultiSteps, one leaf of 16M",
        steadily(
            lambda library: stopwatch(step(accumulated_adamw(library), one_leaf(), times=4)), 6
        ),
        Bar(1.02),
    ),
    "accumulate_gpt2": Case(
        "four jitted calls with one update, against MultiSteps, GPT-2-shaped",
        steadily(lambda library: stopwatch(step(accumulated_adamw(library), gpt2(), times=4)), 6),
        Bar(1.02),
    ),
    "trace_8_shapes": Case(
        "trace and lower, 600 leaves of 8 shapes",
        afresh(lambda library: trace_seconds(library, leaves(600)), 8),
        Bar(0.4),
    ),
    "trace_80_shapes": Case(
        "trace and lower, 80 leaves of 80 shapes",
        afresh(lambda library: trace_seconds(library, leaves(80, shapes=80)), 12),
        Bar(1.0),
    ),
    "compile": Case(
        "XLA compiles the update of 100 leaves",
        afresh(lambda library: compile_seconds(library, leaves(100)), 8),
        Bar(1.2),
    ),
    "eager": Case(
        "update outside of jit, 100 leaves",
        steadily(lambda library: stopwatch(eager(adamw(library), leaves(100))), 10),
        Bar(0.3),
    ),
    "first_eager": Case(
        "first update outside of jit, 2,000 leaves of 8 shapes",
        afresh(lambda library: in_new_process(first_eager_seconds, library.__name__, 2000), 3),
        Bar(1.5),
    ),
    "dead_optimizers": Case(
        "memory kept by 20 dead optimizers with lambda schedules",
        afresh(lambda library: in_new_process(megabytes_kept, library.__name__, 20), 3),
        Bar(20, of="ours"),
        "MB",
    ),
    "tpu_bytes": Case(
        "bytes through main memory per parameter, TPU v5e, GPT-2 small, 148 leaves",
        afresh(lambda library: lambda: tpu_bytes(library), 1),
        Bar(28.01, of="ours"),  # 28, and the padding of the biases
        "B",
    ),
    "import": Case(
        "import",
        afresh(lambda library: lambda: import_seconds(library.__name__), 10),
        Bar(0.2, of="difference"),
    ),
    "worked_example": Case(
        "float32 error of the worked example",
        afresh(lambda library: lambda: worked_example_error(library), 1),
        Bar(0.25),
        "",
    ),
    "control": Case(
        "control: Optax's step against itself, one leaf of 16M",
        steadily(lambda library: stopwatch(step(adamw(optax), one_leaf())), 8),
    ),
}
