"""Programs: an elementwise expression as straight-line code, whatever the shapes.

An expression whose pieces are all elementwise does the same few operations to every
element.  It is traced once, on a small array; what depends on numbers alone (bias
corrections, the learning rate) is computed once for the tree, and what is left is
replayed for every leaf, once for each shape.  A formula that does not come out as
elementwise operations is run as it is written.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jaxprs

from adamw_jax.core.flow import AFlow, Flow, Formula, Path, Reading, interpret, is_part, opened
from adamw_jax.core.trees import dtype_of, in_precision, widest

SHAPE = (3,)  # of the array on which an expression is traced

# What is done to every element alone.
_WORDS = """
abs add acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp complex conj
convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow
real reduce_precision rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
"""
ELEMENTWISE = frozenset(_WORDS.split())
_INLINED = ("jit", "pjit", "closed_call")


class Node(NamedTuple):
    """One piece or combinator of an expression.

    Attributes:
      path: the slots that lead to it.
      tx: what stands there, opened.
      numbers: the names of its arguments that are numbers.
      schedules: the names of those that are functions of the step, of which a formula
        sees the value.
    """

    path: Path
    tx: Any
    numbers: tuple[str, ...]
    schedules: tuple[str, ...]


class Plan(NamedTuple):
    """What is known of an expression without any array.

    Attributes:
      nodes: everything in it, outermost first.
      key: what decides its program; hyperparameters and Python functions are left out.
      scalar: whether all hyperparameters are single numbers.
    """

    nodes: tuple[Node, ...]
    key: Any
    scalar: bool

    @property
    def pieces(self) -> list[Node]:
        return [node for node in self.nodes if isinstance(node.tx.body, Formula)]


def is_elementwise(tx: Any) -> bool:
    """Whether every piece of an expression is elementwise, and all leaves go the same way."""
    body = opened(tx).body
    if isinstance(body, Flow):
        return not body.splits and all(is_elementwise(part) for part in body.parts.values())
    return isinstance(body, Formula)


def plan(tx: Any) -> Plan:
    """The plan of an elementwise expression, kept with it."""
    if "plan" not in tx.__dict__:
        nodes = tuple(_nodes(tx, ()))
        keys = tuple(_key(node) for node in nodes)
        shapes = [np.shape(x) for node in nodes for x in numbers(node)]
        tx.__dict__["plan"] = Plan(nodes, keys, not any(shapes))
    known: Plan = tx.__dict__["plan"]
    return known


def _nodes(tx: Any, path: Path) -> Iterator[Node]:
    tx = opened(tx)
    formula = isinstance(tx.body, Formula)
    names: tuple[list[str], list[str]] = ([], [])
    for name, value in tx.arguments.items():
        if is_number(value):
            names[0].append(name)
        elif formula and is_schedule(tx, name):
            names[1].append(name)
    yield Node(path, tx, *map(tuple, names))
    if not formula:
        for slot, part in tx.body.parts.items():
            yield from _nodes(part, (*path, slot))


def is_number(value: Any) -> bool:
    """Whether an argument is a number: a hyperparameter that may change without a new program."""
    return isinstance(value, float | complex | np.ndarray | np.inexact | jax.Array)


def is_schedule(tx: Any, name: str) -> bool:
    """Whether an argument of an elementwise piece is a function of the step."""
    value = tx.arguments[name]
    return callable(value) and (name in tx.factory.scheduled or hasattr(value, "peak"))


def is_data(value: Any) -> bool:
    """Whether a schedule is data all through, and holds no Python of the user's."""
    if not hasattr(value, "factory"):
        return False
    inside = jax.tree.leaves(dict(value.arguments), is_leaf=callable)
    return all(is_data(x) for x in inside if callable(x))


def numbers(node: Node) -> list[Any]:
    """The numbers of a node."""
    return [node.tx.arguments[name] for name in node.numbers]


def _key(node: Node) -> Any:
    arguments, parts = node.tx.arguments, getattr(node.tx.body, "parts", {})
    static = tuple(
        (name, type(value), _hashable(value))
        for name, value in arguments.items()
        if name not in (*node.numbers, *node.schedules) and not _holds(value, parts)
    )
    return node.path, node.tx.factory, static, node.numbers, node.schedules, tuple(parts)


def _holds(value: Any, parts: Mapping[str, Any]) -> bool:
    """Whether an argument holds parts, which have keys of their own."""
    return any(
        x is part for x in jax.tree.leaves(value, is_leaf=is_part) for part in parts.values()
    )


class _Same:
    """A value that has no hash, known by its identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


# --- the expression on one leaf ------------------------------------------------------------


class Inputs(NamedTuple):
    """What an expression reads for one leaf.

    Attributes:
      numbers: of every node, and the values of its schedules.
      t: the number of this update, by piece; None where it is not counted.
      shared: the state that is one number for the tree, by piece and field.
      u, theta: the update that enters, and the parameter (None without parameters).
      fields: the state of this leaf, by piece and field.
    """

    numbers: Any
    t: Any
    shared: Any
    u: Any = None
    theta: Any = None
    fields: Any = None


class Outputs(NamedTuple):
    """What it gives: the update, the state of this leaf, and that of the tree."""

    u: Any
    fields: Any
    shared: Any


class _OnLeaf(Reading):
    """The reading by arrays: every formula on one leaf."""

    def __init__(self, tx: Any, inputs: Inputs):
        self.inputs = inputs
        self.nodes = {node.path: i for i, node in enumerate(plan(tx).nodes)}
        self.pieces = {node.path: i for i, node in enumerate(plan(tx).pieces)}
        self.names = [(*node.numbers, *node.schedules) for node in plan(tx).nodes]
        self.fields, self.shared = list(inputs.fields), list(inputs.shared)

    def arguments(self, tx: Any, path: Path) -> dict[str, Any]:
        """The arguments of the node at a path, with the numbers that were put in."""
        i = self.nodes[path]
        return {**tx.arguments, **dict(zip(self.names[i], self.inputs.numbers[i], strict=True))}

    def flow(self, tx: Any, path: Path) -> AFlow:
        body: Flow = tx.body
        numbers = self.names[self.nodes[path]]
        return body.rebuilt(self.arguments(tx, path)) if numbers else body.flow

    def piece(self, tx: Any, u: Any, path: Path) -> Any:
        i, body, name = self.pieces[path], tx.body, tx.factory.__name__
        if isinstance(u, dict):
            raise ValueError(
                f"{name}: got {len(u)} arrays of updates for 1 parameters. Pass one each; of the "
                "branches of a fork make one by merge or pick."
            )
        old, inputs = self.inputs.fields[i], self.inputs
        finer = widest(u.dtype, *(x.dtype for x in old.values()))
        known = {k: in_precision(x, finer) for k, x in old.items()} | inputs.shared[i]
        known["t"] = inputs.t[i]
        if "theta" in body.reads:
            if inputs.theta is None:
                raise ValueError(
                    f"{name}: got no parameters, and it needs them. "
                    "Call update(grads, state, params)."
                )
            known["theta"] = in_precision(inputs.theta, finer)
        formula = body.rebuilt(self.arguments(tx, path))
        out = formula(in_precision(u, finer), **{k: known[k] for k in body.reads})
        out, new = out if isinstance(out, tuple) else (out, {})
        if set(new) != set(body.starts):
            raise ValueError(
                f"{name}: its formula returns the state {', '.join(new) or 'none'}, and declares "
                f"{', '.join(body.starts) or 'none'}. Return a value for every field."
            )
        spread = lambda x: x if jnp.ndim(x) else jnp.broadcast_to(x, u.shape)
        self.fields[i] = {k: in_precision(spread(new[k]), old[k].dtype) for k in old}
        self.shared[i] = {k: new[k] for k in inputs.shared[i]}
        return in_precision(spread(out), u.dtype)


def on_leaf(tx: Any, inputs: Inputs) -> Outputs:
    """One update of one leaf, as it is written."""
    reading = _OnLeaf(tx, inputs)
    with jax.numpy_dtype_promotion("standard"):  # real state may meet complex updates
        u = interpret(tx, inputs.u, reading)
    return Outputs(u, reading.fields, reading.shared)


# --- traced, and taken apart ---------------------------------------------------------------


class _Slot(NamedTuple):
    """A value of a traced expression, known by its number."""

    number: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def leaf(self) -> bool:
        return self.shape == SHAPE


class _Step(NamedTuple):
    """One operation; of a leaf, or of numbers alone."""

    primitive: Any
    inputs: tuple[Any, ...]
    outputs: tuple[_Slot, ...]
    params: Mapping[str, Any]

    @property
    def leaf(self) -> bool:
        return any(isinstance(x, _Slot) and x.leaf for x in (*self.inputs, *self.outputs))


class NotElementwise(Exception):
    """A formula does something else than the same to every element."""


class Program:
    """An elementwise expression, traced once for one combination of dtypes.

    Attributes:
      scalars: from the numbers of a tree to what its leaves need of them, and to the new
        state of the tree.
      leaf: from the former, and what belongs to one leaf, to its update and fields;
        `inline` does the same, and is traced again at every call.
    """

    def __init__(self, tx: Any, like: Inputs):
        """`like` holds what the expression reads, for any leaf."""
        leaf = lambda x: jax.ShapeDtypeStruct(SHAPE, dtype_of(x))
        number = lambda x: 1.0j if isinstance(x, complex) else 1.0
        traced = Inputs(
            # As Python's numbers, which widen nothing and are widened by nothing.
            *jax.tree.map(number, (like.numbers, like.t, like.shared)),
            *jax.tree.map(leaf, (like.u, like.theta, like.fields)),
        )
        closed, shape = jax.make_jaxpr(lambda x: on_leaf(tx, x), return_shape=True)(traced)
        self.sharedef = jax.tree.structure(shape.shared)
        self.slots = 0
        self.constants: dict[_Slot, Any] = {}
        self.steps: list[_Step] = []
        self.inputs = [self._slot(v) for v in closed.jaxpr.invars]
        self.outputs = self._inlined(closed.jaxpr, closed.consts, self.inputs)
        self.steps = self._needed()
        made = {x for step in self.steps if not step.leaf for x in step.outputs}
        made |= {x for x in self.inputs if not x.leaf}
        read = [x for step in self.steps if step.leaf for x in step.inputs]
        count = len(jax.tree.leaves((shape.u, shape.fields)))
        self.outputs, self.of_tree = self.outputs[:count], self.outputs[count:]
        wanted = (x for x in (*read, *self.outputs) if isinstance(x, _Slot) and x in made)
        self.handed = list(dict.fromkeys(wanted))
        # Inlined: a function of its own may be compiled to other last bits elsewhere.
        self.scalars = jax.jit(self._scalars, inline=True)
        self.leaf = jax.jit(self._leaf)
        self.inline = self._leaf

    def _slot(self, variable: Any) -> _Slot:
        self.slots += 1
        return _Slot(self.slots, variable.aval.shape, variable.aval.dtype)

    def _inlined(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Appends the steps of a traced function, and of those it calls; returns its outputs."""
        names = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            names[variable] = self._slot(variable)
            self.constants[names[variable]] = value
        literal = lambda v: np.asarray(v.val, v.aval.dtype)
        read = lambda v: literal(v) if isinstance(v, jaxprs.Literal) else names[v]
        for eqn in jaxpr.eqns:
            given = [read(v) for v in eqn.invars]
            if eqn.primitive.name in _INLINED:
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                outputs = self._inlined(inner.jaxpr, inner.consts, given)
            else:
                outputs = [self._slot(v) for v in eqn.outvars]
                step = _Step(eqn.primitive, tuple(given), tuple(outputs), eqn.params)
                self.steps.append(_expect_elementwise(step))
            names.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _needed(self) -> list[_Step]:
        """The steps without those whose results nothing reads."""
        wanted, kept = {x for x in self.outputs if isinstance(x, _Slot)}, []
        for step in reversed(self.steps):
            if wanted & set(step.outputs):
                kept.append(step)
                wanted |= {x for x in step.inputs if isinstance(x, _Slot)}
        return kept[::-1]

    def _run(self, env: dict[_Slot, Any], leaf: bool, shape: tuple[int, ...]) -> None:
        read = lambda x: env[x] if isinstance(x, _Slot) else x
        for step in self.steps:
            if step.leaf is not leaf:
                continue
            given = [read(x) for x in step.inputs]
            if step.primitive.name == "broadcast_in_dim":
                out = [jnp.broadcast_to(given[0], shape if leaf else step.params["shape"])]
            else:
                out = step.primitive.bind(*given, **step.params)
                out = out if step.primitive.multiple_results else [out]
            env.update(zip(step.outputs, out, strict=True))

    def _scalars(self, numbers: list[Any]) -> tuple[list[Any], Any]:
        mine = [x for x in self.inputs if not x.leaf]
        env = self.constants | dict(zip(mine, map(_as, numbers, mine), strict=True))
        self._run(env, False, ())
        shared = [env[x] if isinstance(x, _Slot) else jnp.asarray(x) for x in self.of_tree]
        return [env[x] for x in self.handed], self.sharedef.unflatten(shared)

    def _leaf(self, handed: list[Any], given: list[Any]) -> list[Any]:
        mine, shape = [x for x in self.inputs if x.leaf], given[0].shape
        env = self.constants | dict(zip(self.handed, handed, strict=True))
        env |= dict(zip(mine, given, strict=True))
        self._run(env, True, shape)
        return [env[x] if isinstance(x, _Slot) else jnp.asarray(x) for x in self.outputs]


def _as(x: Any, slot: _Slot) -> jax.Array:
    """A number in the dtype it was traced with."""
    return jnp.asarray(x, slot.dtype)


def _expect_elementwise(step: _Step) -> _Step:
    if step.primitive.name.startswith("custom"):  # has derivatives of its own, for one shape
        raise NotElementwise(step.primitive.name)
    if step.leaf:
        shapes = {np.shape(x) if not isinstance(x, _Slot) else x.shape for x in step.inputs}
        name = step.primitive.name
        spread = name == "broadcast_in_dim" and shapes == {()}
        if not (spread or (name in ELEMENTWISE and shapes <= {SHAPE, ()})):
            raise NotElementwise(name)
    return step


_programs: collections.OrderedDict[Any, Program | None] = collections.OrderedDict()
KEPT = 64  # programs that are kept when no optimizer is left that made them


def program(tx: Any, like: Inputs) -> Program | None:
    """The program of an expression for leaves of these dtypes; None where it has none.

    Equal expressions share it, whatever their hyperparameters and schedules are."""
    known = plan(tx)
    if not known.scalar:
        return None
    leaves, treedef = jax.tree.flatten((like.u, like.theta, like.fields))
    dtypes = tuple(map(dtype_of, leaves))
    kinds = tuple(isinstance(x, complex) for x in jax.tree.leaves(like.numbers))
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # set when JAX starts
    key = known.key, dtypes, treedef, kinds, wide
    if key not in _programs:
        try:
            _programs[key] = Program(tx, like)
        except NotElementwise:
            _programs[key] = None
        if len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]
