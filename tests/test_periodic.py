"""The periodic table: made from the code, complete, and printed without a fuss."""

import configparser
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import adamw_jax as aj
from adamw_jax import optimizers
from adamw_jax.inspect import periodic
from adamw_jax.transform import slots

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


def shell(*arguments, columns="80"):
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "COLUMNS": columns}
    return subprocess.run(
        [sys.executable, "-m", "adamw_jax", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PYTHONIOENCODING": "utf-8"},
    )


def test_list():
    """In 80 columns every name and every number is whole."""
    run = shell("list")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name, row in ROWS.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.split()[-1] == f"{row.bytes:.1f}"
        assert row.decay in line


def test_list_markdown():
    run = shell("list", "--markdown")
    assert run.returncode == 0, run.stderr
    assert run.stdout == periodic.markdown()


@pytest.mark.parametrize("arguments", [["lits"], ["list", "all"]], ids=" ".join)
def test_a_wrong_command_is_told_so(arguments):
    run = shell(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    first, *usage = run.stderr.splitlines()
    assert first == f"adamw-jax: there is no command {' '.join(arguments)!r}."
    assert "Traceback" not in run.stderr
    assert any(line.startswith("adamw-jax list ") for line in usage)


def test_no_command():
    run = shell()
    assert run.returncode == 2
    assert "adamw-jax list" in run.stderr
    assert "there is no" not in run.stderr


def test_the_console_script():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    (script,) = filter(None, scripts)
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "adamw-jax"
    assert callable(getattr(importlib.import_module(module), function))
