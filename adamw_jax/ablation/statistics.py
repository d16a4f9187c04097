"""Statistics: what may be said about the arms, and what may not.

The protocol, fixed before any number is seen:

1. The learning rate of an arm is the one with the lowest mean validation loss
   over the *tuning seeds*.
2. Everything reported is measured on test data, with the other seeds.
3. An arm is compared to the baseline in pairs: same seed, same initial
   parameters, same batches.  The statistic is the logarithm of the ratio of
   test losses, because losses are positive and differ by factors; its mean is
   judged by Student's t.
4. The arms are many, so p-values are corrected by Holm's method, and each
   interval is drawn at the level at which Holm tests its arm: it excludes a
   ratio of 1 exactly where the verdict is "better" or "worse".
5. A best rate at the edge of the grid might not be the best: no claim.
   Divergence is an infinite loss: no claim either, and it is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from adamw_jax.ablation.arms import BASELINE
from adamw_jax.ablation.sweep import Runs

TINY = np.finfo(np.float32).tiny  # a loss of exactly 0 has no logarithm


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float


class Comparison(NamedTuple):
    """An arm's test loss over the baseline's: geometric mean over seeds, interval, p (Holm)."""

    ratio: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Row:
    """What the report says about one arm.

    Attributes:
      arm: its name.
      rate: its best learning rate, by validation loss on the tuning seeds.
      edge: whether that rate is the smallest or the largest of the grid.
      accuracy: on test data, over the reporting seeds, at that rate.
      loss: likewise.
      comparison: with the baseline; None for the baseline itself.
      verdict: "baseline", "better", "worse", "not separable" or why there is none.
      diverged: how many runs of the whole sweep diverged, and of how many.
      state_bytes: of optimizer state per parameter.
    """

    arm: str
    rate: float
    edge: bool
    accuracy: Estimate
    loss: Estimate
    comparison: Comparison | None
    verdict: str
    diverged: tuple[int, int]
    state_bytes: float


def analyse(
    results: Mapping[str, Runs],
    rates: Sequence[float],
    tuning: int,
    *,
    baseline: str = BASELINE,
    level: float = 0.05,
) -> list[Row]:
    """One row an arm.

    Args:
      results: the runs of each finished arm; the baseline must be among them.
      rates: the learning-rate grid.
      tuning: how many of the seeds, from the first, choose the learning rate.
      baseline: whom the others are compared with.
      level: probability of one or more false verdicts in the whole table.
    """
    best = {name: best_rate(runs, tuning) for name, runs in results.items()}
    losses = {name: runs.test.loss[best[name], tuning:] for name, runs in results.items()}
    others = [name for name in results if name != baseline]
    compared = compare([losses[name] for name in others], losses[baseline], level)
    comparisons = dict(zip(others, compared, strict=True))
    at_edge = {name: index in (0, len(rates) - 1) for name, index in best.items()}
    return [
        Row(
            arm=name,
            rate=float(rates[best[name]]),
            edge=at_edge[name],
            accuracy=estimate(runs.test.accuracy[best[name], tuning:]),
            loss=estimate(losses[name]),
            comparison=comparisons.get(name),
            verdict=verdict(comparisons.get(name), at_edge[name], at_edge[baseline], level),
            diverged=(int(runs.diverged.sum()), runs.diverged.size),
            state_bytes=runs.state_bytes,
        )
        for name, runs in results.items()
    ]


def best_rate(runs: Runs, tuning: int) -> int:
    """Index of the rate with the lowest mean validation loss over the tuning seeds."""
    return int(np.argmin(runs.validation.loss[:, :tuning].mean(axis=1)))


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error; an infinite value makes both infinite."""
    if not np.isfinite(values).all():
        return Estimate(np.inf, np.inf)
    return Estimate(float(values.mean()), float(stats.sem(values)))


def compare(arms: Sequence[np.ndarray], baseline: np.ndarray, level: float) -> list[Comparison]:
    """Each arm's losses against the baseline's, in pairs, corrected for their number."""
    logs = lambda losses: np.log(np.maximum(losses, TINY))
    finite = lambda losses: np.isfinite(losses).all() and np.isfinite(baseline).all()
    pairs = [estimate(logs(x) - logs(baseline)) if finite(x) else None for x in arms]
    freedom = len(baseline) - 1
    p = np.array([t_test(pair, freedom) if pair else 1.0 for pair in pairs])
    adjusted, levels = holm(p, level)
    return [
        _comparison(pair, freedom, *numbers) if pair else Comparison(np.inf, np.nan, np.nan, np.nan)
        for pair, *numbers in zip(pairs, adjusted, levels, strict=True)
    ]


def _comparison(pair: Estimate, freedom: int, p: float, level: float) -> Comparison:
    reach = stats.t.isf(level / 2, freedom) * pair.error
    low, high = np.exp(pair.mean - reach), np.exp(pair.mean + reach)
    return Comparison(float(np.exp(pair.mean)), float(low), float(high), float(p))


def t_test(pair: Estimate, freedom: int) -> float:
    """Two-sided p-value of a mean of 0."""
    if pair.error == 0:  # identical runs, or differences that do not vary at all
        return float(pair.mean == 0)
    return float(2 * stats.t.sf(abs(pair.mean / pair.error), freedom))


def holm(p: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Holm's step-down method.

    Returns:
      Corrected p-values, and the level at which each arm is tested: the k-th
      smallest of m p-values at level / (m - k + 1), until the first that fails;
      the rest at the level of that one.
    """
    order = np.argsort(p, kind="stable")
    hypotheses = len(p) - np.arange(len(p))
    corrected, levels = np.empty(len(p)), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * hypotheses))
    failed = p[order] > level / hypotheses
    stopped = np.argmax(failed) if failed.any() else len(p)
    levels[order] = level / hypotheses[np.minimum(np.arange(len(p)), stopped)]
    return corrected, levels


def verdict(comparison: Comparison | None, edge: bool, baseline_edge: bool, level: float) -> str:
    """The one or two words that the numbers allow."""
    if comparison is None:
        return "baseline"
    if np.isinf(comparison.ratio):
        return "no claim: diverged"
    if edge or baseline_edge:
        return "no claim: edge"
    if comparison.p > level:
        return "not separable"
    return "better" if comparison.ratio < 1 else "worse"
