"""The promises that every piece of the library keeps, each one small function.

A promise takes a `Subject` and returns a sentence on what was seen.  It raises
`Broken` with a sentence where it is not kept, `Inapplicable` with a reason
where it says nothing.  `adamw_jax.inspect.check` goes through them all.
"""

import contextlib
import functools
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core.flow import slots
from adamw_jax.core.slots import parts
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.trees import is_key, path_text, widen
from adamw_jax.inspect.contract.compare import (
    Broken,
    as_numpy,
    assert_finite,
    assert_same,
    assert_same_structure,
)
from adamw_jax.inspect.contract.declarations import elementwise, equation, judged, traits


class Inapplicable(Exception):
    """The property says nothing of this piece; the message says why."""


class Subject:
    """What is checked: a transformation, parameters for it, extra arguments from parameters.

    What several promises look at is run once: three steps on random gradients,
    the parameters left where they are."""

    def __init__(self, tx: Any, params: Any, extra: Any = None, tolerance: float = 1e-4):
        self.tx = optax.with_extra_args_support(tx)
        self.params = jax.tree.map(jnp.asarray, params)
        self.has_extra = extra is not None
        self.extra = extra if callable(extra) else (lambda params: dict(extra or {}))
        self.tolerance = tolerance
        self.jitted = jax.jit(self.step)

    def step(self, grads, state, params):
        return self.tx.update(grads, state, params, **self.extra(params))

    def grads(self, i=0, params=None):
        """Gradients of size about 1, others for each i."""
        params = self.params if params is None else params
        leaves, treedef = jax.tree.flatten(params)
        draw = lambda j, p: _draw(np.random.default_rng((i, j)), p)
        return treedef.unflatten([draw(j, p) for j, p in enumerate(leaves)])

    def run(self, step, count=3, params=None):
        """(updates, state) after each of a few steps."""
        params = self.params if params is None else params
        state, results = self.tx.init(params), []
        for i in range(count):
            results.append(step(self.grads(i, params), state, params))
            state = results[-1][1]
        return results

    @functools.cached_property
    def eager_steps(self):
        with _as_written():
            return self.run(self.step)

    @functools.cached_property
    def jitted_steps(self):
        return self.run(self.jitted)


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Runs a piece line by line: inside a compiled function its Python runs once alone."""
    with jax.disable_jit():
        yield


def _draw(rng, p):
    x = rng.normal(size=p.shape)
    if jnp.iscomplexobj(p):
        x = x + 1j * rng.normal(size=p.shape)
    return jnp.asarray(x, p.dtype)


def _runs(subject: Subject) -> str:
    for update, _ in subject.eager_steps:
        assert_same_structure(update, subject.params, "updates and gradients")
    return "three updates, shaped like the gradients"


def _pure(subject: Subject) -> str:
    grads, state, params = subject.grads(), subject.eager_steps[0][1], subject.params
    seen = lambda: jax.tree.map(lambda x: np.array(as_numpy(x)), (grads, state, params))
    given = seen()
    with _as_written():
        once, twice = (subject.step(grads, state, params) for _ in range(2))
    assert_same(seen(), given, "the arguments before and after an update", 0.0)
    assert_same(once, twice, "two updates with the same arguments", 0.0)
    return "the same arguments, the same result, and arguments left alone"


def _structure(subject: Subject) -> str:
    start = subject.tx.init(subject.params)
    for _, state in subject.eager_steps:
        assert_same_structure(state, start, "the state after a step and from init")
    return f"{len(jax.tree.leaves(start))} arrays, the same after every step"


def _jit(subject: Subject) -> str:
    pairs = zip(subject.jitted_steps, subject.eager_steps, strict=True)
    for jitted, eager in pairs:
        assert_same(jitted, eager, "jitted and eager steps", subject.tolerance)
    return f"equal to {subject.tolerance:g}"


def _dtypes(subject: Subject) -> str:
    start = jax.tree_util.tree_leaves_with_path(subject.tx.init(subject.params))
    for _, state in subject.jitted_steps:
        for (path, x), y in zip(start, jax.tree.leaves(state), strict=True):
            if jnp.result_type(x) != jnp.result_type(y):
                names = f"{jnp.result_type(x)} from init and {jnp.result_type(y)} after a step"
                raise Broken(f"{path_text(path)!r} is {names}.")
    return "every array keeps its dtype"


def _one_trace(subject: Subject) -> str:
    traces = []

    def step(grads, state, params):
        traces.append(jax.tree.map(lambda x: jax.typeof(x).weak_type, state))
        return subject.step(grads, state, params)

    subject.run(jax.jit(step))
    if len(traces) > 1:
        weak = jax.tree.map(lambda x, y: x != y, *traces[:2])
        flags = jax.tree_util.tree_leaves_with_path(weak)
        where = next((path_text(path) for path, flag in flags if flag), None)
        why = f": {where!r} is weakly typed in one of them" if where else ""
        raise Broken(f"three steps were traced {len(traces)} times{why}.")
    return "three steps, one trace"


def _scan(subject: Subject) -> str:
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(subject.grads(i) for i in range(3)))

    def body(state, grads):
        updates, state = subject.step(grads, state, subject.params)
        return state, updates

    final, updates = jax.lax.scan(body, subject.tx.init(subject.params), stacked)
    last = jax.tree.map(lambda x: x[-1], updates), final
    assert_same(last, subject.jitted_steps[-1], "scanned and single steps", subject.tolerance)
    return f"three steps in a scan, equal to {subject.tolerance:g}"


def _vmap(subject: Subject) -> str:
    problems = [subject.params, jax.tree.map(lambda p: 2 * p + 1, subject.params)]
    stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
    grads = [subject.grads(i) for i in range(2)]
    state = jax.vmap(subject.tx.init)(stack(problems))
    results = jax.jit(jax.vmap(subject.step))(stack(grads), state, stack(problems))
    for i, (g, p) in enumerate(zip(grads, problems, strict=True)):
        alone = subject.jitted(g, subject.tx.init(p), p)
        mine = jax.tree.map(lambda x, i=i: x[i], results)
        assert_same(mine, alone, "batched and single steps", subject.tolerance)
    return f"a batch of two, equal to {subject.tolerance:g}"


def _donation(subject: Subject) -> str:
    donating = jax.jit(lambda s, p, g: (*subject.step(g, s, p), p), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, subject.params)
    state = subject.tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a buffer could not be used harms nobody
        for i, (_, expected) in enumerate(subject.jitted_steps):
            _, state, params = donating(state, params, subject.grads(i))
            what = "states with and without donation"
            assert_same(jax.tree.map(jnp.copy, state), expected, what, subject.tolerance)
    return "state and parameters given away, the same result"


def _half(subject: Subject) -> str:
    real = [jnp.issubdtype(p.dtype, jnp.floating) for p in jax.tree.leaves(subject.params)]
    if not all(real):
        raise Inapplicable("some parameters are complex.")
    for dtype in (jnp.bfloat16, jnp.float16):
        params = jax.tree.map(lambda p, d=dtype: p.astype(d), subject.params)
        for updates, _ in subject.run(subject.jitted, 2, params):
            for path, u in jax.tree_util.tree_leaves_with_path(updates):
                if u.dtype != dtype:
                    names = f"{u.dtype}, its gradient {dtype.__name__}"
                    raise Broken(f"the update of {path_text(path)!r} is {names}.")
            assert_finite(updates, f"an update in {dtype.__name__}")
    return "bfloat16 and float16: finite updates in the gradient's dtype"


def _zeros(subject: Subject) -> str:
    zero = jax.tree.map(jnp.zeros_like, subject.params)
    state = subject.tx.init(subject.params)
    for _ in range(2):
        updates, state = subject.jitted(zero, state, subject.params)
        assert_finite(updates, "an update for zero gradients")
        assert_finite(_inexact(state), "the state after zero gradients")
    return "finite updates and state"


def _inexact(tree: Any) -> list:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]


def _masked(subject: Subject) -> str:
    if subject.has_extra:
        raise Inapplicable("the extra arguments are made for these parameters.")
    beside = lambda tree, x: {**tree, "masked": x} if isinstance(tree, dict) else (tree, x)
    try:
        subject.tx.init(beside(subject.params, jax.tree.leaves(subject.params)[0]))
    except Exception:
        raise Inapplicable("it takes no other tree than this one.") from None
    alone = jax.tree.leaves(subject.jitted_steps[0][0])
    for name, hole in (("MaskedNode", optax.MaskedNode()), ("None", None)):
        params, grads = beside(subject.params, hole), beside(subject.grads(), hole)
        updates, _ = subject.jitted(grads, subject.tx.init(params), params)
        assert_same_structure(updates, grads, f"updates and gradients with {name} among them")
        what = f"updates with and without {name} beside them"
        assert_same(jax.tree.leaves(updates), alone, what, subject.tolerance)
    return "MaskedNode and None stay what they are"


def _checkpoint(subject: Subject) -> str:
    state = subject.jitted_steps[1][1]
    data = pickle.dumps([as_numpy(x) for x in jax.tree.leaves(state)])
    fresh, treedef = jax.tree.flatten(subject.tx.init(subject.params))
    restored = treedef.unflatten(map(_like, pickle.loads(data), fresh))
    after = [subject.jitted(subject.grads(2), s, subject.params) for s in (restored, state)]
    what = "steps from a state restored and from the same one kept"
    assert_same(after[0], after[1], what, 0.0)
    return f"{len(data)} bytes, and the next step equal to the bit"


def _like(saved: np.ndarray, fresh: Any) -> Any:
    if is_key(fresh):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(fresh))
    return jnp.asarray(saved)


def _leafwise(subject: Subject) -> str:
    if not isinstance(subject.tx, Transformation):
        raise Inapplicable("it is no expression of this library.")
    pieces = {"": subject.tx} | parts(subject.tx)
    claims = {
        path: p for path, p in pieces.items() if p.separable and not (p.composite or slots(p))
    }
    params = widen(subject.params)
    if not claims or len(jax.tree.leaves(params)) < 2:
        raise Inapplicable("no part claims to treat every leaf alone, or there is one leaf.")
    for path, piece in claims.items():
        dealt, whole = piece.init(params), piece.body.init(params)
        for i in range(2):
            one, dealt = piece.update(subject.grads(i, params), dealt, params)
            all_, whole = piece.body.update(subject.grads(i, params), whole, params)
            what = f"updates of {path or piece!r} leaf by leaf and all at once"
            assert_same(one, all_, what, subject.tolerance)
    return "what is declared leafwise does not look beyond its leaf"


def _declared(judge: Callable) -> Callable[[Subject], str]:
    """The promise that what pieces declare of themselves is so."""

    def promise(subject: Subject) -> str:
        kept, reasons = judged(subject.tx, subject.params, subject.extra, judge)
        if not kept:
            raise Inapplicable(reasons[0] if reasons else "no part declares anything of the kind.")
        left = f"; {len(reasons)} are not judged: {reasons[0]}" if reasons else ""
        return f"{kept} of the parts do what they say{left}"

    return promise


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
    Property("leafwise", _leafwise, ("jit",)),
    Property("elementwise", _declared(elementwise), ("jit",)),
    Property("equation", _declared(equation), ("jit",)),
    Property("traits", _declared(traits), ("jit",)),
)
