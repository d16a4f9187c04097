"""Arms: AdamW, and AdamW with one thing changed at a time.

An arm is a function from a learning rate to a transformation.  Those below are
`adamw` with other pieces in one slot (both corrections are two) or, for the L2
penalty, with the decay in another place: one sentence of the algebra each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from adamw_jax import (
    Transformation,
    adam_l2,
    adamw,
    bias_correction,
    chain,
    identity,
    part,
    scale_by_momentum,
    scale_by_rms,
    swap,
)

Build = Callable[[float], Transformation]


BASELINE, CONTROL = "AdamW", "A/A control"


NOTES = {
    BASELINE: "`m̂ / (√v̂ + ε) + λθ`, times `-lr`",
    CONTROL: "AdamW again, with other batches: any difference is noise",
    "no bias correction": "both averages are used as they are, pulled towards 0",
    "no second moment": "the direction is its numerator alone, SGD with momentum. Its lr has "
    "another unit and is much larger; as lr·λ decays the parameters, the same λ does so "
    "much faster",
    "no momentum": "the numerator is the gradient itself",
    "no decay": "Adam",
    "L2 decay": "λθ is added to the gradient; λ has another unit there, and the same number pulls "
    "much harder",
    "LaProp order": "first divide by the root, then average",
}


@dataclass(frozen=True)
class Arm:
    """One contestant.

    Attributes:
      build: from a learning rate to the optimizer.
      note: one sentence for the report.
      order: runs of equal seed and equal order see the same batches.
    """

    build: Build
    note: str = ""
    order: int = 0


def swapped(base: Build, pieces: Mapping[str, Transformation]) -> Build:
    """The optimizers of `base` with other pieces in some slots."""

    def build(learning_rate: float) -> Transformation:
        tx = base(learning_rate)
        for slot, piece in pieces.items():
            tx = swap(tx, slot, piece)
        return tx

    return build


def adamw_arms(
    weight_decay: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weaker: float = 100.0,
) -> dict[str, Arm]:
    """AdamW; one arm per change; AdamW once more as a control.

    Args:
      weight_decay, b1, b2, eps: as in `adamw`, for every arm.
      weaker: by how much to divide λ in two more arms.  Where a swap changes the
        unit of λ, one and the same number would judge the number, not the swap.
    """
    base = partial(adamw, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    mild = partial(base, weight_decay=weight_decay / weaker)
    l2 = partial(adam_l2, b1=b1, b2=b2, eps=eps)
    nothing, milder = identity(), f", λ/{weaker:g}"
    rms = scale_by_rms(b2, eps, correction=bias_correction(b2))
    laprop = chain(rms, scale_by_momentum(b1), bias_correction(b1))
    no_correction = {"direction.numerator.1": nothing, "direction.denominator.correction": nothing}
    no_quotient = {"direction": part(base(1.0), "direction.numerator")}
    builders: dict[str, Build] = {
        BASELINE: base,
        CONTROL: base,
        "no bias correction": swapped(base, no_correction),
        "no second moment": swapped(base, no_quotient),
        f"no second moment{milder}": swapped(mild, no_quotient),
        "no momentum": swapped(base, {"direction.numerator": nothing}),
        "no decay": swapped(base, {"weight_decay": nothing}),
        "L2 decay": partial(l2, weight_decay=weight_decay),
        f"L2 decay{milder}": partial(l2, weight_decay=weight_decay / weaker),
        "LaProp order": swapped(base, {"direction": laprop}),
    }
    return {
        name: Arm(build, NOTES.get(name, "the same with a weaker decay"), int(name == CONTROL))
        for name, build in builders.items()
    }
