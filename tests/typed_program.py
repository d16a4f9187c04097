"""A program that uses the package as its users do, for the type checker: see test_types.py.

`assert_type` says what a checker must know; a parameter that a decorator lost would let
the calls marked `type: ignore` pass, and a checker reports an ignore that is not needed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp

import adamw_jax as aj
from adamw_jax.checkpoints import Checkpoints
from adamw_jax.flax import TrainState
from adamw_jax.schedules import cosine, schedule

# --- optimizers, pieces and combinators are factories with their own parameters ----------

params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
tx = assert_type(aj.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=None), aj.Transformation)
aj.adamw(1e-3, beta1=0.9)  # type: ignore[call-arg]
aj.adamw()  # type: ignore[call-arg]
aj.adamw(1e-3, coupling=3)  # type: ignore[arg-type]
assert_type(aj.muon(0.02), aj.Transformation)
assert_type(aj.second_moment(0.99, dtype="bfloat16"), aj.Transformation)
assert_type(aj.clip_by_global_norm(1.0), aj.Transformation)
aj.scale()  # type: ignore[call-arg]
assert_type(aj.chain(aj.clip(1.0), tx), aj.Transformation)
assert_type(aj.chain(first=aj.clip(1.0), second=tx), aj.Transformation)
assert_type(aj.join(aj.add, a=aj.identity(), b=aj.sign()), aj.Transformation)
assert_type(aj.precondition(aj.average(0.9), aj.rms(0.99)), aj.Transformation)
aj.interpolate(0.5)  # type: ignore[call-arg]
assert_type(aj.route([("bias$", aj.sgd(0.1))], default=tx), aj.Transformation)

state = tx.init(params)
updates, state = tx.update(params, state, params)

# --- expressions are data ----------------------------------------------------------------

assert_type(aj.part(tx, "direction"), aj.Transformation)
assert_type(aj.parts(tx), dict[str, aj.Transformation])
assert_type(aj.swap(tx, "direction.denominator.correction", aj.identity()), aj.Transformation)
assert_type(aj.replace(tx, "", learning_rate=3e-4), aj.Transformation)
assert_type(aj.expand(tx), aj.Transformation)
assert_type(aj.parse("adamw(1e-3)"), aj.Transformation)
assert_type(aj.diff(tx, aj.adam(1e-3)), aj.Changes)
assert_type(tx.parts, dict[str, aj.Transformation])
assert_type(tx.leafwise, bool)
assert_type(aj.adamw.__name__, str)
assert_type(aj.adamw.scheduled, tuple[str, ...])

# --- what is asked of them ---------------------------------------------------------------

assert_type(aj.describe(tx, params), aj.Description)
assert_type(aj.lint(tx), list[aj.Finding])
assert_type([finding.cure for finding in aj.lint(tx)], list[str])
assert_type(aj.equations(tx, "text"), str)
assert_type(aj.cost(tx, params), aj.Cost)
assert_type(aj.cost(tx, params).seconds, float | None)
assert_type(aj.routes(tx, params), dict[str, str])
assert_type(aj.transplant(tx, state, aj.lion(1e-4), params), aj.Transplant)
assert_type(aj.read(state), dict[str, jax.Array])
assert_type(aj.metrics(state), dict[str, jax.Array])
assert_type(aj.divide(jnp.ones(2), jnp.ones(2)), jax.Array)

# --- schedules ---------------------------------------------------------------------------

rate = assert_type(cosine(1e-3, 100, warmup_steps=10), aj.Schedule)
assert_type(rate(0), jax.Array)
cosine(1e-3)  # type: ignore[call-arg]
assert_type(aj.adamw(rate), aj.Transformation)
assert_type(aj.adamw(lambda count: 1e-3 / (count + 1)), aj.Transformation)


@schedule
def halved(peak: float) -> Callable[[jax.Array], jax.Array]:
    return lambda t: peak / 2**t


@schedule(equation="peak / (t + 1)")
def harmonic(peak: float) -> Callable[[jax.Array], jax.Array]:
    return lambda t: peak / (t + 1)


assert_type(halved(0.1), aj.Schedule)
assert_type(harmonic(0.1), aj.Schedule)
harmonic("fast")  # type: ignore[arg-type]

# --- a stranger's combinator and pieces --------------------------------------------------


@aj.combinator
def mean(first: aj.Transformation, second: aj.Transformation) -> Callable[[Any, Any], Any]:
    return lambda run, u: aj.each(lambda a, b: (a + b) / 2, run("first", u), run("second", u))


@aj.elementwise
def halve(times: int = 1) -> Callable[[Any], Any]:
    return lambda u: u / 2**times


@aj.elementwise(average=0.0, product=aj.per_tree(1.0))
def centred(decay: float) -> Callable[..., Any]:
    def formula(u: Any, average: Any, product: Any) -> Any:
        average = decay * average + (1 - decay) * u
        return u - average, {"average": average, "product": decay * product}

    return formula


@aj.transformation
def centred_adam(learning_rate: float, *, decay: float = 0.9) -> aj.Transformation:
    return aj.chain(centred(decay), aj.adam(learning_rate))


@aj.transformation(leafwise=True)
def plain(learning_rate: float) -> aj.Transformation:
    return aj.sgd(learning_rate)


assert_type(mean(tx, aj.sgd(0.1)), aj.Transformation)
assert_type(halve(times=2), aj.Transformation)
assert_type(centred(0.9), aj.Transformation)
assert_type(centred_adam(1e-3, decay=0.5), aj.Transformation)
assert_type(plain(1e-3), aj.Transformation)
mean(tx)  # type: ignore[call-arg]
centred("0.9")  # type: ignore[arg-type]
centred_adam(1e-3, 0.5)  # type: ignore[call-arg]
plain(learning_rate=None)  # type: ignore[arg-type]

# --- training ----------------------------------------------------------------------------


def train(directory: Path, apply: Callable[..., jax.Array], steps: int) -> TrainState:
    state = TrainState.create(apply_fn=apply, params=params, tx=tx)
    with Checkpoints(directory, keep=2) as checkpoints:
        start, saved = assert_type(checkpoints.restore({"params": params}), tuple[int, Any])
        for step in range(start, steps):
            state = state.apply_gradients(grads=saved["params"])
            checkpoints.save(step + 1, {"params": state.params})
    return state
