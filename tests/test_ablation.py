"""The ablation: the sweep is a plain loop, the statistics are honest, the report is written."""

import csv
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from matplotlib.figure import Figure
from rich.console import Console

from adamw_jax import adamw, identity, swap
from adamw_jax.ablation import __main__ as command
from adamw_jax.ablation import demo, figure, report, statistics
from adamw_jax.ablation.arms import BASELINE, Arm, adamw_arms
from adamw_jax.ablation.sweep import Runs, batches, group_by_structure, sweep
from adamw_jax.ablation.tasks import Batch, Scores, Task, digits

RATES = [0.01, 0.1, 1.0]


def examples(seed, n=24):
    inputs = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    labels = (inputs.sum(axis=1) > 0).astype(np.int32)
    return Batch(jnp.asarray(inputs), jnp.asarray(labels))


def tiny(predict=lambda params, inputs: inputs @ params["w"]):
    """Three inputs, two classes, one matrix."""

    def init(key):
        return {"w": jax.random.normal(key, (3, 2), jnp.float32)}

    return Task("tiny", init, predict, examples(0), examples(1), examples(2))


def two_structures():
    return {
        BASELINE: Arm(adamw),
        "again": Arm(adamw, order=1),
        "no decay": Arm(lambda rate: swap(adamw(rate), "weight_decay", identity())),
    }


def alone(task, arm, rate, seed, steps, size):
    """One run as one would write it: a Python loop."""
    params, tx = task.init(jax.random.key(seed)), arm.build(rate)
    state = tx.init(params)
    for rows in batches(task, seed, arm.order, steps, size):
        batch = Batch(task.train.inputs[rows], task.train.labels[rows])
        updates, state = tx.update(jax.grad(task.loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    return task.scores(params, task.validation), task.scores(params, task.test)


# --- the sweep ---------------------------------------------------------------


def test_sweep_is_a_plain_loop_over_arms_rates_and_seeds():
    task, arms, seeds = tiny(), two_structures(), [3, 5]
    for name, runs in sweep(task, arms, RATES[:2], seeds, 7, batch_size=8, chunk=3):
        for i, rate in enumerate(RATES[:2]):
            for j, seed in enumerate(seeds):
                expected = alone(task, arms[name], rate, seed, 7, 8)
                found = jax.tree.map(lambda x, i=i, j=j: x[i, j], (runs.validation, runs.test))
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 10])
def test_one_compilation_a_structure_however_many_arms_rates_and_chunks(steps):
    traced = []

    def predict(params, inputs):
        traced.append(inputs.shape)
        return inputs @ params["w"]

    def count(names):
        traced.clear()
        arms = {name: two_structures()[name] for name in names}
        list(sweep(tiny(predict), arms, RATES, [0, 1], steps, batch_size=8, chunk=4))
        return traced.count((8, 3))  # gradients are taken on 8 examples

    one = count([BASELINE])
    assert one > 0
    assert count([BASELINE, "again"]) == one
    assert count([BASELINE, "again", "no decay"]) == 2 * one


def test_equal_seeds_start_equal_and_see_equal_batches():
    task = tiny()
    arms = {BASELINE: Arm(adamw), "other": two_structures()["no decay"]}
    still = [1e-30]  # a rate that moves nothing shows the initial parameters
    runs = dict(sweep(task, arms, still, [0, 1], 2))
    np.testing.assert_array_equal(runs[BASELINE].test.loss, runs["other"].test.loss)
    assert runs[BASELINE].test.loss[0, 0] != runs[BASELINE].test.loss[0, 1]
    np.testing.assert_array_equal(batches(task, 0, 0, 5, 8), batches(task, 0, 0, 5, 8))
    assert (batches(task, 0, 0, 5, 8) != batches(task, 0, 1, 5, 8)).any()


def test_batches_are_whole_shuffled_epochs():
    rows = batches(tiny(), 0, 0, 6, 8)  # 24 examples, so two epochs of three batches
    assert rows.shape == (6, 8)
    for epoch in (rows[:3], rows[3:]):
        assert sorted(epoch.ravel()) == list(range(24))


def test_divergence_is_an_infinite_loss():
    runs = dict(sweep(tiny(), {BASELINE: Arm(adamw)}, [0.1, 1e38], [0, 1], 3))[BASELINE]
    assert runs.diverged.tolist() == [[False, False], [True, True]]
    assert np.isinf(runs.validation.loss[1]).all()
    assert (runs.test.accuracy[1] == 0).all()


def test_state_is_two_numbers_a_parameter():
    for _, runs in sweep(tiny(), two_structures(), RATES[:1], [0], 1):
        assert runs.state_bytes == 8


def test_the_demo_arms_differ_from_adamw_by_what_they_say():
    arms = adamw_arms()
    groups = group_by_structure(arms, 0.1)
    assert groups[0] == [BASELINE, "A/A control"]
    assert len(groups) == 7
    assert sum(map(len, groups)) == len(arms)


def test_digits_is_split_without_overlap_and_standardised():
    task = digits(hidden=4)
    parts = (task.train, task.validation, task.test)
    assert sum(len(part.labels) for part in parts) == 1797
    rows = np.concatenate([part.inputs for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert abs(float(task.train.inputs.mean())) < 1e-6
    assert task.predict(task.init(jax.random.key(0)), task.test.inputs).shape == (360, 10)


# --- the statistics ----------------------------------------------------------


def made_up(factor, seeds=12, noise=0.05, best=1, own=0):
    """Runs whose test losses are a shared noise per seed times `factor`."""
    shared = np.exp(np.random.default_rng(0).normal(0, 0.5, seeds))
    private = np.exp(np.random.default_rng(own).normal(0, noise, seeds))
    shape = 1.0 + np.abs(np.arange(3) - best)[:, None]
    scores = Scores(factor * shape * shared * private, np.full((3, seeds), 0.9))
    return Runs(scores, scores, 8.0)


def rows_of(**results):
    rows = statistics.analyse(results, RATES, tuning=4, baseline="base")
    return {row.arm: row for row in rows}


def test_a_known_difference_is_found_and_none_is_not_invented():
    rows = rows_of(
        base=made_up(1, own=1), same=made_up(1, own=2), good=made_up(0.7, own=3), bad=made_up(1.5)
    )
    assert {name: row.verdict for name, row in rows.items()} == {
        "base": "baseline",
        "same": "not separable",
        "good": "better",
        "bad": "worse",
    }
    good = rows["good"].comparison
    assert good.low < 0.7 < good.high < 1
    assert good.ratio == pytest.approx(0.7, rel=0.1)


def test_identical_runs_are_not_separable():
    row = rows_of(base=made_up(1), same=made_up(1))["same"]
    assert row.verdict == "not separable"
    assert row.comparison == (1, 1, 1, 1)


def test_false_verdicts_are_as_rare_as_promised():
    rng, tables = np.random.default_rng(0), 400
    wrong = 0
    for _ in range(tables):
        base, *arms = np.exp(rng.normal(size=(6, 8)))
        wrong += any(pair.p <= 0.05 for pair in statistics.compare(arms, base, 0.05))
    assert wrong / tables < 0.08


def test_intervals_exclude_one_exactly_where_the_verdict_says_so():
    rng = np.random.default_rng(1)
    base = np.exp(rng.normal(size=8))
    arms = [base * np.exp(rng.normal(shift, 0.3, 8)) for shift in np.linspace(0, 1, 9)]
    pairs = statistics.compare(arms, base, 0.05)
    decided = [pair.p <= 0.05 for pair in pairs]
    assert any(decided)
    assert not all(decided)
    assert decided == [not pair.low <= 1 <= pair.high for pair in pairs]


def test_holm_by_hand():
    corrected, levels = statistics.holm(np.array([0.04, 0.01, 0.03]), 0.05)
    np.testing.assert_allclose(corrected, [0.06, 0.03, 0.06])
    np.testing.assert_allclose(levels, [0.025, 0.05 / 3, 0.025])


def test_a_best_rate_at_the_edge_makes_no_claim():
    rows = rows_of(base=made_up(1), edge=made_up(0.1, best=2))
    assert rows["edge"].edge
    assert rows["edge"].verdict == "no claim: edge"
    rows = rows_of(base=made_up(1, best=0), inside=made_up(0.1))
    assert rows["inside"].verdict == "no claim: edge"


def test_divergence_is_never_chosen_and_never_forgiven():
    runs = made_up(0.5)
    runs.validation.loss[1, 0] = np.inf  # a tuning seed at what would be the best rate
    assert statistics.best_rate(runs, 4) != 1
    runs = made_up(0.5)
    runs.test.loss[1, 7] = np.inf  # the two scores are one object: this seed reports
    row = rows_of(base=made_up(1), lost=runs)["lost"]
    assert row.verdict == "no claim: diverged"
    assert np.isinf(row.loss.mean)
    assert row.diverged == (1, 36)


# --- the report and the command ----------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("verdict", ["worse", "no claim: diverged"])
def test_the_table_drops_no_digit(width, verdict):
    """Wide cells take two lines; none is cut off."""
    pair = statistics.Comparison(1.02, 1.1e-7, 9262414.1, 1.0)
    (row,) = rows_of(base=made_up(1)).values()
    row = dataclasses.replace(
        row, arm="no second moment, λ/100", edge=True, comparison=pair, verdict=verdict
    )
    console = Console(width=width)
    with console.capture() as shown:
        console.print(report.terminal([row], width))
    text = shown.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert set(" ".join(report.cells(row)).split()) <= set(text.split())


@pytest.mark.parametrize("high", [1.2, 8.0, 1e3, 1e8, 1e60])
def test_ticks_are_few_enough_to_read(high):
    axis = Figure().subplots().xaxis
    figure._ticks(axis, 1 / high, high, (1, 2, 5), "×{:g}")
    assert 1 <= len(axis.get_major_locator()()) <= 13


def experiment():
    return demo.Experiment(tiny(), two_structures(), RATES, 2, 3, 6, "A test.")


def test_the_report_is_written(tmp_path, capsys):
    assert demo.run(experiment(), tmp_path) == 0
    page = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in two_structures())
    with (tmp_path / "ablation.csv").open(encoding="utf-8") as file:
        assert [line["arm"] for line in csv.DictReader(file)] == list(two_structures())
    with (tmp_path / "ablation_runs.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3 * len(RATES) * 5
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert jax.devices()[0].device_kind in said
    assert "3/3 no decay: done" in said


def test_an_interrupt_keeps_the_finished_arms(tmp_path, capsys, monkeypatch):
    def interrupted(*args, on_progress, **kwargs):
        def stop(names, steps):
            on_progress(names, steps)
            if "no decay" in names:
                raise KeyboardInterrupt

        return sweep(*args, on_progress=stop, **kwargs)

    monkeypatch.setattr(demo, "sweep", interrupted)
    assert demo.run(experiment(), tmp_path) == 130
    page = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "| again |" in page
    assert "| no decay |" not in page
    assert "* Interrupted before the end of: no decay." in page
    assert "Interrupted after 2 of 3 arms: AdamW, again." in capsys.readouterr().out


def test_the_command_line_runs(tmp_path):
    command = [sys.executable, "-m", "adamw_jax.ablation"]
    flags = ["--quick", "--steps", "3", "--seeds", "2", "--out", str(tmp_path / "new" / "out")]
    done = subprocess.run(command + flags, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "out" / "ablation.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds", "1"], "argument --seeds: 1 is too small, use 2 or more."),
        (["--steps", "many"], "argument --steps: 'many' is not a whole number."),
        (["--fast"], "unrecognized arguments: --fast."),
    ],
)
def test_a_wrong_flag_gets_one_sentence(flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"ablation: {said}\n"


def test_a_folder_that_cannot_be_written_gets_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["--out", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ablation: cannot write to")
    assert said.count("\n") == 1
