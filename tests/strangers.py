"""What a stranger writes with public names only: combinators, pieces, a wrapper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adamw_jax as aj
from adamw_jax.core.numerics import maximum


@aj.combinator
def then(first, second):
    return lambda run, u: run("second", run("first", u))


@aj.combinator
def mean(first, second):
    middle = lambda a, b: (a + b) / 2
    return lambda run, u: aj.each(middle, run("first", u), run("second", u))


@aj.combinator
def quotient(above, below):
    return lambda run, u: aj.each(lambda a, b: a / (b + 1e-8), run("above", u), run("below", u))


@aj.elementwise(average=0.0)
def centred(decay, weight=None):
    def formula(u, average):
        average = decay * average + (1 - decay if weight is None else weight) * u
        return u - average, {"average": average}

    return formula


@aj.elementwise
def soft_clip(bound):
    return lambda u: u / maximum(1, abs(u) / bound)


@aj.transformation
def twice():
    """Does something, and does not say what."""
    return optax.stateless(lambda u, p: jax.tree.map(lambda x: 2 * x, u))


class AroundState(NamedTuple):
    steps: Any
    tx: Any


def _around(tx):
    def init(params):
        return AroundState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(u, state, params=None, **extra):
        out, inner = tx.update(u, state.tx, params, **extra)
        return out, AroundState(state.steps + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@aj.transformation(equation="tx(u)")
def around(tx):
    """Says that it hands on what it receives."""
    return _around(tx)


@aj.transformation
def box(tx):
    """Says nothing."""
    return _around(tx)
