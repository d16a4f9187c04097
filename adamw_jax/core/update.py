"""Update: the reading by arrays, which is the optimizer.

A flow is run on whole trees.  An expression of elementwise pieces is run leaf by
leaf, by a program that is traced once (`adamw_jax.core.programs`).  What is declared
leafwise is traced once for each shape of a leaf.  Everything else sees the tree.

Outside of `jit` the same is done in small compiled programs, one for each shape of a
leaf or for each piece.  What holds Python of the user's (a function as a schedule, a
transformation of another library) is run as Python, at every step.
"""

import collections
import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from adamw_jax.core import trees
from adamw_jax.core.flow import (
    Flow,
    Formula,
    Owners,
    Path,
    PerTree,
    Reading,
    Run,
    Value,
    interpret,
    opened,
)
from adamw_jax.core.numerics import count_up
from adamw_jax.core.programs import (
    Inputs,
    Node,
    is_data,
    is_elementwise,
    numbers,
    on_leaf,
    plan,
    program,
)
from adamw_jax.core.trees import cast, real_dtype

SMALL = 256  # leaves of a tree for which a piece is compiled whole, outside of jit


# --- init ----------------------------------------------------------------------------------


class _Params(Value):
    """The parameters, whatever happens to the updates on their way."""

    def __init__(self, params: Any):
        self.params = params

    def each(self, op: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        return self

    def __getitem__(self, name: str) -> Any:
        return self


_lenient = contextvars.ContextVar("lenient", default=False)


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Within it `init` does not mind leaves that are dealt out in a way nobody meant.

    A context, since parts are also begun by pieces that hold them."""
    token = _lenient.set(True)
    try:
        yield
    finally:
        _lenient.reset(token)


class _Init(Reading):
    """The reading that makes the state of every slot."""

    def __init__(self) -> None:
        self.new: dict[str, Any] = {}

    def part(self, run: Run, slot: str, u: Any) -> Any:
        self.new[slot] = init_part(run.parts[slot], u.params)
        return u

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        found = owners.of(u.params)
        if not _lenient.get():
            owners.check(found, u.params)
        for slot, part in run.parts.items():
            own = trees.select(u.params, [owner == slot for owner in found])
            self.new[slot] = init_part(part, own)
        return u


def init_part(tx: Any, params: Any) -> Any:
    """The state of a part inside a larger expression."""
    tx = opened(tx)
    if isinstance(tx.body, Flow):
        reading = _Init()
        interpret(tx, _Params(params), reading)
        return _mirrored(tx.body, reading.new)
    return tx.body.init(params)


def _mirrored(body: Flow, states: Mapping[str, Any]) -> Any:
    """The states of the parts as the state of what holds them: a tuple, or a dict by slot."""
    return tuple(states[slot] for slot in body.parts) if body.listed else dict(states)


def init_formula(body: Formula, params: Any) -> Any:
    """The state of an elementwise piece, every field where it starts."""
    if body.State is None:
        return optax.EmptyState()
    fields: dict[str, Any] = {"count": jnp.zeros((), jnp.int32)} if body.counts else {}
    for field, start in body.starts.items():
        if isinstance(start, PerTree):
            fields[field] = jnp.asarray(start.start, float)
        elif start == "theta":
            fields[field] = trees.copies(params)
        else:
            value = body.arguments[start] if isinstance(start, str) else start
            fields[field] = jax.tree.map(functools.partial(_filled, body, field, value), params)
    return body.State(**fields)


def _filled(body: Formula, field: str, value: Any, p: Any) -> jax.Array:
    return jnp.full_like(p, value, dtype=body.stored(field, p.dtype))


# --- update --------------------------------------------------------------------------------


def update_part(
    tx: Any, updates: Any, state: Any, params: Any = None, extra: Mapping[str, Any] = {}
) -> Any:
    """One update of a part inside a larger expression: no checks, no casts."""
    tx = opened(tx)
    if isinstance(tx.body, Flow | Formula):
        return _update_opened(tx, updates, state, params, extra)
    like = updates if params is None else params
    if type(state) in (dict, list):
        state = _meant(tx, state, like)
    try:
        return _update_opened(tx, updates, state, params, extra)
    except (AttributeError, TypeError, ValueError):
        meant = _rehung(tx, state, like)
        if meant is None:
            raise
    return _update_opened(tx, updates, meant, params, extra)


def _update_opened(tx: Any, updates: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> Any:
    if is_elementwise(tx) and tx.consumes == tx.produces == "tree":
        return _update_elementwise(tx, updates, state, params)
    eager = not is_traced((tx, updates, state, params, extra))
    if eager and holds_python(tx, extra):
        return _update_whole(tx, updates, state, params, extra)
    if tx.separable and not trees.is_bare(updates):
        return trees.update_each_leaf(tx, _update_leaf, updates, state, params)
    if tx.separable and eager:  # the program that it is run by as one leaf of many
        return _update_leaf(tx, updates, state, params)
    small = len(jax.tree.leaves(updates)) <= SMALL
    if eager and small and not isinstance(tx.body, Flow):
        return _compiled(jax.tree.structure(tx))(tx, updates, state, params, extra)
    return _update_whole(tx, updates, state, params, extra)


def is_traced(tree: Any) -> bool:
    """Whether a value in a tree is known only when a program runs."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def holds_python(tx: Any, extra: Mapping[str, Any] = {}) -> bool:
    """Whether an expression holds Python that is to be run at every update: a function in the
    place of a schedule, a transformation of another library; or an extra argument is such."""
    if not all(_is_arraylike(x) for x in jax.tree.leaves(dict(extra))):
        return True
    if "python" not in tx.__dict__:
        tx.__dict__["python"] = _holds_python(tx)
    known: bool = tx.__dict__["python"]
    return known


def _holds_python(tx: Any) -> bool:
    tx = opened(tx)
    if tx.is_foreign:
        return True
    body = tx.body
    if isinstance(body, Formula):
        return any(not is_data(tx.arguments[k]) for k in plan(tx).nodes[0].schedules)
    schedules = (tx.arguments[k] for k in tx.factory.scheduled if k in tx.arguments)
    own = any(callable(x) and not is_data(x) for x in schedules)
    return own or any(map(_holds_python, tx.parts.values()))


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex)


def _update_whole(tx: Any, updates: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> Any:
    """What the body of a piece or a combinator says."""
    if isinstance(tx.body, Flow):
        reading = _Update(tx, state, params, extra)
        out = interpret(tx, updates, reading)
        return out, _mirrored(tx.body, reading.new)
    return optax.with_extra_args_support(tx.body).update(updates, state, params, **extra)


def update_flow(
    tx: Any, updates: Any, state: Any, params: Any = None, extra: Mapping[str, Any] = {}
) -> Any:
    """The update of one combinator by itself."""
    return _update_whole(tx, updates, state, params, extra)


class _Update(Reading):
    """The reading by trees of arrays: every slot has a state, and leaves a new one."""

    def __init__(self, tx: Any, state: Any, params: Any, extra: Mapping[str, Any]):
        name, body = tx.factory.__name__, tx.body
        self.states = states_of(name, tuple(body.parts), state, listed=body.listed)
        self.params, self.extra = params, extra
        self.new: dict[str, Any] = {}

    def part(self, run: Run, slot: str, u: Any) -> Any:
        part, state = run.parts[slot], self.states[slot]
        out, self.new[slot] = update_part(part, u, state, self.params, self.extra)
        return out

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        found = owners.of(u if self.params is None else self.params)
        for slot, part in run.parts.items():
            flags = [owner == slot for owner in found]
            few, extra = None, self.extra
            if self.params is not None:
                few = trees.select(self.params, flags)
                of_few = functools.partial(_of_selected, few, self.params, flags)
                extra = {k: of_few(x) if callable(x) else x for k, x in extra.items()}
            own = trees.select(u, flags)
            chosen, self.new[slot] = update_part(part, own, self.states[slot], few, extra)
            u = trees.put_back(chosen, u, flags)
        return u


def _of_selected(
    few: Any, params: Any, flags: list[bool], function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of all parameters (a loss) as one of the selected, the others fixed."""

    def whole(x: Any) -> Any:
        alike = jax.tree.structure(x) == jax.tree.structure(few)
        return trees.put_back(x, params, flags) if alike else x

    return lambda *arguments, **keywords: function(*map(whole, arguments), **keywords)


@jax.jit
def _update_leaf(tx: Any, update: Any, state: Any, param: Any) -> Any:
    # A leaf is a tree of its own: the same code serves, and JAX keeps one trace per shape.
    return _update_whole(tx, update, state, param, {})


@functools.lru_cache(maxsize=64)
def _compiled(structure: Any) -> Callable[..., Any]:
    """A compiled update for each kind of expression, forgotten when others have come."""
    return jax.jit(_update_whole)


# --- elementwise expressions, leaf by leaf -------------------------------------------------


def update_formula(tx: Any, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """The update of one elementwise piece by itself."""
    return _update_elementwise(tx, updates, state, params)


class _Dealt:
    """The state of an elementwise expression, taken apart: counts and numbers of the tree, and
    columns with an array for every leaf."""

    def __init__(self, tx: Any, state: Any, updates: Any):
        self.tx, self.pieces = tx, plan(tx).pieces
        self.states = [_state_at(tx, state, node.path) for node in self.pieces]
        self.counts: list[Any] = []
        self.shared: list[dict[str, Any]] = []
        self.fields: list[list[str]] = []  # of every piece, as JAX sorts them
        self.columns: list[list[Any]] = []
        self.treedef = jax.tree.structure(updates)
        for i, (node, own) in enumerate(zip(self.pieces, self.states, strict=True)):
            body, name = node.tx.body, node.tx.factory.__name__
            if body.State is not None:
                own = self.states[i] = _named(body.State, own)
                expect_state(name, body.State, own)
            self.counts.append(own.count if body.counts else None)
            alone = {k for k, start in body.starts.items() if isinstance(start, PerTree)}
            self.shared.append({k: getattr(own, k) for k in body.starts if k in alone})
            self.fields.append(sorted(set(body.starts) - alone))
            for field in self.fields[-1]:
                tree = _hung_as(updates, getattr(own, field))
                _expect_alike(name, updates, tree, self.treedef)
                self.columns.append(jax.tree.leaves(tree))

    def of_leaf(self, i: int) -> list[dict[str, Any]]:
        column = iter(self.columns)
        return [{k: next(column)[i] for k in fields} for fields in self.fields]

    def gathered(self, columns: list[list[Any]], counts: list[Any], shared: list[Any]) -> Any:
        """The state with new columns, counts and numbers."""
        column, new = iter(columns), {}
        for i, node in enumerate(self.pieces):
            body = node.tx.body
            fields = {k: self.treedef.unflatten(next(column)) for k in self.fields[i]}
            fields |= {"count": counts[i]} if body.counts else {}
            fields |= {k: cast(shared[i][k], x) for k, x in self.shared[i].items()}
            kept = body.State is None
            new[node.path] = self.states[i] if kept else body.State(**fields)
        return _assembled(self.tx, new, ())


def _state_at(tx: Any, state: Any, path: tuple[str, ...]) -> Any:
    """The state of the piece at a path."""
    for slot in path:
        tx = opened(tx)
        body, name = tx.body, tx.factory.__name__
        state = states_of(name, tuple(body.parts), state, listed=body.listed)[slot]
        tx = body.parts[slot]
    return state


def _assembled(tx: Any, states: Mapping[Path, Any], path: Path) -> Any:
    tx = opened(tx)
    if not isinstance(tx.body, Flow):
        return states[path]
    inner = {k: _assembled(part, states, (*path, k)) for k, part in tx.body.parts.items()}
    return _mirrored(tx.body, inner)


def _expect_alike(name: str, updates: Any, old: Any, structure: Any) -> None:
    """Raises where a field was made for other parameters."""
    if jax.tree.structure(old) != structure:
        raise ValueError(
            f"{name}: the updates are {structure}, the state was made for "
            f"{jax.tree.structure(old)}. Make it with init, from these parameters."
        )
    for g, m in zip(jax.tree.leaves(updates), jax.tree.leaves(old), strict=True):
        if jnp.shape(g) != jnp.shape(m):
            raise ValueError(
                f"{name}: an update has shape {jnp.shape(g)}, its accumulator {jnp.shape(m)}. "
                "They must be equal; nothing is broadcast."
            )


def _update_elementwise(tx: Any, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    leaves, treedef = jax.tree.flatten(updates)
    thetas = [None] * len(leaves) if params is None else jax.tree.leaves(params)
    if len(thetas) != len(leaves):
        raise ValueError(
            f"{tx.factory.__name__}: got {len(leaves)} arrays of updates for {len(thetas)} "
            "parameters. Pass one each; of the branches of a fork make one by merge or pick."
        )
    dealt, nodes = _Dealt(tx, state, updates), plan(tx).nodes
    counts = [None if n is None else _next(n) for n in dealt.counts]
    tree = Inputs(_numbers(nodes, dealt.counts), counts, dealt.shared)
    if not leaves:  # the counts go on
        blank = jnp.zeros(0)
        fields = [dict.fromkeys(names, blank) for names in dealt.fields]
        theta = None if params is None else blank
        out = on_leaf(tx, _as_arrays(tree._replace(u=blank, theta=theta, fields=fields)))
        return updates, dealt.gathered([[] for _ in dealt.columns], counts, out.shared)
    traced = is_traced((updates, state, params, tree))
    done, shared = _each_leaf(tx, tree, dealt, leaves, thetas, traced)
    update, *columns = (list(column) for column in zip(*done, strict=True))
    return treedef.unflatten(update), dealt.gathered(columns, counts, shared)


_next = jax.jit(count_up)


def _numbers(nodes: tuple[Node, ...], counts: list[Any]) -> list[list[Any]]:
    """The numbers of every node, and the values of its schedules at this update."""
    count, found = iter(counts), []
    for node in nodes:
        now = next(count) if isinstance(node.tx.body, Formula) else None
        found.append(numbers(node) + [_value(node.tx.arguments[k], now) for k in node.schedules])
    return found


def _value(schedule: Callable[..., Any], count: Any) -> Any:
    """A schedule at this update; as Python, if it is a function of the user's."""
    return _value_compiled(schedule, count) if is_data(schedule) else schedule(count)


_value_compiled = jax.jit(lambda schedule, count: schedule(count))


def _each_leaf(
    tx: Any, tree: Inputs, dealt: _Dealt, leaves: list[Any], thetas: list[Any], traced: bool
) -> tuple[list[Any], Any]:
    """The update and the fields of every leaf, and the state of the tree."""
    given = [
        [x for x in mine if x is not None]
        for mine in zip(map(_as_array, leaves), thetas, *dealt.columns, strict=True)
    ]
    kinds = [(x[0].shape, *(y.dtype for y in x)) for x in given]
    often = collections.Counter(kinds)
    of_tree = jax.tree.leaves((tree.numbers, tree.t, tree.shared))
    tree_placed = traced and any(_is_placed(x) for x in of_tree if isinstance(x, jax.Array))
    programs: dict[Any, tuple[Any, Any]] = {}  # by dtypes: a program, and what the tree gives it
    done: list[list[Any]] = []
    shared = None
    for i, (mine, kind) in enumerate(zip(given, kinds, strict=True)):
        looked_at = mine if traced else mine[:1]
        which = kind[1:], any(map(_is_placed, looked_at)) or tree_placed
        if which not in programs:
            known = None if which[1] else program(tx, _of_leaf(tree, dealt, mine[0], thetas[i], i))
            handed, shared = known.scalars(of_tree) if known else (None, shared)
            programs[which] = known, handed
        known, handed = programs[which]
        if known is not None:
            done.append((known.inline if traced and often[kind] == 1 else known.leaf)(handed, mine))
            continue
        out = on_leaf(tx, _as_arrays(_of_leaf(tree, dealt, mine[0], thetas[i], i)))
        done.append(jax.tree.leaves((out.u, out.fields)))
        shared = out.shared if shared is None else shared
    return done, shared


def _of_leaf(tree: Inputs, dealt: _Dealt, u: Any, theta: Any, i: int) -> Inputs:
    return tree._replace(u=u, theta=theta, fields=dealt.of_leaf(i))


def _as_array(x: Any) -> jax.Array:
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _is_placed(x: Any) -> bool:
    """Whether the type of an array says where it lies, which its operations must carry on."""
    kinds = jax.typeof(x).sharding.mesh.axis_types
    return any(kind is not AxisType.Auto for kind in kinds)


def _as_arrays(inputs: Inputs) -> Inputs:
    """The numbers in the dtype of the leaf, where its formulas are run as they are written."""
    dtype = real_dtype(inputs.u.dtype)
    plain = lambda x: x if isinstance(x, complex) else jnp.asarray(x, dtype)
    return inputs._replace(
        numbers=jax.tree.map(plain, inputs.numbers),
        t=jax.tree.map(plain, inputs.t),
        shared=jax.tree.map(plain, inputs.shared),
    )


# --- states --------------------------------------------------------------------------------


def states_of(
    function: str, names: tuple[str, ...], state: Any, *, listed: bool = False
) -> dict[str, Any]:
    """The state of each part by its name; raises where the state is another optimizer's."""
    try:
        if listed and not isinstance(state, dict):
            return dict(zip(names, state, strict=True))
        if (not listed or isinstance(state, dict)) and len(state) == len(names):
            return {name: state[name] for name in names}
    except (KeyError, TypeError, ValueError):
        pass
    wanted = f"{len(names)} states in order" if listed else f"the states of {', '.join(names)}"
    raise _of_another(function, state, wanted)


def _named(kind: Any, state: Any) -> Any:
    """A state that was restored as a dict of its fields, as the named tuple that it was."""
    raw = isinstance(state, dict) and set(state) == set(kind._fields)
    return kind(**state) if raw else state


def _hung_as(like: Any, tree: Any) -> Any:
    """A tree in the containers of another with the same names, where it was restored in lists
    and dicts; else as it is."""
    if jax.tree.structure(tree) == jax.tree.structure(like):
        return tree
    given = {trees.path_names(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    names = [trees.path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(like)]
    if set(names) != set(given):
        return tree
    return jax.tree.unflatten(jax.tree.structure(like), [given[name] for name in names])


def _meant(tx: Any, state: Any, params: Any) -> Any:
    """What the state of a piece was before it was restored as dicts and lists."""
    like = jax.eval_shape(tx.body.init, params)
    meant = _hung_as(like, state)
    if jax.tree.structure(meant) != jax.tree.structure(like):
        raise _of_another(tx.factory.__name__, state, f"a {type(like).__name__}")
    return meant


def _rehung(tx: Any, state: Any, params: Any) -> Any:
    """The state of a piece that could not use it, if it only has lists for tuples; else None."""
    try:
        meant = _hung_as(jax.eval_shape(tx.body.init, params), state)
    except Exception:  # what the piece said of the state is the better error
        return None
    return None if meant is state else meant


def expect_state(function: str, kind: Any, state: Any) -> None:
    """Raises where the state of a piece is another optimizer's."""
    if not all(hasattr(state, field) for field in kind._fields):
        raise _of_another(function, state, f"a {kind.__name__}")


def _of_another(function: str, state: Any, wanted: str) -> ValueError:
    return ValueError(
        f"{function}: the state is {_outline(state)}, not {wanted}: it belongs to another "
        "optimizer. Pass what init or the last update of this one returned; restore reads a "
        "checkpoint, transplant carries a state over."
    )


def _outline(state: Any) -> str:
    """What a state is, without its arrays."""
    if isinstance(state, dict):
        return f"a dict of {', '.join(map(str, state))}"
    kind, names = type(state).__name__, getattr(state, "_fields", None)
    if names is not None:
        return f"{kind}({', '.join(names)})"
    return f"a tuple of {len(state)}" if isinstance(state, tuple) else kind
