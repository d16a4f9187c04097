"""Every example runs, as a user runs it, and says what it should."""

import functools
import importlib.util
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from adamw_jax import sgd

EXAMPLES = Path(__file__).parent.parent / "examples"


@functools.cache
def run(name, *arguments):
    """What it prints: two tests may ask for two things in it."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_examples_are_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "train_nnx.py",
        "train_linen.py",
        "train_sharded.py",
        "train_char_lm.py",
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


TINY = ("--layers", "1", "--width", "32", "--context", "16", "--batch", "4")


def test_the_language_model_routes_learns_and_logs(tmp_path):
    log = tmp_path / "run.jsonl"
    out = run("train_char_lm.py", *TINY, "--steps", "31", "--log", str(log))
    routes = dict(re.findall(r"^(\w+(?:/\w+)+) .* (muon|adamw) ", out, re.MULTILINE))
    matrices = {name for name, route in routes.items() if route == "muon"}
    assert matrices == {f"blocks/layers/0/{name}/kernel" for name in ("qkv", "out", "up", "down")}
    assert {"embed/embedding", "embed_position/embedding", "head/kernel"} < set(routes)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    assert [line["muon/learning_rate"] for line in lines] == pytest.approx(
        [0, 0.02, 0.02, 0.02 / 7]
    )
    held_out = float(re.search(r"held out: ([\d.]+) nats", out)[1])
    assert held_out < lines[0]["loss"] - 0.8
    assert len(out.split("held out")[1].split("|", 1)[1]) > 490  # the sample


def test_the_language_model_takes_an_expression_and_begins_knowing_nothing():
    out = run("train_char_lm.py", *TINY, "--steps", "1", "--optimizer", "sgd(0.0)")
    assert "\nsgd(0.0)\n" in out
    letters = int(re.search(r"^head/bias +(\d+) ", out, re.MULTILINE)[1])
    assert f"held out: {math.log(letters):.3f} nats" in out


@pytest.fixture(scope="module")
def language_model():
    return runpy.run_path(str(EXAMPLES / "train_char_lm.py"))


def test_the_language_model_sees_no_later_character(language_model):
    model = language_model["GPT"](5, 8, 32, 2, nnx.Rngs(0))
    for layer in [model.head, *(x for b in model.blocks.layers for x in (b.out, b.down))]:
        layer.kernel[...] = jax.random.normal(jax.random.key(1), layer.kernel.shape) / 9
    text = jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    change = jnp.abs(model(text) - model(text.at[0, 4].set(1))).max(axis=-1)[0]
    assert (change[:4] == 0).all()
    assert (change[4:] > 1e-4).all()


def test_the_language_model_accumulates_the_gradient_of_the_whole_batch(language_model):
    model, text = language_model["GPT"](5, 8, 32, 1, nnx.Rngs(0)), jnp.arange(54).reshape(6, 9) % 5

    def stepped(batches):
        graph, params = nnx.split(model)
        params = jax.tree.map(jnp.copy, params)  # for it is donated
        return language_model["train_step"](sgd(1.0), graph, params, sgd(1.0).init(params), batches)

    (whole, _, loss), (parts, _, mean) = stepped(text[None]), stepped(text.reshape(3, 2, 9))
    chex.assert_trees_all_close(loss, mean, rtol=1e-6)
    chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-7)


def test_the_language_model_has_text_on_every_machine(language_model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = language_model["load_text"]()
    assert len(text) > 200_000
    assert "expression" in text
