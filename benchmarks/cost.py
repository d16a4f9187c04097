"""`python -m benchmarks.cost`: what every optimizer's step costs on TPUs, into docs/cost.md.

Nothing is run: each step is compiled for the chips, and the program is read by
`adamw_jax.cost`.  One matrix of 16 million float32 parameters; a smaller one for
SOAP, whose eigendecomposition takes the compiler more than ten minutes at 1024.
"""

import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import adamw_jax as aj
from adamw_jax.inspect.periodic import factories

PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
CHIPS = ("v5e", "v5p")
WIDTHS = {"soap": 256}
EXTRA = {  # the smallest losses there are: the row is about the optimizer
    "sophia_h": {"obj_fn": lambda params: jnp.sum(jnp.square(params["kernel"])) / 2},
    "sophia_g": {"logits_fn": lambda params: params["kernel"][:8]},
}
AROUND = {  # what one puts around AdamW
    "clip_by_global_norm, adamw": aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(1e-3)),
    "skip_nonfinite, adamw": aj.skip_nonfinite(aj.adamw(1e-3)),
    "probe, adamw": aj.chain(aj.probe("gradient", every=10), aj.adamw(1e-3)),
    "observe, adamw": aj.observe(aj.adamw(1e-3), every=10),
}

TEXT = """# What a step costs on a TPU

Written by `make cost`, which compiles the donated update of every optimizer for chips
that are not there and reads the programs; `adamw_jax.cost` does the same for yours. Bytes
are those moved to and from the chip's main memory for each float32 parameter. The *floor*
reads every argument and writes every result once.

* Element-wise optimizers are at their floor, in one kernel and without temporaries; a test
  holds them to it.
* Those that first need a norm, a mean or a sum of what they then use read it twice, or
  once where it fits on the chip.
* Muon and SOAP multiply matrices; where these do not fit on the chip each product goes
  through main memory.
* Sophia is below the floor on most steps, on which its curvature stays and is not written.
  In brackets: a step that refreshes it, for the smallest of losses; SOAP's that turns its
  bases; and every tenth, on which `probe` and `observe` measure.
* Milliseconds are for 10⁹ parameters on one chip at its full bandwidth, which is what
  bounds an element-wise step ({rates}); matrix products take longer.
* SOAP's is a matrix of {soap} x {soap}, the others' one of 4096 x 4096.
* The last column: whether `jax.export` lowers the update for both platforms.

| optimizer | floor | v5e | v5p | over floor | temporaries | kernels | ms, v5e | ms, v5p | tpu, cuda |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: | :-- |
{rows}

jax {jax}, libtpu {libtpu}.
"""  # noqa: E501  a table's row is a line


def optimizers() -> dict[str, aj.Transformation]:
    """Every optimizer of the package at some learning rate, and AdamW with more around it."""
    return {name: factory(1e-3) for name, factory in factories().items()} | AROUND


def exports(tx, params, extra) -> str:
    """Whether the update lowers for TPUs and NVIDIA's GPUs."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    jax.export.export(jax.jit(update), platforms=["tpu", "cuda"])(params, state, params)
    return "yes"


def moved(cost: aj.Cost) -> str:
    """Bytes a parameter on most steps, and on the dearest if that is another."""
    least = cost.least / cost.parameters
    dearest = f" ({cost.bytes_per_parameter:.1f})" if cost.bytes > cost.least else ""
    return f"{least:.1f}{dearest}"


def row(name: str, tx: aj.Transformation) -> str:
    width, extra = WIDTHS.get(name, 4096), EXTRA.get(name, {})
    params = {"kernel": jax.ShapeDtypeStruct((width, width), jnp.float32)}
    costs = [aj.cost(tx, params, topology=f"{chip}:2x2x1", extra=extra) for chip in CHIPS]
    each = lambda total, cost: total / cost.parameters
    cells = [
        name if name in AROUND else f"`{name}`",
        f"{each(costs[0].floor, costs[0]):.1f}",
        *map(moved, costs),
        f"{max(cost.least / cost.floor for cost in costs):.2f}",
        f"{max(each(cost.temporaries, cost) for cost in costs):.1f}",
        f"{max(cost.kernels for cost in costs)}",
        *(f"{each(cost.least, cost) * 1e12 / cost.bandwidth:.1f}" for cost in costs),
        exports(tx, params, extra),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    rows = []
    for name, tx in optimizers().items():
        rows.append(row(name, tx))
        print(rows[-1], flush=True)
    known = {chip: aj.cost(aj.sgd(1.0), {"w": jnp.zeros(8)}, topology=f"{chip}:2x2x1")
             for chip in CHIPS}  # fmt: skip
    rates = ", ".join(f"{chip} {cost.bandwidth / 1e9:,.0f} GB/s" for chip, cost in known.items())
    libtpu = importlib.metadata.version("libtpu")
    values = {"rows": "\n".join(rows), "rates": rates, "soap": WIDTHS["soap"]}
    text = TEXT.format(**values, jax=jax.__version__, libtpu=libtpu)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
