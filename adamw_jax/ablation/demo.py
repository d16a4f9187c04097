"""The demo: one experiment from the first batch to the files under `out/`."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn

from adamw_jax.ablation import figure, report, statistics
from adamw_jax.ablation.arms import BASELINE, CONTROL, Arm
from adamw_jax.ablation.sweep import Runs, group_by_structure, sweep
from adamw_jax.ablation.tasks import Task

TITLE = "What is each piece of AdamW worth?"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result.

    Attributes:
      task: what is trained.
      arms: the contestants by name, the baseline first.
      rates: the learning-rate grid.
      tuning: number of seeds that choose the learning rate.
      reporting: number of other seeds that judge it.
      steps: updates of each run.
      remark: a sentence for the report on what these arms have in common.
    """

    task: Task
    arms: Mapping[str, Arm]
    rates: list[float]
    tuning: int
    reporting: int
    steps: int
    remark: str

    @property
    def seeds(self) -> range:
        """The tuning seeds, then the reporting seeds."""
        return range(self.tuning + self.reporting)

    @property
    def protocol(self) -> list[str]:
        """How it is measured, in sentences."""
        task, rates = self.task, self.rates
        sizes = [len(part.labels) for part in (task.train, task.validation, task.test)]
        return [
            f"{task.name}; {sizes[0]} training, {sizes[1]} validation and {sizes[2]} test "
            "examples in one fixed split.",
            f"{self.steps} steps at a constant learning rate, one gradient a step. {self.remark}",
            f"Every arm gets the same {len(rates)} learning rates from {rates[0]:g} to "
            f"{rates[-1]:g} and, per seed, the same initial parameters and batches "
            f"({CONTROL}: other batches).",
            f"The rate is chosen by validation loss on {self.tuning} seeds; every number in the "
            f"table is measured on test data with {self.reporting} other seeds "
            "(mean ± standard error).",
            f"Loss / {BASELINE}'s is the geometric mean of the ratios paired by seed, with the t "
            "interval at the level of Holm's correction (5 % for the whole table): it excludes 1 "
            "exactly where the verdict is better or worse.",
            "Seeds vary the initial parameters and the batches, not the data: the verdicts are "
            "about this task and this split.",
            "Diverged counts the runs, over the whole grid, whose loss ended not finite; such a "
            "loss is infinite to the statistics.",
            "B/param is the optimizer's state in bytes for each parameter.",
        ]


def run(experiment: Experiment, out: Path) -> int:
    """Trains, reports, and returns the exit code: 0, or 130 if interrupted."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    device = jax.devices()[0]
    print(f"Training {experiment.task.name} on {device.platform} ({device.device_kind}).")
    start = time.perf_counter()
    results: dict[str, Runs] = {}
    interrupted = False
    try:
        for name, runs in train(experiment, console):
            results[name] = runs
            if not console.is_terminal:
                done, seconds = (
                    f"{len(results)}/{len(experiment.arms)}",
                    time.perf_counter() - start,
                )
                print(f"{done} {name}: done after {seconds:.0f} s", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    if results:
        publish(experiment, results, out, console)
    if interrupted:
        finished = f"{len(results)} of {len(experiment.arms)} arms"
        print(f"Interrupted after {finished}: {', '.join(results) or 'nothing to report'}.")
    else:
        print(f"Done in {time.perf_counter() - start:.0f} s.")
    return 130 if interrupted else 0


def train(experiment: Experiment, console: Console) -> Iterator[tuple[str, Runs]]:
    """The sweep behind a progress bar."""
    with progress(console, len(experiment.arms) * experiment.steps) as advance:
        yield from sweep(
            experiment.task,
            experiment.arms,
            experiment.rates,
            experiment.seeds,
            experiment.steps,
            on_progress=advance,
        )


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[Sequence[str], int], None]]:
    """A bar on a terminal; elsewhere nothing moves."""
    columns = (BarColumn(), "{task.percentage:3.0f} %", TimeElapsedColumn(), "{task.description}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=total)

        def advance(names: Sequence[str], steps: int) -> None:
            bar.update(task, advance=len(names) * steps, description=", ".join(names))

        yield advance


def publish(
    experiment: Experiment, results: Mapping[str, Runs], out: Path, console: Console
) -> None:
    """Writes the report of the finished arms and shows its table."""
    rates, tuning = experiment.rates, experiment.tuning
    rows = statistics.analyse(results, rates, tuning)
    missing = [name for name in experiment.arms if name not in results]
    interrupted = [f"Interrupted before the end of: {', '.join(missing)}."] if missing else []
    page = report.markdown(TITLE, rows, experiment.arms, experiment.protocol + interrupted)
    names = ("ablation.md", "ablation.csv", "ablation_runs.csv", "ablation.png")
    page_at, summary_at, runs_at, picture_at = files = [out / name for name in names]
    page_at.write_text(page, encoding="utf-8")
    report.write_csv(summary_at, report.summary_table(rows))
    report.write_csv(runs_at, report.runs_table(results, rates, experiment.seeds, tuning))
    groups = group_by_structure(experiment.arms, rates[0])
    figure.draw(TITLE, rows, results, rates, tuning, groups).savefig(picture_at)
    console.print()
    console.print(report.terminal(rows, console.width))
    print("Wrote " + ", ".join(map(str, files)) + ".")
