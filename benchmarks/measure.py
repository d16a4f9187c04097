"""A fair comparison of two pieces of work: interleaved, mirrored, as a ratio.

Rounds run in the order ABBA and BAAB in turn, so what drifts (clock speed,
temperature, neighbours) meets both sides alike.  Both sides are set up afresh
several times, in turn too, since where buffers lie in memory alone is worth a
few percent.
"""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import optax

Measurement = Callable[[], float]


def where() -> str:
    """How and where it was measured: what stands below every table."""
    device = f"{os.cpu_count()} {platform.machine()} cores, {jax.devices()[0].platform}"
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    return f"Medians of interleaved rounds; {device}; {versions}."


class Summary(NamedTuple):
    """The median and the quartiles of what the rounds gave."""

    median: float
    low: float
    high: float


def summary(values: list[float]) -> Summary:
    low, median, high = statistics.quantiles(values, n=4)
    return Summary(median, low, high)


def stopwatch(work: Callable[[], object]) -> Measurement:
    """The work as a measurement of its seconds."""

    def seconds():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return seconds


def rounds(a: Measurement, b: Measurement, count: int) -> Iterator[tuple[float, float]]:
    """Pairs of measurements, each the mean of two."""
    a(), b()  # warm up: compile, fill caches
    gc.collect()
    gc.disable()
    for i in range(count):
        if i % 2:
            first, second, third, fourth = b(), a(), a(), b()
            yield (second + third) / 2, (first + fourth) / 2
        else:
            first, second, third, fourth = a(), b(), b(), a()
            yield (first + fourth) / 2, (second + third) / 2
    gc.enable()


def ratio(
    ours: Callable[[], Measurement], theirs: Callable[[], Measurement], count: int, setups: int = 6
) -> Summary:
    """How much `ours()` measures, in units of `theirs()`: `count` rounds on each of `setups`."""
    ratios: list[float] = []
    for i in range(setups):
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        ratios += [x / y for x, y in rounds(a, b, count)]
    return summary(ratios)
