"""The sweep: every arm, every learning rate, every seed, few compilations.

A transformation is a pytree whose leaves are its hyperparameters.  Arms of
equal tree structure therefore stack, with their learning rates, into one
transformation with leaves of shape [arm, rate], and one vmapped program trains
them all; JAX compiles once per structure because that is its cache key.

Runs of equal seed start from the same parameters and (unless an arm asks for
another order) see the same batches, so that arms may be compared in pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.ablation.arms import Arm
from adamw_jax.ablation.tasks import Scores, Task

Progress = Callable[[Sequence[str], int], None]
Program = Callable[..., Any]
Axes = tuple[int | None, ...]


class Runs(NamedTuple):
    """How the runs of one arm ended: scores are arrays [rate, seed].

    A run that diverged has loss infinity and accuracy 0.
    """

    validation: Scores
    test: Scores
    state_bytes: float  # per parameter

    @property
    def diverged(self) -> np.ndarray:
        infinite: np.ndarray = np.isinf(self.test.loss)
        return infinite


def sweep(
    task: Task,
    arms: Mapping[str, Arm],
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    *,
    batch_size: int = 64,
    chunk: int = 50,
    on_progress: Progress = lambda names, steps: None,
) -> Iterator[tuple[str, Runs]]:
    """Trains all arms and yields each with its runs as soon as they have ended.

    Args:
      task: what to train on.
      arms: contestants by name.
      rates: the learning-rate grid, the same for every arm.
      seeds: each fixes the initial parameters and the order of the data.
      steps: number of updates of every run.
      batch_size: examples an update.
      chunk: updates between two calls of `on_progress`, which may raise to stop.
      on_progress: called with the arms in training and the updates just done.
    """
    begin, advance, evaluate = _programs(task)
    initial = jax.vmap(task.init)(jax.vmap(jax.random.key)(jnp.asarray(seeds)))
    for names in group_by_structure(arms, rates[0]):
        tx = stack([stack([arms[name].build(float(r)) for r in rates]) for name in names])
        order = jnp.asarray(
            [[batches(task, s, arms[n].order, steps, batch_size) for s in seeds] for n in names]
        )
        params, state = begin(tx, initial)
        for start in range(0, steps, chunk):
            stop = min(start + chunk, steps)
            params, state = advance(tx, params, state, order, task.train, start, stop)
            jax.block_until_ready(params)
            on_progress(names, stop - start)
        scores = evaluate(params, task.validation), evaluate(params, task.test)
        size = _state_bytes(arms[names[0]].build(float(rates[0])), task)
        for i, name in enumerate(names):
            yield name, _runs(jax.tree.map(lambda x, i=i: np.asarray(x[i]), scores), size)


def _programs(task: Task) -> tuple[Program, Program, Program]:
    """The three programs of a sweep, compiled by JAX once per structure of `tx`."""

    def begin(tx: Any, params: Any) -> Any:
        return params, tx.init(params)

    def advance(
        tx: Any, params: Any, state: Any, order: Any, data: Any, start: Any, stop: Any
    ) -> Any:
        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            batch = jax.tree.map(lambda x: x[order[i]], data)
            gradient = jax.grad(task.loss)(params, batch)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        # A scan whose bounds are arguments: chunks of any length share one program.
        return jax.lax.fori_loop(start, stop, step, (params, state))

    return (
        _over_runs(begin, seed=(None, 0), rate=(0, None), arm=(0, None)),
        _over_runs(
            advance,
            seed=(None, 0, 0, 0, None, None, None),
            rate=(0, 0, 0, None, None, None, None),
            arm=(0, 0, 0, 0, None, None, None),
        ),
        _over_runs(task.scores, seed=(0, None), rate=(0, None), arm=(0, None)),
    )


def _over_runs(function: Program, *, seed: Axes, rate: Axes, arm: Axes) -> Program:
    """Vmaps a function of one run over arms, rates and seeds (axes in that order)."""
    for axes in (seed, rate, arm):
        function = jax.vmap(function, in_axes=axes)
    return jax.jit(function)


def group_by_structure(arms: Mapping[str, Arm], rate: float) -> list[list[str]]:
    """The names of arms whose transformations have the same tree structure, together."""
    groups: dict[Any, list[str]] = {}
    for name, arm in arms.items():
        groups.setdefault(jax.tree.structure(arm.build(float(rate))), []).append(name)
    return list(groups.values())


def stack(trees: Sequence[Any]) -> Any:
    """One tree of equal trees: each leaf gets a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def batches(task: Task, seed: int, order: int, steps: int, size: int) -> np.ndarray:
    """Which examples each update sees, [steps, size]: shuffled epochs, end to end."""
    examples = len(task.train.labels)
    size = min(size, examples)
    an_epoch = examples // size
    rng = np.random.default_rng([seed, order])
    epochs = [rng.permutation(examples)[: an_epoch * size] for _ in range(-(-steps // an_epoch))]
    return np.concatenate(epochs).reshape(-1, size)[:steps].astype(np.int32)


def _runs(scores: tuple[Scores, Scores], state_bytes: float) -> Runs:
    """Marks the runs that diverged."""
    finite = np.isfinite(scores[0].loss) & np.isfinite(scores[1].loss)
    mark = lambda s: Scores(np.where(finite, s.loss, np.inf), np.where(finite, s.accuracy, 0.0))
    return Runs(mark(scores[0]), mark(scores[1]), state_bytes)


def _state_bytes(tx: Any, task: Task) -> float:
    """Bytes of optimizer state per parameter; counters and the like weigh nothing at scale."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    arrays = [x for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if x.ndim]
    size = sum(x.size * x.dtype.itemsize for x in arrays)
    return float(size / sum(p.size for p in jax.tree.leaves(params)))
