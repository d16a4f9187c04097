"""The report: a table for the terminal, Markdown and CSV for the disk.

No row is set in bold.  A verdict is written where the statistics allow one.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from adamw_jax.ablation.arms import Arm
from adamw_jax.ablation.statistics import Comparison, Estimate, Row
from adamw_jax.ablation.sweep import Runs

COLUMNS = (
    "Arm",
    "Best lr",
    "Accuracy, %",
    "Loss, nats",
    "Loss / AdamW's",
    "Verdict",
    "Diverged",
    "B/param",
)


SUMMARY = ["arm", "rate", "edge", "accuracy", "accuracy_error", "loss", "loss_error"]


SUMMARY += ["ratio", "low", "high", "p", "verdict", "diverged", "runs", "state_bytes"]


SCORES = ["validation_loss", "validation_accuracy", "test_loss", "test_accuracy"]


COLOURS = {"better": "green", "worse": "red", "baseline": "bold"}


def plus_minus(estimate: Estimate, digits: int, scale: float = 1.0) -> str:
    if not np.isfinite(estimate.mean):
        return "∞"
    return f"{scale * estimate.mean:.{digits}f} ± {scale * estimate.error:.{digits}f}"


def ratio(comparison: Comparison | None) -> str:
    if comparison is None:
        return "1"
    if not np.isfinite(comparison.ratio):
        return "∞"
    number = lambda x: f"{x:.2f}" if 0.005 <= x < 9.995 else f"{x:.3g}"
    middle, low, high = map(number, comparison[:3])
    return f"{middle} [{low}, {high}]"


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table as text, in the order of COLUMNS."""
    return (
        row.arm,
        f"{'edge: ' if row.edge else ''}{row.rate:.2g}",
        plus_minus(row.accuracy, 2, 100),
        plus_minus(row.loss, 4),
        ratio(row.comparison),
        row.verdict,
        f"{row.diverged[0]}/{row.diverged[1]}",
        f"{row.state_bytes:.0f}",
    )


def terminal(rows: Iterable[Row], width: int) -> Table:
    """The table in colour; where it is wider than the terminal, two lines a row."""
    rows = list(rows)
    columns = list(zip(COLUMNS, *map(cells, rows), strict=True))
    narrow = sum(max(map(len, column)) + 2 for column in columns) > width
    if narrow:
        stacked = [zip(columns[i], columns[i + 1], strict=True) for i in (2, 4, 6)]
        columns = columns[:2] + [tuple(map("\n".join, pair)) for pair in stacked]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_lines=narrow)
    for header, *_ in columns:
        text = header in ("Arm", "Verdict")
        table.add_column(header, justify="left" if text else "right", no_wrap=not narrow)
    for row, line in zip(rows, list(zip(*columns, strict=True))[1:], strict=True):
        table.add_row(*line, style=COLOURS.get(row.verdict, ""))
    return table


def markdown(
    title: str, rows: Iterable[Row], arms: Mapping[str, Arm], protocol: Sequence[str]
) -> str:
    """The whole report as a Markdown page."""
    rows = list(rows)
    lines = [
        f"# {title}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| :-- | --: | --: | --: | --: | :-- | --: | --: |",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        "![Test loss by learning rate, and paired ratios to AdamW](ablation.png)",
        "",
        "Each arm is AdamW with one thing changed:",
        "",
        *(f"* **{row.arm}**: {arms[row.arm].note}." for row in rows),
        "",
        "How it was measured:",
        "",
        *(f"* {sentence}" for sentence in protocol),
    ]
    return "\n".join(lines) + "\n"


def summary_table(rows: Iterable[Row]) -> list[list[Any]]:
    """One line an arm, with all digits, for CSV."""
    nothing = Comparison(1.0, np.nan, np.nan, np.nan)
    lines = []
    for row in rows:
        line = [row.arm, row.rate, row.edge, *row.accuracy, *row.loss]
        line += [*(row.comparison or nothing), row.verdict, *row.diverged, row.state_bytes]
        lines.append(line)
    return [SUMMARY, *lines]


def runs_table(
    results: Mapping[str, Runs], rates: Sequence[float], seeds: Sequence[int], tuning: int
) -> list[list[Any]]:
    """One line a run, for CSV: everything the statistics are made of."""
    table: list[list[Any]] = [["arm", "rate", "seed", "role", *SCORES]]
    for arm, runs in results.items():
        scores = np.stack([*runs.validation, *runs.test])
        for i, rate in enumerate(rates):
            for j, seed in enumerate(seeds):
                role = "tuning" if j < tuning else "reporting"
                table.append([arm, rate, seed, role, *scores[:, i, j]])
    return table


def write_csv(path: Path, table: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
