"""THE table: one row an optimizer.  Every test that holds for all of them reads it.

To add an optimizer, add its row (and its reference to references.py).  Where a
property does not hold for it, the row says so in `skips`, with the reason.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import counterparts
import numpy as np
import optax
import pytest
import references
import references_zoo
from support import GRADIENTS, cubic, even_odds, nothing

import adamw_jax as aj

# What a row may opt out of, by naming it in `skips` with a reason.
PROPERTIES = {
    "bitwise": "what is the same in exact arithmetic is the same to the bit",
    "complex": "complex parameters are updated as the reference says",
    "derivative": "derivatives through an update are finite at a zero gradient",
    "explicit": "parameters may lie on a mesh whose axes are explicit",
    "foreign schedule": "the learning rate may be any function of the count",
    "inject": "optax.inject_hyperparams finds the learning rate and may change it",
    "leafwise": "a tree is updated as each of its leaves alone would be",
    "elementwise": "an element is updated as it alone would be: a NaN stays where it is",
    "forgets": "a spike in the gradient has no effect in the end",
    "float16 derivative": "and so they are in float16",
    "shard_map": "each device may update its shard alone",
    "rounding": "updates are the reference's but for a few roundings, in any dtype",
    "tiny": "updates are the reference's for gradients that may be flushed to 0",
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
      golden: settings and printed parameters after each of the gradients of the
        worked example, at learning rate 0.1 unless the settings say otherwise,
        from the specification's table of golden scalars; None where it has none.
      golden_gradients: other gradients than the worked example's.
      like: another row, made of the same kinds of pieces; wrappers, which only see
        a state pass by, are tested with that one alone.
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
    like: str | None = None
    golden_gradients: tuple[float, ...] = GRADIENTS
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 0.1
    shape: tuple[int, ...] = (3, 4)
    tolerance: float = 1e-12
    extra: Callable[[Any], dict[str, Any]] = nothing
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        assert set(self.skips) <= set(PROPERTIES), f"{self.name}: unknown property in skips"

    def tx(self, learning_rate=None, **hyperparameters):
        """The optimizer; at the row's own learning rate if none is given."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        return self.make(rate, **{**self.settings, **hyperparameters})

    def in_float32(self):
        """Every hyperparameter that has a default number, as the nearest float32.

        1 - 0.9999 is off by 2e-4 where 0.9999 is a float32, in any implementation."""
        parameters = inspect.signature(self.make).parameters.values()
        found = {p.name: p.default for p in parameters if isinstance(p.default, float)}
        return {name: float(np.float32(value)) for name, value in found.items()}

    def path(self, theta, grads, learning_rate=None, **hyperparameters):
        """The reference's parameters after each gradient."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        return self.reference(
            theta, grads, learning_rate=rate, **{**self.settings, **hyperparameters}
        )


ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
SOPHIA = ADAM | {"eps": 0.3, "weight_decay": 0.3, "gamma": 0.5, "every": 3}

# Why a NaN does not stay where it is.
MATRIX = "an element is updated by its whole matrix"
MEAN = "it takes a mean over the leaf"
TREE = "it takes sums over the whole tree"

FLUSHED = "the sign of a denormal that was flushed is 0, and not 1"

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
        like="momentum",
        make=aj.heavy_ball,
        reference=references.heavy_ball,
        optax=lambda learning_rate, momentum=0.9: optax.sgd(learning_rate, momentum),
        others={"momentum": 0.7},
        golden=({}, "0.480000000000 0.447000000000 0.392300000000 0.338070000000"),
    ),
    Row(
        name="nesterov",
        like="momentum",
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
        skips={"forgets": "its sum of squares always keeps a spike; so the paper has it"},
    ),
    Row(
        name="rmsprop",
        make=aj.rmsprop,
        reference=references.rmsprop,
        optax=lambda learning_rate, decay=0.9, eps=1e-8: optax.rmsprop(
            learning_rate, decay, eps, eps_in_sqrt=True
        ),
        learning_rate=0.01,  # a first step of 3.16 times that
        others={"decay": 0.7, "eps": 1e-3},
        golden=({}, "0.183772629267 -0.012343338251 -0.245317548894 -0.293850923281"),
    ),
    Row(
        name="adam",
        like="adamw",
        make=aj.adam,
        reference=references.adam,
        optax=optax.adam,
        others=ADAM,
        golden=({}, "0.400000005000 0.301742502413 0.202867953345 0.114530653272"),
    ),
    Row(
        name="adam_l2",
        like="adamw",
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
        optax=counterparts.independent,
        others=ADAM | {"weight_decay": 0.03},
        golden=(  # the worked example as its author decays: lambda alone
            {"weight_decay": 0.01},
            "0.395000005000 0.292792502363 0.190990028271 0.100742827916",
        ),
        skips={
            "foreign schedule": "the independent form needs the peak, which a bare function hides",
        },
    ),
    Row(
        name="signum",
        like="momentum",
        make=aj.signum,
        reference=references_zoo.signum,
        optax=counterparts.decayed(counterparts.sign_of_average),
        learning_rate=0.01,
        others={"b1": 0.7, "weight_decay": 0.3},
        golden=({}, "0.400000000000 0.300000000000 0.200000000000 0.100000000000"),
        skips={
            "tiny": FLUSHED,
        },
    ),
    Row(
        name="lion",
        like="momentum",
        make=aj.lion,
        reference=references_zoo.lion,
        optax=optax.lion,
        learning_rate=0.01,
        others={"b1": 0.7, "b2": 0.8, "weight_decay": 0.3},
        golden=(
            {"weight_decay": 0.01},
            "0.399500000000 0.299100500000 0.198801399500 0.098602598100",
        ),
        skips={
            "tiny": FLUSHED,
        },
    ),
    Row(
        name="sophia_h",
        make=aj.sophia_h,
        settings={"estimator": aj.hutchinson(distribution="rademacher")},  # exact on `cubic`
        extra=cubic,
        reference=references_zoo.sophia_at(lambda theta, t: 1000 * theta),
        optax="Optax corrects the momentum and refreshes after use; see test_dialects.py",
        others=SOPHIA,
        golden=None,  # with a given curvature: see test_dialects.py
        skips={
            "complex": "a complex parameter has no Hessian of its own size",
            "shard_map": "every device would draw the same vector",
        },
    ),
    Row(
        name="sophia_g",
        make=aj.sophia_g,
        extra=even_odds,
        reference=references_zoo.sophia_at(
            lambda theta, t: 900 * theta**2 / theta.size, gamma=0.05
        ),
        optax="Optax has no Gauss-Newton-Bartlett estimator",
        others=SOPHIA,
        golden=None,
        skips={
            "complex": "logits are real",
            "explicit": "its logits ravel parameters, which such a mesh refuses",
            "leafwise": "B counts the labels, and so the rows, of the whole batch",
        },
    ),
    Row(
        name="muon",
        make=aj.muon,
        reference=references_zoo.muon,
        optax="Optax corrects both terms of the look-ahead; see test_dialects.py",
        learning_rate=0.02,
        others={"momentum": 0.7, "weight_decay": 0.3, "nesterov": False},
        golden=None,  # of Newton-Schulz: see test_dialects.py
        skips={
            "complex": "the iteration is for real matrices",
            "elementwise": MATRIX,
            "float16 derivative": "its slope at 0 is 485 / 1e-7 times the rate",
        },
    ),
    Row(
        name="laprop",
        like="adamw",
        make=aj.laprop,
        reference=references_zoo.laprop,
        optax="Optax has none",
        others=ADAM | {"weight_decay": 0.3},
        golden=({}, "0.400000000000 0.307969075245 0.204708434269 0.123329460326"),
        skips={
            "float16 derivative": "its slope at 0 is lr / 1e-15",
        },
    ),
    Row(
        name="amsgrad",
        like="adamw",
        make=aj.amsgrad,
        reference=references_zoo.amsgrad,
        optax="Optax takes the maximum of the corrected v; see test_dialects.py",
        others=ADAM | {"weight_decay": 0.3},
        golden=({}, "0.400000001000 0.325918937761 0.262604584304 0.205259981558"),
        golden_gradients=(1.0, 0.1, 0.1, 0.1),
        skips={"forgets": "its maximum always keeps a spike; so the paper has it"},
    ),
    Row(
        name="nadamw",
        like="adamw",
        make=aj.nadamw,
        reference=references_zoo.nadamw,
        optax=counterparts.decayed(lambda **rest: optax.scale_by_adam(nesterov=True, **rest)),
        others=ADAM | {"weight_decay": 0.3},
        golden=({}, "0.352631586316 0.245968963581 0.130655908984 0.055745383093"),
        skips={
            "bitwise": "XLA fuses its sum of two products in more than one way",
        },
    ),
    Row(
        name="radam",
        like="adamw",
        make=aj.radam,
        reference=references_zoo.radam,
        optax=counterparts.decayed(optax.scale_by_radam),
        others=ADAM | {"weight_decay": 0.3},
        golden=(
            {},
            "0.480000000000 0.462631578947 0.442447077102 0.426677958172 "
            "0.412317625091 0.409980774723 0.407079908875",
        ),
        golden_gradients=(*GRADIENTS, 0.1, 0.2, 0.1),
        skips={
            "rounding": "rho at b2 = 0.999 is a small difference of numbers near 2000",
        },
    ),
    Row(
        name="adabelief",
        make=aj.adabelief,
        reference=references_zoo.adabelief,
        optax=counterparts.decayed(optax.scale_by_belief),
        others=ADAM | {"weight_decay": 0.3, "eps_root": 1e-3},
        golden=({}, "0.388888888889 0.274463921094 0.154008146723 0.045328338194"),
        skips={
            "forgets": "under a constant gradient it divides by its own rounding error",
        },
    ),
    Row(
        name="adan",
        make=aj.adan,
        reference=references_zoo.adan,
        optax="Optax has 1 - b2 where b2 belongs; see test_dialects.py",
        others={"b1": 0.8, "b2": 0.7, "b3": 0.95, "eps": 1e-3, "weight_decay": 0.3},
        golden=({}, "0.400000005000 0.305264584670 0.213168868029 0.156305068363"),
    ),
    Row(
        name="adopt",
        make=aj.adopt,
        reference=references_zoo.adopt,
        optax=counterparts.adopt,
        others=ADAM | {"eps": 0.3, "weight_decay": 0.3},
        golden=({}, "0.500000000000 0.492500000000 0.473857928850 0.454580080445"),
    ),
    Row(
        name="ademamix",
        like="adamw",
        make=aj.ademamix,
        reference=references_zoo.ademamix,
        optax=optax.contrib.ademamix,
        others=ADAM | {"b3": 0.99, "alpha": 2.0, "weight_decay": 0.3},
        golden=({}, "0.399950005002 0.301593506195 0.202572014458 0.114052684282"),
    ),
    Row(
        name="cautious_adamw",
        make=aj.cautious_adamw,
        reference=references_zoo.cautious_adamw,
        optax="Optax has none",
        others=ADAM | {"weight_decay": 0.3},
        golden=None,
        skips={"elementwise": MEAN},
    ),
    Row(
        name="stable_adamw",
        make=aj.stable_adamw,
        reference=references_zoo.stable_adamw,
        optax="Optax has none",
        others=ADAM | {"weight_decay": 0.3},
        golden=({}, "0.400000005000 0.301680190056 0.220942186628 0.132490250301"),
        skips={"elementwise": MEAN},
    ),
    Row(
        name="adafactor",
        make=aj.adafactor,
        reference=references_zoo.adafactor,
        optax="Optax's decay is a float32; compared as such in test_dialects.py",
        learning_rate=0.3,  # above 1 / sqrt(t) from t = 12 on
        others={
            "weight_decay": 0.3,
            "power": 0.5,
            "eps_root": 1e-3,
            "minimum_scale": 30.0,
            "threshold": 0.5,
        },
        golden=None,
        skips={
            "elementwise": MATRIX,
            "derivative": "its slope at 0 is 1 / 1e-15, whose cube float32 cannot hold",
            "forgets": "its decay tends to 1, and forgetting with it to a power of t",
        },
    ),
    Row(
        name="schedule_free_adamw",
        make=aj.schedule_free_adamw,
        reference=references_zoo.schedule_free_adamw,
        optax="Optax has no `power`; compared without it in test_dialects.py",
        others=ADAM | {"weight_decay": 0.3, "power": 1.0},
        golden=({}, "0.400000005000 0.353327691271 0.291613498550 0.257776459070"),
        skips={
            "forgets": "where z went under the spike, it went",
            "rounding": "z - y reads parameters that 16 bits have rounded",
        },
    ),
    Row(
        name="prodigy",
        make=aj.prodigy,
        reference=references_zoo.prodigy,
        optax="Optax always multiplies the rate by Adam's corrections; see test_dialects.py",
        learning_rate=1.0,
        others=ADAM | {"b3": 0.9, "weight_decay": 0.3, "d0": 1e-3, "growth": 0.5},
        golden=(
            {"learning_rate": 1.0, "d0": 0.01},
            "0.468377273398 0.426621916032 0.361872156783 0.110006399809",
        ),
        skips={
            "elementwise": TREE,
            "leafwise": TREE,
            "forgets": "its distance never shrinks",
            "rounding": "it measures theta_0 - theta, in which rounded parameters cancel",
        },
    ),
    Row(
        name="soap",
        make=aj.soap,
        reference=references_zoo.soap,
        optax="Optax has none",
        others={"b1": 0.8, "b2": 0.9, "b3": 0.7, "eps": 1e-3, "weight_decay": 0.3, "every": 3},
        golden=None,
        tolerance=1e-6,
        skips={
            "elementwise": MATRIX,
            "rounding": "eigenvectors magnify it by the gaps between eigenvalues",
            "derivative": "that of eigenvectors is infinite where eigenvalues are equal",
            "tiny": "rounding where the gradient has no rank is divided by itself",
            "shard_map": "its bases belong to whole matrices",
        },
    ),
    Row(
        name="mars",
        like="adamw",
        make=aj.mars,
        reference=references_zoo.mars,
        optax="Optax has none",
        others=ADAM | {"weight_decay": 0.3, "gamma": 0.5},
        golden=({}, "0.400000003390 0.307965060622 0.213098248174 0.138837791052"),
        skips={"elementwise": "its clip is by the norm of the leaf"},
    ),
    Row(
        name="adam_mini",
        make=aj.adam_mini,
        reference=references_zoo.adam_mini,
        optax="Optax has none",
        others=ADAM | {"weight_decay": 0.3},
        golden=None,
        skips={"elementwise": "the weights of a neuron share one v"},
    ),
]


def rows(prop: str | None = None, *, alike: bool = True):
    """Parametrises a test over the table, less the rows that opt out of a property.

    With `alike=False` also less those that are like another."""
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
            if alike or row.like is None
        ],
    )
