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
        "train_sharded.py",
        "worked_example.py",
    }


@pytest.mark.parametrize("name", ["train_nnx.py", "train_linen.py"])
def test_a_training_loop_learns_within_a_few_steps(name):
    out = run(name, "--steps", "30")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", out)[1])
    assert 60 < accuracy < 100  # ten classes; one in ten is chance


def test_the_sharded_example_learns_and_holds_a_share_of_the_state():
    out = run("train_sharded.py", "--steps", "60", "--width", "32")
    whole, share = map(int, re.search(r"(\d+) in all, (\d+) on each", out).groups())
    assert whole / 8 < share < whole / 6  # embedding and head are spread over the data axis only
    assert 0 < float(re.search(r"step 60: training loss ([\d.]+)", out)[1]) < 1  # ln 10 at first


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
