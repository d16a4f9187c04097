"""THE table: one row an optimizer.  Every test that holds for all of them reads it.

To add an optimizer, add its row (and its reference to references.py).  Where a
property does not hold for it, the row says so in `skips`, with the reason.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax
import pytest
import references

import adamw_jax as aj

# What a row may opt out of, by naming it in `skips` with a reason.
PROPERTIES = {
    "complex": "complex parameters are updated as the reference says",
    "derivative": "derivatives through an update are finite at a zero gradient",
    "foreign schedule": "the learning rate may be any function of the count",
    "inject": "optax.inject_hyperparams finds the learning rate and may change it",
    "leafwise": "a tree is updated as each of its leaves alone would be",
    "elementwise": "an element is updated as it alone would be: a NaN stays where it is",
    "forgets": "a spike in the gradient has no effect in the end",
    "vmap": "a batch of problems is updated as each alone would be",
    "zero": "zero parameters and zero gradients give a zero update",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One optimizer.

    Attributes:
      name: id in the test report.
      make: the factory, called as `make(learning_rate, **settings)`.
      reference: NumPy reference, called with the same keywords; its defaults are
        written from the paper, so a default that drifts fails.
      optax: `counterpart(learning_rate, **hyperparameters)` with Optax's own
        implementation, or a sentence why there is none.
      others: another value of every hyperparameter, none of them a default.
      golden: settings and printed parameters after each of the four gradients of
        the worked example, at learning rate 0.1, from the specification's
        table of golden scalars; None where it has none.
      settings: arguments that make this row what it is, always given.
      learning_rate: the size of step at which the tests run.
      shape: shape of the parameter in the tests against the reference.
      tolerance: of the comparison with the reference in float64.
      extra: parameters -> extra arguments of `update`.
      skips: property -> why it does not hold here; keys from PROPERTIES.
    """

    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    reference: Callable[..., list]
    optax: Callable[..., optax.GradientTransformation] | str
    others: Mapping[str, float]
    golden: tuple[dict[str, float], str] | None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 0.1
    shape: tuple[int, ...] = (3, 4)
    tolerance: float = 1e-12
    extra: Callable[[Any], dict[str, Any]] = lambda params: {}
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        assert set(self.skips) <= set(PROPERTIES), f"{self.name}: unknown property in skips"

    def tx(self, learning_rate=None, **hyperparameters):
        """The optimizer; at the row's own learning rate if none is given."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        return self.make(rate, **{**self.settings, **hyperparameters})

    def path(self, theta, grads, learning_rate=None, **hyperparameters):
        """The reference's parameters after each gradient."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        return self.reference(
            theta, grads, learning_rate=rate, **{**self.settings, **hyperparameters}
        )


def optax_independent(learning_rate, weight_decay=1e-4, **rest):
    """Optax only has the coupled form; its lambda is ours over the peak rate."""
    peak = getattr(learning_rate, "peak", learning_rate)
    return optax.adamw(learning_rate, weight_decay=weight_decay / peak, **rest)


ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}

ROWS = [
    Row(
        name="sgd",
        make=aj.sgd,
        reference=references.sgd,
        optax=optax.sgd,
        others={},
        golden=({}, "0.480000000000 0.465000000000 0.440000000000 0.435000000000"),
    ),
    Row(
        name="momentum",
        make=aj.momentum,
        reference=references.momentum,
        optax=lambda learning_rate, decay=0.9: optax.chain(
            optax.ema(decay, debias=False), optax.scale_by_learning_rate(learning_rate)
        ),
        others={"decay": 0.7},
        golden=({}, "0.498000000000 0.494700000000 0.489230000000 0.483807000000"),
    ),
    Row(
        name="heavy_ball",
        make=aj.heavy_ball,
        reference=references.heavy_ball,
        optax=lambda learning_rate, momentum=0.9: optax.sgd(learning_rate, momentum),
        others={"momentum": 0.7},
        golden=({}, "0.480000000000 0.447000000000 0.392300000000 0.338070000000"),
    ),
    Row(
        name="nesterov",
        make=aj.nesterov,
        reference=references.nesterov,
        optax=lambda learning_rate, momentum=0.9: optax.sgd(learning_rate, momentum, nesterov=True),
        others={"momentum": 0.7},
        golden=({}, "0.462000000000 0.417300000000 0.343070000000 0.289263000000"),
    ),
    Row(
        name="adagrad",
        make=aj.adagrad,
        reference=references.adagrad,
        optax=lambda learning_rate, eps=1e-8, initial_accumulator=0.0: optax.adagrad(
            learning_rate, initial_accumulator, eps
        ),
        others={"eps": 1e-3, "initial_accumulator": 0.1},
        golden=({}, "0.400000012500 0.340000017300 0.269289342010 0.255286541719"),
        skips={"forgets": "its sum of squares keeps a spike for ever; so the paper has it"},
    ),
    Row(
        name="rmsprop",
        make=aj.rmsprop,
        reference=references.rmsprop,
        optax=lambda learning_rate, decay=0.9, eps=1e-8: optax.rmsprop(
            learning_rate, decay, eps, eps_in_sqrt=True
        ),
        others={"decay": 0.7, "eps": 1e-3},
        golden=({}, "0.183772629267 -0.012343338251 -0.245317548894 -0.293850923281"),
    ),
    Row(
        name="adam",
        make=aj.adam,
        reference=references.adam,
        optax=optax.adam,
        others=ADAM,
        golden=({}, "0.400000005000 0.301742502413 0.202867953345 0.114530653272"),
    ),
    Row(
        name="adam_l2",
        make=aj.adam_l2,
        reference=references.adam_l2,
        optax=lambda learning_rate, weight_decay=1e-2, **rest: optax.chain(
            optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, **rest)
        ),
        others=ADAM | {"weight_decay": 0.3},
        golden=(
            {"weight_decay": 0.01},
            "0.400000004878 0.301727472343 0.202789882288 0.114265366367",
        ),
    ),
    Row(
        name="adamw",
        make=aj.adamw,
        reference=references.adamw,
        optax=lambda learning_rate, **rest: optax.adamw(learning_rate, **rest),
        others=ADAM | {"weight_decay": 0.3},
        golden=(  # the worked example with lambda times the learning rate
            {"weight_decay": 0.01},
            "0.399500005000 0.300843002408 0.201667610337 0.113128642655",
        ),
    ),
    Row(
        name="adamw_independent",
        make=aj.adamw,
        settings={"coupling": "independent"},
        reference=references.adamw,
        optax=optax_independent,
        others=ADAM | {"weight_decay": 0.03},
        golden=(  # the worked example as its author decays: lambda alone
            {"weight_decay": 0.01},
            "0.395000005000 0.292792502363 0.190990028271 0.100742827916",
        ),
        skips={
            "foreign schedule": "the independent form needs the peak, which a bare function hides",
        },
    ),
]


def rows(prop: str | None = None):
    """Parametrises a test over the table, less the rows that opt out of a property."""
    assert prop is None or prop in PROPERTIES
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(
                row,
                id=row.name,
                marks=[pytest.mark.skip(reason=row.skips[prop])] if prop in row.skips else [],
            )
            for row in ROWS
        ],
    )
