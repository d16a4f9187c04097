"""The promises that every piece of the library keeps, each one small function.

A promise takes a `Subject` and returns a sentence on what was seen.  It raises
`Broken` with a sentence where it is not kept, `Inapplicable` with a reason
where it says nothing.  `adamw_jax.inspect.check` goes through them all.
"""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.inspect.compare import (
    Broken,
    as_numpy,
    assert_finite,
    assert_same,
    assert_same_structure,
)
from adamw_jax.trees import path_text


class Inapplicable(Exception):
    """The property says nothing of this piece; the message says why."""


class Subject(NamedTuple):
    """What is checked: a transformation, parameters for it, extra arguments from parameters."""

    tx: optax.GradientTransformationExtraArgs
    params: Any
    extra: Callable[[Any], dict[str, Any]]
    has_extra: bool
    tolerance: float

    def step(self, grads, state, params):
        return self.tx.update(grads, state, params, **self.extra(params))

    def grads(self, i=0, params=None):
        """Gradients of size about 1, others for each i."""
        params = self.params if params is None else params
        leaves, treedef = jax.tree.flatten(params)
        draw = lambda j, p: _draw(np.random.default_rng((i, j)), p)
        return treedef.unflatten([draw(j, p) for j, p in enumerate(leaves)])

    def run(self, steps=3, step=None, params=None):
        """The updates of a few steps and the last state, parameters left where they are."""
        step, params = step or self.step, self.params if params is None else params
        state, updates = self.tx.init(params), []
        for i in range(steps):
            update, state = step(self.grads(i, params), state, params)
            updates.append(update)
        return updates, state


def _draw(rng, p):
    x = rng.normal(size=p.shape)
    if jnp.iscomplexobj(p):
        x = x + 1j * rng.normal(size=p.shape)
    return jnp.asarray(x, p.dtype)


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Runs a piece line by line: inside a compiled function its Python runs once alone."""
    with jax.disable_jit():
        yield


# --- the promises ------------------------------------------------------------


def _runs(subject: Subject) -> str:
    with _as_written():
        updates, _ = subject.run()
    for update in updates:
        assert_same_structure(update, subject.params, "updates and gradients")
    return "three updates, shaped like the gradients"


def _structure(subject: Subject) -> str:
    start = subject.tx.init(subject.params)
    with _as_written():
        for steps in (1, 2):
            assert_same_structure(
                subject.run(steps)[1], start, "the state after a step and from init"
            )
    return f"{len(jax.tree.leaves(start))} arrays, the same after every step"


def _dtypes(subject: Subject) -> str:
    start, after = subject.tx.init(subject.params), subject.run(2, jax.jit(subject.step))[1]
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(after), strict=True
    ):
        if jnp.result_type(x) != jnp.result_type(y):
            names = f"{jnp.result_type(x)} from init and {jnp.result_type(y)} after a step"
            raise Broken(f"{path_text(path)!r} is {names}.")
    return "every array keeps its dtype"


def _pure(subject: Subject) -> str:
    grads, params = subject.grads(), subject.params
    state = subject.run(1)[1]
    given = jax.tree.map(np.array, jax.tree.map(as_numpy, (grads, state, params)))
    with _as_written():
        once, twice = (subject.step(grads, state, params) for _ in range(2))
    assert_same((grads, state, params), given, "the arguments before and after an update", 0.0)
    assert_same(once, twice, "two updates with the same arguments", 0.0)
    return "the same arguments, the same result, and arguments left alone"


def _jit(subject: Subject) -> str:
    with _as_written():
        eager = subject.run()
    assert_same(
        subject.run(3, jax.jit(subject.step)), eager, "jitted and eager steps", subject.tolerance
    )
    return f"equal to {subject.tolerance:g}"


def _one_trace(subject: Subject) -> str:
    traces = []

    def step(grads, state, params):
        traces.append(jax.tree.map(lambda x: jax.typeof(x).weak_type, state))
        return subject.step(grads, state, params)

    subject.run(4, jax.jit(step))
    if len(traces) > 1:
        weak = jax.tree.map(lambda x, y: x != y, *traces[:2])
        flags = jax.tree_util.tree_leaves_with_path(weak)
        where = next((path_text(path) for path, flag in flags if flag), None)
        why = f": {where!r} is weakly typed in one of them" if where else ""
        raise Broken(f"four steps were traced {len(traces)} times{why}.")
    return "four steps, one trace"


def _scan(subject: Subject) -> str:
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(subject.grads(i) for i in range(3)))

    def body(state, grads):
        updates, state = subject.step(grads, state, subject.params)
        return state, updates

    final, updates = jax.lax.scan(body, subject.tx.init(subject.params), stacked)
    last = jax.tree.map(lambda x: x[-1], updates)
    expected, state = subject.run(3, jax.jit(subject.step))
    assert_same((last, final), (expected[-1], state), "scanned and single steps", subject.tolerance)
    return f"three steps in a scan, equal to {subject.tolerance:g}"


def _vmap(subject: Subject) -> str:
    problems = [subject.params, jax.tree.map(lambda p: 2 * p + 1, subject.params)]
    stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
    grads = [subject.grads(i) for i in range(2)]
    state = jax.vmap(subject.tx.init)(stack(problems))
    updates, state = jax.jit(jax.vmap(subject.step))(stack(grads), state, stack(problems))
    step = jax.jit(subject.step)
    for i, (g, p) in enumerate(zip(grads, problems, strict=True)):
        alone = step(g, subject.tx.init(p), p)
        mine = jax.tree.map(lambda x, i=i: x[i], (updates, state))
        assert_same(mine, alone, "batched and single steps", subject.tolerance)
    return f"a batch of two, equal to {subject.tolerance:g}"


def _donation(subject: Subject) -> str:
    expected = subject.run(2, jax.jit(subject.step))[1]
    donating = jax.jit(lambda s, p, g: (*subject.step(g, s, p), p), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, subject.params)
    state = subject.tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a buffer could not be used harms nobody
        for i in range(2):
            _, state, params = donating(state, params, subject.grads(i))
    assert_same(state, expected, "states with and without donation", subject.tolerance)
    return "state and parameters given away, the same result"


def _half(subject: Subject) -> str:
    real = [jnp.issubdtype(p.dtype, jnp.floating) for p in jax.tree.leaves(subject.params)]
    if not all(real):
        raise Inapplicable("some parameters are complex.")
    for dtype in (jnp.bfloat16, jnp.float16):
        params = jax.tree.map(lambda p, d=dtype: p.astype(d), subject.params)
        updates, _ = subject.run(2, jax.jit(subject.step), params)
        for path, u in jax.tree_util.tree_leaves_with_path(updates):
            if u.dtype != dtype:
                where = path_text(path[1:])
                raise Broken(
                    f"the update of {where!r} is {u.dtype}, its gradient {dtype.__name__}."
                )
        assert_finite(updates[-1], f"an update in {dtype.__name__}")
    return "bfloat16 and float16: finite updates in the gradient's dtype"


def _zeros(subject: Subject) -> str:
    zero = jax.tree.map(jnp.zeros_like, subject.params)
    state = subject.tx.init(subject.params)
    for _ in range(2):
        updates, state = jax.jit(subject.step)(zero, state, subject.params)
        assert_finite(updates, "an update for zero gradients")
        assert_finite(_inexact(state), "the state after zero gradients")
    return "finite updates and state"


def _inexact(tree: Any) -> list:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]


def _masked(subject: Subject) -> str:
    if subject.has_extra:
        raise Inapplicable("the extra arguments are made for these parameters.")
    for hole in (optax.MaskedNode(), None):
        name = type(hole).__name__
        beside = lambda tree, hole=hole: (
            {**tree, "masked": hole} if isinstance(tree, dict) else (tree, hole)
        )
        params, grads = beside(subject.params), beside(subject.grads())
        state = subject.tx.init(params)
        updates, state = jax.jit(subject.step)(grads, state, params)
        assert_same_structure(updates, grads, f"updates and gradients with {name} among them")
        alone, _ = subject.run(1, jax.jit(subject.step))
        same = jax.tree.leaves(updates), jax.tree.leaves(alone[0])
        assert_same(*same, f"updates with and without {name} beside them", subject.tolerance)
    return "MaskedNode and None stay what they are"


def _checkpoint(subject: Subject) -> str:
    step = jax.jit(subject.step)
    state = subject.run(2, step)[1]
    data = pickle.dumps([as_numpy(x) for x in jax.tree.leaves(state)])
    fresh, treedef = jax.tree.flatten(subject.tx.init(subject.params))
    leaves = map(_like, pickle.loads(data), fresh)
    restored = treedef.unflatten(leaves)
    after = [step(subject.grads(2), s, subject.params) for s in (state, restored)]
    assert_same(after[1], after[0], "steps from a state and from the same one restored", 0.0)
    return f"{len(data)} bytes, and the next step equal to the bit"


def _like(saved: np.ndarray, fresh: Any) -> Any:
    if hasattr(fresh, "dtype") and jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(fresh))
    return jnp.asarray(saved)


class Property(NamedTuple):
    """A promise: its name, how it is judged, and the promises without which it is not."""

    name: str
    judge: Callable[[Subject], str]
    needs: tuple[str, ...] = ()


PROPERTIES = (
    Property("runs", _runs),
    Property("purity", _pure, ("runs",)),
    Property("state structure", _structure, ("runs", "purity")),
    Property("jit", _jit, ("runs", "purity", "state structure")),
    Property("state dtypes", _dtypes, ("jit",)),
    Property("one trace", _one_trace, ("jit", "state dtypes")),
    Property("scan", _scan, ("jit", "state dtypes")),
    Property("vmap", _vmap, ("jit",)),
    Property("donation", _donation, ("jit", "state dtypes")),
    Property("half precision", _half, ("jit",)),
    Property("zero gradients", _zeros, ("jit",)),
    Property("masked leaves", _masked, ("jit",)),
    Property("checkpoint", _checkpoint, ("jit",)),
)
