"""The periodic table: made from the code, complete, and printed without a fuss."""

import importlib
import runpy
from pathlib import Path

import optax
import pytest

import adamw_jax as aj
from adamw_jax import optimizers
from adamw_jax.core.flow import each as each_
from adamw_jax.core.flow import slots
from adamw_jax.core.transformation import combinator
from adamw_jax.inspect import periodic

ROOT = Path(__file__).parent.parent
ROWS = {row.optimizer: row for row in periodic.table()}
each = pytest.mark.parametrize("name", ROWS)


def test_every_public_optimizer_has_a_row():
    """An optimizer is what takes a learning rate first; `scale_by_learning_rate` is a piece."""
    pieces = {"scale_by_learning_rate"}
    signatures = {name: getattr(getattr(aj, name), "signature", None) for name in aj.__all__}
    first = {name: next(iter(s.parameters), "") for name, s in signatures.items() if s}
    public = {name for name, argument in first.items() if argument == "learning_rate"} - pieces
    assert set(ROWS) == set(periodic.factories()) == public
    assert list(ROWS) == sorted(ROWS)
    for name, factory in periodic.factories().items():
        assert factory is getattr(aj, name)
        assert importlib.import_module(factory.__module__).__package__ == optimizers.__name__


# Accumulators of float32, counted by hand from the papers.
BYTES = {
    "sgd": 0,
    "lion": 4,
    "signum": 4,
    "momentum": 4,
    "muon": 4,
    "adagrad": 4,
    "adamw": 8,
    "sophia_h": 8,
    "sophia_g": 8,
    "radam": 8,
    "schedule_free_adamw": 8,
    "amsgrad": 12,
    "ademamix": 12,
    "mars": 12,
    "adan": 16,
    "prodigy": 16,
    "soap": 24,  # m, v, and on a square matrix two Gram matrices and two bases
    "adafactor": 0,  # a row and a column
    "adam_mini": 4,  # m, and a number a neuron
}


@pytest.mark.parametrize(("name", "expected"), BYTES.items())
def test_bytes(name, expected):
    assert ROWS[name].bytes == pytest.approx(expected, abs=0.01)


def test_bytes_of_a_vector():
    assert periodic.state_bytes(aj.adafactor(1.0), (4096,)) == pytest.approx(4, abs=0.01)


WRAPPERS = {aj.curvature, aj.schedule_free, aj.by_distance}  # parts that hold parts


def pieces(tx):
    """Every piece of an expression that does something, without the combinators."""
    while tx.composite:
        tx = tx.body
    inner = [piece for part in slots(tx).values() for piece in pieces(part)]
    return [*inner, tx] if tx.factory in WRAPPERS or not slots(tx) else inner


HIDDEN = {"identity", "scale_by_learning_rate", "pick", "hutchinson", "gauss_newton_bartlett"}


@each
def test_no_piece_is_left_out(name):
    """Every piece with an effect of its own is named in the row."""
    tx = periodic.factories()[name](1.0)
    tx = aj.part(tx, "muon") if name == "muon" else tx
    text = " ".join(periodic.cells(ROWS[name])).lower()
    for piece in pieces(tx):
        if piece.factory.__name__ not in HIDDEN:
            assert periodic.sketch(piece).lower() in text


def test_rows():
    """Three rows, read aloud."""
    assert periodic.cells(ROWS["adamw"]) == [
        "adamw",
        "",
        "momentum → corrected",
        "second moment → corrected → root",
        "",
        "",
        "decoupled",
        "8.0",
    ]
    lion = ROWS["lion"]
    assert (lion.numerator, lion.denominator, lion.after) == ("momentum + g", "", "sign")
    assert ROWS["soap"].basis == "eigenbasis"
    assert ROWS["adam_l2"].decay == "L2"
    assert ROWS["cautious_adamw"].after == "cautious"
    stable = ROWS["stable_adamw"]
    assert stable.before.startswith("fork(g, ")
    assert stable.after == "update rms"


def test_the_page_is_up_to_date():
    """`python docs/tables.py` (or `make readme`) writes it."""
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    page = ROOT / "docs" / "optimizers.md"
    assert tables["block"](page, "optimizers") == periodic.markdown().strip()


@combinator
def then(first, second):
    return lambda run, u: run("second", run("first", u))


@combinator
def mean(first, second):
    middle = lambda a, b: (a + b) / 2
    return lambda run, u: each_(middle, run("first", u), run("second", u))


@combinator
def ratio(top, bottom):
    return lambda run, u: each_(lambda a, b: a / b, run("top", u), run("bottom", u))


def geometric(a, b):
    return abs(a * b) ** 0.5


G, M = aj.identity(), aj.average(0.9)


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (then(aj.sign(), aj.clip(1.0)), "sign → clip"),
        (then(G, G), "g"),
        (mean(M, G), "(momentum → corrected) + g"),
        (aj.chain(aj.clip(1.0), mean(M, G), aj.sign()), "clip → (momentum → corrected) + g → sign"),
        (ratio(M, aj.rms(0.9)), "(momentum → corrected) / (second moment → corrected → root)"),
        (aj.join(aj.divide, a=M, b=G), "(momentum → corrected) / (g)"),
        (aj.join(geometric, a=aj.sign(), b=G), "geometric(sign, g)"),
        (
            aj.chain(aj.fork(a=G, b=M), aj.merge(geometric)),
            "fork(g, momentum → corrected) → geometric",
        ),
        (aj.chain(aj.fork(a=G, b=M), aj.pick("b")), "fork(g, momentum → corrected) → b"),
        (aj.masked(aj.sign(), {"w": True}), "masked(sign)"),
        (aj.delay(aj.sign()), "sign"),
        (aj.chain(optax.scale_by_adam(), aj.sign()), "scale by adam → sign"),
    ],
)
def test_a_stranger_is_sketched_like_ours(tx, text):
    assert periodic.sketch(tx) == text
