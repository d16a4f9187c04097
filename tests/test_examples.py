"""Every example runs, as a user runs it, and says what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_examples_are_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "train_nnx.py",
        "train_linen.py",
        "worked_example.py",
    }


@pytest.mark.parametrize("name", ["train_nnx.py", "train_linen.py"])
def test_a_training_loop_learns_within_a_few_steps(name):
    out = run(name, "--steps", "30")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", out)[1])
    assert 60 < accuracy < 100  # ten classes; one in ten is chance


@pytest.mark.parametrize("name", ["train_nnx.py", "train_linen.py"])
def test_a_training_loop_takes_any_optimizer(name):
    """One that is evaluated elsewhere than it is trained."""
    out = run(name, "--steps", "30", "--optimizer", "schedule_free_adamw(1e-2)")
    assert "schedule_free_adamw(0.01)" in out.splitlines()[0]
    assert 60 < float(re.search(r"test accuracy ([\d.]+)%", out)[1]) < 100


def test_a_training_loop_goes_on_where_it_was(tmp_path):
    options = ("--optimizer", "adamw(1e-2)", "--checkpoints", str(tmp_path / "saved"))
    assert "starts after step 0\n" in run("train_nnx.py", "--steps", "20", *options)
    on = run("train_nnx.py", "--steps", "30", *options)
    assert "starts after step 20\n" in on
    whole = run("train_nnx.py", "--steps", "30", *options[:2])
    assert on.splitlines()[-2:] == whole.splitlines()[-2:]


def test_the_worked_example_prints_the_exact_path():
    out = run("worked_example.py")
    last = [line.split()[-1] for line in out.splitlines() if line.startswith("exact")]
    assert last == [
        *("0.395000005", "0.292792502", "0.190990028", "0.100742828"),  # lambda
        *("0.399500005", "0.300843002", "0.201667610", "0.113128643"),  # lr lambda
    ]


def test_the_worked_example_marks_what_the_hand_calculation_lost():
    printed = [line for line in run("worked_example.py").splitlines() if line.startswith("printed")]
    marked = [re.findall(r"(\S+)\*", line) for line in printed]
    step_3 = ["0.0416", "0.29007"]
    step_4 = ["0.0001272", "0.0318", "0.178", "0.089", "0.18909", "0.100"]
    assert marked == [[], [], step_3, step_4]
