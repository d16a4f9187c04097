"""What several test modules do: run an optimizer over gradients, look at a state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The worked example of the specification, section 3: one parameter, four gradients.
THETA = 0.5
GRADIENTS = (0.2, 0.15, 0.25, 0.05)


def stream(steps, shape, seed=0, dtype=np.float64):
    """Parameters and gradients over five decades, with zeros among them."""
    rng = np.random.default_rng(seed)

    def draw(*dims):
        x = rng.normal(size=dims) * 10 ** rng.uniform(-3, 1, size=dims)
        if np.issubdtype(dtype, np.complexfloating):
            x = x * np.exp(2j * np.pi * rng.uniform(size=dims))
        return x.astype(dtype)

    grads = draw(steps, *shape)
    grads[rng.uniform(size=grads.shape) < 0.1] = 0
    return draw(*shape), list(grads)


def nothing(params):
    """No extra arguments of `update`."""
    return {}


def stepper(tx, extra=nothing, jitted=None):
    """(params, state, grads) -> (params, state).

    Eager, unless the optimizer takes functions: under jit they are traced once,
    and outside it a `lax.cond` around them is compiled again at every step.  Equal
    optimizers share one jitted step, and so its programs."""
    if not (extra is not nothing if jitted is None else jitted):
        return _step(tx, extra)
    return _jitted(tx, extra, tuple(map(type, jax.tree.leaves(tx))))


def _step(tx, extra):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, **extra(params))
        return optax.apply_updates(params, updates), state

    return step


@functools.lru_cache(maxsize=256)
def _jitted(tx, extra, kinds):
    """Of the kinds of its hyperparameters, too: 1, 1.0 and an array of it are equal."""
    return jax.jit(_step(tx, extra))


def walk(tx, params, grads, extra=nothing, jitted=None):
    """The parameters after each of the gradients."""
    step = stepper(tx, extra, jitted)
    state, path = tx.init(params), []
    for g in grads:
        params, state = step(params, state, g)
        path.append(params)
    return path


def avals(tree):
    """Structure, shapes, dtypes and weak types: what must not change from step to step."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves]


def assert_equal(tree, other):
    """The same structure and dtypes and the same bits (NaN equals NaN)."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, strict=True)


# Extra arguments for the optimizers that ask for functions.


def cubic(params):
    """1000 sum x^3 / 6, whose Hessian is diagonal and holds 1000 times the parameters."""
    return {
        "obj_fn": lambda p: sum(
            (jnp.sum(x * x * x * (1000 / 6)).astype(float) for x in jax.tree.leaves(p)),
            jnp.zeros(()),
        )
    }


def even_odds(params):
    """A classifier of two classes that never prefers one, with one row an element.

    Its logits are 0, with derivative 30 x in the one and -30 x in the other class, so
    the sampled labels only choose signs and the estimate is exact: 900 x^2 / B."""

    def logits(p):
        rows = [jnp.ravel(x).astype(float) for x in jax.tree.leaves(p)]
        x = jnp.concatenate([jnp.zeros(0), *rows])
        still = jax.lax.stop_gradient(x)
        return (30 * (x - still) * still)[:, None] * jnp.asarray([1.0, -1.0])

    return {"logits_fn": logits}
