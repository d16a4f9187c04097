"""`python -m benchmarks.zoo`: every optimizer's jitted step against Optax's of the same name.

Both update the GPT-2-shaped tree of `benchmarks.cases`, Muon the matrices of
twelve transformer blocks.  The last column needs no clock: bytes that the
compiled program says it moves, ours over Optax's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import adamw_jax as aj
from adamw_jax.inspect.periodic import state_bytes
from benchmarks.cases import gpt2, step
from benchmarks.measure import steady, stopwatch, where

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks_zoo.md"
LR = 1e-3
TEXT = """# Every optimizer's step against Optax's

Written by `make bench`. A jitted step with donated buffers, the model left out, on a tree
shaped like GPT-2 of 12 million parameters (Muon: the matrices of twelve blocks), in units
of the same step with Optax's optimizer of that name. *bar* is the most that is wanted,
and some medians are above it: the control of [the main table](benchmarks.md), Optax's step
against itself, shows how far equal work spreads. The last column needs no clock: bytes
that the compiled programs say they move.

"""


class Pair(NamedTuple):
    """An optimizer of ours and Optax's version of it, with the largest ratio wanted."""

    ours: optax.GradientTransformation
    theirs: optax.GradientTransformation | None
    bar: float = 1.03
    extra: dict[str, Any] = {}  # noqa: RUF012  a constant
    params: Callable[[], Any] = gpt2


def transformer(width: int = 256, blocks: int = 12):
    """The matrices of twelve transformer blocks, named as Flax names them."""
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape) / width**0.5
    block = lambda i: {
        "query": {"kernel": draw(i, width, width)},
        "key": {"kernel": draw(i + 1, width, width)},
        "value": {"kernel": draw(i + 2, width, width)},
        "out": {"kernel": draw(i + 3, width, width)},
        "up": {"kernel": draw(i + 4, width, 4 * width)},
        "down": {"kernel": draw(i + 5, 4 * width, width)},
        "norm": {"scale": jnp.ones(width)},
    }
    return {f"block_{i}": block(10 * i) for i in range(blocks)}


def quadratic(params):
    return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params)) / 2


LOSS = {"obj_fn": quadratic}

PAIRS = {
    "sgd": Pair(aj.sgd(LR), optax.sgd(LR)),
    "heavy_ball": Pair(aj.heavy_ball(LR), optax.sgd(LR, 0.9)),
    "nesterov": Pair(aj.nesterov(LR), optax.sgd(LR, 0.9, nesterov=True)),
    "adagrad": Pair(aj.adagrad(LR), optax.adagrad(LR)),
    "rmsprop": Pair(aj.rmsprop(LR), optax.rmsprop(LR)),
    "adam": Pair(aj.adam(LR), optax.adam(LR)),
    "adamw": Pair(aj.adamw(LR), optax.adamw(LR)),
    "lion": Pair(aj.lion(LR), optax.lion(LR)),
    "signum": Pair(aj.signum(LR), optax.signum(LR)),
    "sophia_h": Pair(aj.sophia_h(LR), contrib.sophia(LR), extra=LOSS),
    "muon": Pair(aj.muon(LR), contrib.muon(LR), bar=0.6, params=transformer),
    "amsgrad": Pair(aj.amsgrad(LR), optax.amsgrad(LR)),
    "nadamw": Pair(aj.nadamw(LR), optax.nadamw(LR)),
    "radam": Pair(aj.radam(LR), optax.radam(LR)),
    "adabelief": Pair(aj.adabelief(LR), optax.adabelief(LR)),
    "adan": Pair(aj.adan(LR), optax.adan(LR)),
    "ademamix": Pair(aj.ademamix(LR), contrib.ademamix(LR)),
    "adopt": Pair(aj.adopt(LR), contrib.adopt(LR)),
    "adafactor": Pair(aj.adafactor(LR), optax.adafactor(LR)),
    "schedule_free_adamw": Pair(aj.schedule_free_adamw(LR), contrib.schedule_free_adamw(LR)),
    "prodigy": Pair(aj.prodigy(1.0), contrib.prodigy(1.0)),
}


def bytes_moved(tx, params, extra) -> float:
    """What XLA counts for one donated step."""
    state = jax.eval_shape(tx.init, params)

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled.cost_analysis()["bytes accessed"]


def row(name: str, pair: Pair, rounds: int) -> str:
    params = pair.params()
    wide = lambda tx: optax.with_extra_args_support(tx)
    work = lambda tx: lambda: stopwatch(step(wide(tx), params, pair.extra))
    measured = steady(work(pair.ours), work(pair.theirs), rounds, setups=4)
    moved = [bytes_moved(wide(tx), params, pair.extra) for tx in (pair.ours, pair.theirs)]
    return (
        f"| {name} | {state_bytes(pair.ours):.1f} | ≤ {pair.bar:g} | {measured.ratio:.3f} "
        f"| {measured.low:.2f} to {measured.high:.2f} | {moved[0] / moved[1]:.2f} |"
    )


def main(rounds: int = 3) -> None:
    lines = [
        "| optimizer | state, B/param | bar | step / Optax's | quartiles | bytes / Optax's |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    print(*lines, sep="\n")
    for name, pair in PAIRS.items():
        lines.append(row(name, pair, rounds))
        print(lines[-1], flush=True)
    PAGE.write_text(TEXT + "\n".join([*lines, "", where()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
