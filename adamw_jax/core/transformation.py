"""Transformations: gradient transformations that are expressions.

A `Transformation` is an ordinary `optax.GradientTransformationExtraArgs` that
remembers the call that built it, so any part of it can be swapped by name.  Three
decorators make them: `@combinator` from a flow, `@elementwise` from a formula, and
`@transformation` from any pair of `init` and `update`, or from an expression.

`update` of an outermost transformation checks its arguments, works in at least
float32, and returns updates in the gradient's dtype.  The parts inside are run by
`adamw_jax.core.update`, without that ceremony.
"""

import copyreg
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, Self, overload

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core import trees
from adamw_jax.core.expression import Expression, Factory, call_with, is_node, remember
from adamw_jax.core.flow import (
    AFlow,
    AFormula,
    Flow,
    Formula,
    PerTree,
    check_flow,
    kinds,
    opened,
    parts_among,
    slots,
)
from adamw_jax.core.update import init_formula, init_part, update_flow, update_formula, update_part

P = ParamSpec("P")
Kind = str
Equation = str | Callable[[Mapping[str, Any]], str]


class Transformation(Expression, optax.GradientTransformationExtraArgs):
    """A gradient transformation that remembers the expression that built it.

    It is a pair `(init, update)` like any of Optax's, and everything an
    `Expression` is.

    Example:
      >>> from adamw_jax import adamw
      >>> adamw(1e-3, weight_decay=0.1)
      adamw(0.001, weight_decay=0.1)
      >>> adamw(1e-3) == adamw(1e-3, b1=0.9)
      True
    """

    # Optax has no types; these are what a type checker knows of the pair.
    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]

    def __new__(cls, factory: Any, arguments: Mapping[str, Any]) -> Self:
        name = getattr(factory, "__name__", "")

        def init(params: Any) -> Any:
            trees.check_parameters(name, params)
            return init_part(self, trees.widen(params))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            if self.consumes != "fork":
                trees.check_updates(name, updates, params)
            widened = trees.widen(updates), state, trees.widen(params)
            out, state = update_part(self, *widened, extra)
            trees.check_not_grown(name, out, updates)
            return trees.narrow(out, updates), state

        self: Self = super().__new__(cls, init, update)
        self.factory = factory
        self.arguments = arguments
        return self

    def __init__(self, factory: Any, arguments: Mapping[str, Any]) -> None:
        pass  # a tuple is made in __new__

    @staticmethod
    def prepare(value: Any) -> Any:
        """Every foreign gradient transformation inside an argument, lifted."""
        foreign_or_node = lambda x: is_node(x) or isinstance(x, optax.GradientTransformation)
        lifted = lambda x: lift(x) if isinstance(x, optax.GradientTransformation) else x
        return jax.tree.map(lifted, value, is_leaf=foreign_or_node)

    def _check_body(self, built: Any) -> None:
        name = self.factory.__name__
        if not isinstance(built, optax.GradientTransformation):
            raise TypeError(
                f"{name}: returned {built!r}. A transformation's factory "
                "must return an optax.GradientTransformation."
            )
        if self.factory.declared["leafwise"] and not isinstance(built, Transformation | Formula):
            extra = keywords_of(built.update)
            if extra:
                raise TypeError(
                    f"{name}: its update takes {extra[0]!r}, and it is declared leafwise. Drop "
                    "leafwise=True: what goes leaf by leaf gets no extra arguments."
                )

    @property
    def composite(self) -> bool:
        """Whether the body is itself an expression over other pieces."""
        return isinstance(self.body, Transformation)

    @property
    def is_foreign(self) -> bool:
        """Whether it is another library's, and cannot be looked into."""
        return self.factory is foreign

    @property
    def parts(self) -> dict[str, "Transformation"]:
        """The transformations directly inside, by slot."""
        return slots(self)

    @functools.cached_property
    def _kinds(self) -> tuple[str, str]:
        return kinds(self)

    @property
    def consumes(self) -> str:
        """What `update` reads: "tree", or "fork" for a dict of branches."""
        return self._kinds[0]

    @property
    def produces(self) -> str:
        """What `update` returns: "tree" or "fork"."""
        return self._kinds[1]

    @functools.cached_property
    def leafwise(self) -> bool:
        """Whether transforming a tree is the same as transforming each of its leaves."""
        tx = opened(self)
        alone = not tx.body.splits if isinstance(tx.body, Flow) else tx.factory.declared["leafwise"]
        return alone and all(part.leafwise for part in slots(tx).values())

    @property
    def separable(self) -> bool:
        """Whether the leaves of a tree may be dealt out, each updated alone."""
        return self.leafwise and self.consumes == self.produces == "tree"


def keywords_of(update: Callable[..., Any]) -> list[str]:
    """The extra arguments that an update names."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except ValueError:  # some builtins have no signature
        return []
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


@overload
def transformation(
    function: Callable[P, optax.GradientTransformation],
) -> Factory[P, Transformation]: ...


@overload
def transformation(
    *,
    leafwise: bool = False,
    consumes: Kind = "tree",
    produces: Kind = "tree",
    equation: Equation | None = None,
    traits: tuple[str, ...] = (),
    now: Callable[..., Any] | None = None,
    eval_params: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, optax.GradientTransformation]], Factory[P, Transformation]]: ...


def transformation(
    function: Callable[..., Any] | None = None,
    *,
    leafwise: bool = False,
    consumes: Kind = "tree",
    produces: Kind = "tree",
    equation: Equation | None = None,
    traits: tuple[str, ...] = (),
    now: Callable[..., Any] | None = None,
    eval_params: Callable[..., Any] | None = None,
) -> Any:
    """Makes a factory's transformations remember the call that built them.

    Decorate an ordinary factory that returns an `optax.GradientTransformation`
    (a *piece*) or one that returns a `Transformation` (a *composite*), or lift
    a factory from elsewhere: `clip = transformation(optax.clip_by_global_norm)`.

    Annotate a hyperparameter with one of `adamw_jax.domains` (such as `Decay`)
    to have plain numbers checked when the factory is called.  Do arithmetic on
    hyperparameters inside `update`, never branch on their values.

    Args:
      function: the factory.
      leafwise: declare that updating a tree is the same as updating each of its
        leaves alone; the update is then traced once per distinct leaf shape
        instead of once per leaf.  State must be a `NamedTuple` whose fields are
        scalars or trees shaped like the parameters; there are no extra arguments.
      consumes: "tree" for gradients shaped like parameters, "fork" for a dict
        of branches.
      produces: likewise, what `update` returns.
      equation: what the piece does, for `equations`: Python statements joined
        by ";" whose last one is the value passed on, such as
        "m = decay * m + (1 - decay) * u; m".  `u` is what the piece receives (the
        branches' names, if that is a fork), `theta` the parameter, `t` the number
        of this update; names that are assigned are state and begin at 0.  Or a
        function from the arguments to such a text.  The module
        `adamw_jax.inspect.equations` tells the rest.
      traits: words that `lint` reasons with; see `adamw_jax.inspect.lint.facts`.
      now: for a piece whose parts change with the update: from its arguments, and a
        function that gives a schedule's value by name and schedule, to the parts as
        they are at this update, by slot.
      eval_params: `(state, params) -> params` where the weights to evaluate
        are not the ones that are trained; takes the piece's arguments first.

    Returns:
      The factory, with the same signature, returning a `Transformation`.

    Example:
      >>> import optax, jax
      >>> import adamw_jax as aj
      >>> @aj.transformation(leafwise=True)
      ... def negate():
      ...     return optax.stateless(lambda g, p: jax.tree.map(lambda x: -x, g))
      >>> aj.chain(negate(), aj.scale(0.5))
      chain(negate(), scale(0.5))
    """
    declared = {
        "leafwise": leafwise,
        "consumes": consumes,
        "produces": produces,
        "equation": equation,
        "traits": traits,
        "now": now,
        "eval_params": eval_params,
    }
    for name, kind in (("consumes", consumes), ("produces", produces)):
        if kind not in ("tree", "fork"):
            raise ValueError(f'transformation: {name} is {kind!r}. It must be "tree" or "fork".')
    if function is None:
        return functools.partial(transformation, **declared)
    return remember(function, Transformation, **declared)


@transformation
def foreign(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """A gradient transformation from elsewhere, opaque and compared by identity."""
    return transform


def lift(tx: optax.GradientTransformation, by: str = "lift") -> Transformation:
    """Any gradient transformation as an expression; an error names the function `by`."""
    if isinstance(tx, Transformation):
        return tx
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"{by}: {tx!r} is not a gradient transformation. Pass what an optimizer or a piece "
            "returns, for example identity()."
        )
    return Transformation(foreign, {"transform": tx})


# --- combinators -------------------------------------------------------------------------


def combinator(function: Callable[P, AFlow | Transformation]) -> Factory[P, Transformation]:
    """Makes a combinator of a factory that returns a flow.

    The factory's arguments that are transformations are its slots; all others are
    hyperparameters or options.  What it returns is `flow(run, u)`, where `run(slot, u)`
    is what the part in a slot makes of a value; every slot runs exactly once.
    Operations on values are written `each(op, a, b)`.

    That is all there is to write: the update, the state by slot, the equations, what
    `lint` sees, what `transplant` keeps, the routes and the report all follow from it.

    State: a dict of the parts' states by slot; a tuple if the slots are positions.

    Raises:
      TypeError: the factory returns no flow, or the flow returns something else than
        it was given, or branches on values.
      KeyError, ValueError: the flow names a slot that does not exist, or runs one twice
        or never.

    Example:
      >>> from adamw_jax import combinator, equations, scale, scale_by_momentum, swap
      >>> @combinator
      ... def then(first, second):
      ...     return lambda run, u: run("second", run("first", u))
      >>> tx = then(scale_by_momentum(0.9), scale(-0.1))
      >>> tx
      then(scale_by_momentum(0.9), scale(-0.1))
      >>> print(equations(tx, "text"))
      m = 0.9*m + (1 - 0.9)*g
      theta = theta - 0.1*m
      >>> swap(tx, "second", scale(-0.2))
      then(scale_by_momentum(0.9), scale(-0.2))
    """
    name, signature = function.__name__, inspect.signature(function)

    @functools.wraps(function)
    def build(*args: P.args, **kwargs: P.kwargs) -> Flow | Transformation:
        arguments = _arguments(signature, args, kwargs)
        flow = function(*args, **kwargs)
        if isinstance(flow, Transformation):
            return flow
        parts = parts_among(arguments)
        expect_parts(name, parts)
        body = Flow(
            lambda params: init_part(Transformation(factory, arguments), params),
            lambda u, state, params=None, **extra: update_flow(
                Transformation(factory, arguments), u, state, params, extra
            ),
        )
        body.flow, body.parts, body.arguments = flow, parts, arguments
        body.listed = bool(parts) and all(slot.isdigit() for slot in parts)
        body.splits, body.uses = check_flow(name, flow, parts)
        body.rebuilt = lambda arguments: call_with(function, signature, arguments)
        return body

    factory = remember(build, Transformation, **_DECLARED)
    return factory


_DECLARED: dict[str, Any] = {
    "leafwise": False,
    "consumes": "tree",
    "produces": "tree",
    "equation": None,
    "traits": (),
    "now": None,
    "eval_params": None,
}


def _arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, as `Expression.arguments` has them."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {str(i): x for i, x in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        else:
            arguments[name] = value
    return arguments


def expect_parts(name: str, stages: Mapping[str, Any]) -> None:
    """Raises where a stage is not a transformation or its name cannot be a slot."""
    for key, stage in stages.items():
        if not isinstance(stage, Transformation):
            raise TypeError(
                f"{name}: {key!r} is {stage!r}, not a gradient transformation. "
                "Pass a piece, for example identity()."
            )
        if "." in key:
            raise TypeError(f"{name}: the name {key!r} holds a dot. Dots separate slots in a path.")


# --- elementwise pieces ------------------------------------------------------------------


@overload
def elementwise(
    function: Callable[P, AFormula | Transformation], /
) -> Factory[P, Transformation]: ...


@overload
def elementwise(
    *,
    traits: tuple[str, ...] = (),
    **starts: float | str | PerTree,
) -> Callable[[Callable[P, AFormula | Transformation]], Factory[P, Transformation]]: ...


def elementwise(
    function: Callable[..., Any] | None = None,
    /,
    *,
    traits: tuple[str, ...] = (),
    **starts: Any,
) -> Any:
    """Makes an elementwise piece of a factory that returns a formula.

    The formula's first parameter is `u`, what the piece receives.  It names whatever
    else it reads: the fields of its state, `theta` the parameter, `t` = 1, 2, ... the
    number of this update.  It returns what is passed on, or that and a dict with the
    new value of every field.  It is written as if for one number, and runs on arrays
    and on symbols alike; with arithmetic, `**` and `abs` alone it has an equation.

    A hyperparameter is a plain number in it, whatever the dtype of `u`.  One whose
    domain is `LearningRate` may be a schedule; the formula sees its value at this
    update.  An argument called `dtype` is that of what is kept; without one state is
    kept in the parameter's, at least float32, real where it can be.

    Args:
      function: the factory.
      traits: words for what the formula does not say, such as which of two decays with
        the same formula it is; see `adamw_jax.inspect.lint.facts`.
      **starts: the fields of the state, each with where it starts: a number, the name
        of the argument that says it, "theta" for the parameter, or `per_tree(number)`
        for one number for the whole tree.

    State: a named tuple `<Piece>State`, after `count`, the number of updates so far,
    where the formula reads `t` or an argument may be a schedule.

    Raises:
      TypeError: the factory returns no formula, or the formula reads what there is not.

    Example:
      >>> from adamw_jax import chain, elementwise, equations, scale
      >>> @elementwise(average=0.0)
      ... def centred(decay):
      ...     def formula(u, average):
      ...         average = decay * average + (1 - decay) * u
      ...         return u - average, {"average": average}
      ...     return formula
      >>> tx = chain(centred(0.5), scale(-0.1))
      >>> print(equations(tx, "text"))
      average = 0.5*average + (1 - 0.5)*g
      theta = theta - 0.1*(g - average)
      >>> update, state = tx.update(4.0, tx.init(0.0))
      >>> state[0].average.item()
      2.0
    """
    if function is None:
        return functools.partial(elementwise, traits=traits, **starts)
    name, signature = function.__name__, inspect.signature(function)
    State: Any = _state_class(function, starts)

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Formula | Transformation:
        formula = function(*args, **kwargs)
        if isinstance(formula, Transformation):
            return formula
        reads = _reads(name, formula, starts)
        arguments = _arguments(signature, args, kwargs)
        timed = any(callable(x) and hasattr(x, "peak") for x in arguments.values())
        body: Formula = Formula(
            lambda params: init_formula(body, params),
            lambda u, state, params=None: update_formula(
                Transformation(factory, arguments), u, state, params
            ),
        )
        body.formula, body.reads, body.starts, body.arguments = formula, reads, starts, arguments
        body.counts = "t" in reads or timed or bool(factory.scheduled)
        body.State = State(body.counts)
        body.rebuilt = lambda arguments: call_with(function, signature, arguments)
        body.stored = functools.partial(_stored, body)
        return body

    declared = _DECLARED | {"leafwise": True, "traits": traits}
    factory: Any = remember(build, Transformation, **declared)
    factory.State = State
    return factory


def _reads(name: str, formula: Any, starts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a formula names beside `u`."""
    if not callable(formula):
        raise TypeError(
            f"{name}: returned {formula!r}. An elementwise factory must return a formula, a "
            "function whose first parameter is u."
        )
    first, *rest = inspect.signature(formula).parameters or ("",)
    known = ("theta", "t", *(starts))
    wrong = [x for x in rest if x not in known]
    if first != "u" or wrong:
        raise TypeError(
            f"{name}: its formula reads {', '.join(wrong or [first])}. It must read u first, "
            f"and may name {', '.join(known)}; declare state as @elementwise(field=start)."
        )
    return tuple(rest)


def _state_class(function: Callable[..., Any], starts: Mapping[str, Any]) -> Callable[[bool], Any]:
    """The class of a piece's state, with and without a count; pickled by the piece's name."""
    word = "".join(x.capitalize() for x in function.__name__.split("_")) + "State"

    @functools.cache
    def state_class(counts: bool, /) -> Any:
        fields = ["count"] * counts + list(starts)
        if not fields:
            return None
        named_tuple: Any = NamedTuple  # to a type checker its fields are written out
        made = named_tuple(word, [(field, Any) for field in fields])
        made.__module__ = function.__module__
        made.starts = tuple(starts.values())
        where = function.__module__, function.__qualname__, counts
        copyreg.pickle(made, lambda state: (_state_again, (*where, tuple(state))))
        return made

    return state_class


def _state_again(module: str, name: str, counts: bool, fields: tuple[Any, ...]) -> Any:
    piece: Any = importlib.import_module(module)
    for word in name.split("."):
        piece = getattr(piece, word)
    return piece.State(counts)(*fields)


def _stored(body: Formula, field: str, dtype: Any) -> Any:
    """The dtype in which a field is kept for parameters of some dtype."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        dtype = _real_where_it_can_be(body, dtype)[field]
    kept = body.arguments.get("dtype")
    if kept is None:
        return dtype
    return trees.in_precision(jnp.zeros((), dtype), kept).dtype


def _real_where_it_can_be(body: Formula, dtype: Any) -> dict[str, Any]:
    """The dtypes of the fields for complex updates: real if the formula leaves them so."""
    one = lambda d: jax.ShapeDtypeStruct((), d)
    fields = {k: trees.real_dtype(dtype) for k in body.starts}
    numbers = {"t": 1.0, "theta": one(dtype)}

    def new(u: Any, known: Mapping[str, Any]) -> Any:
        given = body.rebuilt({k: 0.5 if callable(x) else x for k, x in body.arguments.items()})
        return given(u, **{k: known[k] for k in body.reads})[1]

    while True:
        known = numbers | {k: one(d) for k, d in fields.items()}
        with jax.numpy_dtype_promotion("standard"):
            found = jax.eval_shape(new, one(dtype), known)
        complex_ = {k for k, x in found.items() if jnp.issubdtype(x.dtype, jnp.complexfloating)}
        wider = {k: dtype if k in complex_ else d for k, d in fields.items()}
        if wider == fields:
            return fields
        fields = wider
