"""`python -m benchmarks.telemetry`: what watching an optimizer costs, against the same without.

Blocks of ten steps, one of which is measured at every tenth step.  A bare step
is the update and nothing else; a training step has a model around it: an MLP
of as many parameters, on a batch of 512 rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adamw_jax as aj
from benchmarks.cases import gpt2, step
from benchmarks.measure import Comparison, steady, stopwatch, where
from benchmarks.zoo import transformer

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks_telemetry.md"


class Case(NamedTuple):
    """One row: what it says, the two optimizers, the work, and the largest ratio wanted."""

    name: str
    watched: optax.GradientTransformation
    plain: optax.GradientTransformation
    work: Callable[[optax.GradientTransformation], Callable[[], None]]
    bar: float | None = None


STEPS = 10


def mlp(width: int = 1408, layers: int = 6):
    """Twelve million parameters in square layers."""
    draw = lambda i: jax.random.normal(jax.random.key(i), (width, width)) / width**0.5
    return [draw(i) for i in range(layers)]


def training_step(tx, batch: int = 512):
    """One jitted step of training: forward, backward, update; buffers donated."""
    params = mlp()
    x = jax.random.normal(jax.random.key(99), (batch, params[0].shape[0]))

    def loss(params):
        hidden = x
        for w in params:
            hidden = jax.nn.relu(hidden @ w)
        return jnp.mean(jnp.square(hidden - x))

    def train(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(train, donate_argnums=(0, 1))
    carried: list[Any] = jax.tree.map(jnp.copy, [params, tx.init(params)])

    def run():
        carried[:] = compiled(*carried)
        jax.block_until_ready(carried)

    return run


def bare(params):
    return lambda tx: step(tx, params())


ADAMW, MUON = aj.adamw(1e-3), aj.muon(1e-3)
CLIPPED = aj.chain(aj.clip_by_global_norm(1.0), ADAMW)

CASES = (
    Case(
        "training, clipped AdamW, every 10",
        aj.observe(CLIPPED, every=10),
        CLIPPED,
        training_step,
        1.05,
    ),
    Case("training, AdamW, every 10", aj.observe(ADAMW, every=10), ADAMW, training_step, 1.05),
    Case("bare step, Muon, every 10", aj.observe(MUON, every=10), MUON, bare(transformer), 1.05),
    Case("bare step, AdamW, every 10", aj.observe(ADAMW, every=10), ADAMW, bare(gpt2), 1.05),
    Case(
        "bare step, AdamW, probe of the gradient, every 10",
        aj.chain(aj.probe("gradient", every=10), ADAMW),
        ADAMW,
        bare(gpt2),
        1.05,
    ),
    Case("bare step, AdamW, skip_nonfinite", aj.skip_nonfinite(ADAMW), ADAMW, bare(gpt2)),
    Case("control: AdamW against itself", ADAMW, ADAMW, bare(gpt2)),
)


def measure(case: Case, rounds: int) -> Comparison:
    def block(tx):
        run = case.work(tx)

        def many():
            for _ in range(STEPS):
                run()

        return stopwatch(many)

    return steady(lambda: block(case.watched), lambda: block(case.plain), rounds, setups=10)


def main(rounds: int = 2) -> None:
    lines = ["| watched / plain | bar | measured | quartiles |", "| :-- | --: | --: | --: |"]
    print(*lines, sep="\n")
    for case in CASES:
        measured = measure(case, rounds)
        bar = f"≤ {case.bar:g}" if case.bar else ""
        spread = f"{measured.low:.2f} to {measured.high:.2f}"
        lines.append(f"| {case.name} | {bar} | {measured.ratio:.3f} | {spread} |")
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join([*lines, "", where()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
