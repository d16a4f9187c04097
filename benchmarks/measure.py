"""A fair comparison of two pieces of work: interleaved, mirrored, as a ratio.

A *measurement* gives one number each time it is called: seconds, bytes, an error.
Pairs of them run in the order AB BA BA AB, so what drifts (clock speed, temperature,
neighbours) meets both sides alike.

* `steady`: work that repeats.  It is warmed up, and both sides are set up afresh
  several times, in turn too, since where buffers lie in memory alone is worth a few
  percent.
* `cold`: work that starts from nothing each time: cleared caches or a new process.
"""

import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Measurement = Callable[[], float]
SetUp = Callable[[], Measurement]


def where() -> str:
    """How and where it was measured: what stands below every table."""
    device = f"{os.cpu_count()} {platform.machine()} cores, {jax.devices()[0].platform}"
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    return f"Medians of interleaved rounds; {device}; {versions}."


class Comparison(NamedTuple):
    """The medians of both sides, and the median and the quartiles of their ratio."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """By how much ours is above theirs."""
        return self.ours - self.theirs


def comparison(pairs: Iterable[tuple[float, float]]) -> Comparison:
    ours, theirs = zip(*pairs, strict=True)
    ratios = [a / b if b else float("inf") for a, b in zip(ours, theirs, strict=True)]
    low, ratio, high = (float(x) for x in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return Comparison(statistics.median(ours), statistics.median(theirs), ratio, low, high)


# --- measurements ------------------------------------------------------------


def stopwatch(work: Callable[..., object], prepare: Callable[[], tuple] = tuple) -> Measurement:
    """The seconds of `work(*prepare())`, those of `prepare` not among them."""

    def seconds():
        prepared = prepare()
        start = time.perf_counter()
        work(*prepared)
        return time.perf_counter() - start

    return seconds


def in_new_process(function: Callable[..., float], *args: Any) -> Measurement:
    """What a function of a module returns in a process that has run nothing else."""

    def value():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *args).result()

    return value


# --- comparisons -------------------------------------------------------------


def in_turn(a: Measurement, b: Measurement, count: int) -> Iterator[tuple[float, float]]:
    """Pairs of measurements in the order AB BA BA AB."""
    gc.collect()
    gc.disable()
    try:
        for i in range(count):
            if i % 4 in (1, 2):
                y, x = b(), a()
            else:
                x, y = a(), b()
            yield x, y
    finally:
        gc.enable()


def steady(ours: SetUp, theirs: SetUp, rounds: int, setups: int = 6) -> Comparison:
    """`rounds` of ABBA or BAAB on each of `setups`."""
    means: list[tuple[float, float]] = []
    for i in range(setups):
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        a(), b()  # warm up: compile, fill caches
        pairs = in_turn(a, b, 2 * rounds)
        means += [((w + y) / 2, (x + z) / 2) for (w, x), (y, z) in zip(pairs, pairs, strict=True)]
    return comparison(means)


def cold(ours: SetUp, theirs: SetUp, count: int) -> Comparison:
    """So many pairs, each of which finds nothing prepared."""
    return comparison(in_turn(ours(), theirs(), count))
