"""Expressions: functions that remember how they were built.

A `Transformation` is an ordinary `optax.GradientTransformationExtraArgs` that
also keeps the factory that made it and the arguments of that call.  It can
therefore be printed, compared, hashed and pickled, it is a JAX pytree whose
leaves are its hyperparameters, and any part of it can be swapped by name.

Two rules say what an argument is to JAX:

* floats, complex numbers, arrays and nested expressions are *data* (leaves);
* everything else (ints, bools, strings, dtypes, functions) is *structure*.

`update` of an outermost transformation checks its arguments, works in at least
float32, returns updates in the gradient's dtype, and runs as one program that
is compiled once per structure, shapes and dtypes, whatever the hyperparameters.
The parts inside are run by `update_part`, without that ceremony.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, overload

import jax
import numpy as np
import optax

from adamw_jax import domains, trees

P = ParamSpec("P")


@jax.tree_util.register_pytree_node_class
class Structure:
    """A value that JAX keeps in the tree structure instead of among the leaves."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other):
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self):
        return hash(self.value)

    def tree_flatten(self):
        return (), self

    @classmethod
    def tree_unflatten(cls, aux, children):
        return aux


def _is_node(x: Any) -> bool:
    return isinstance(x, Expression | Structure)


class Expression:
    """A call that is remembered: `factory(**arguments)`.

    Attributes:
      factory: the decorated function.
      arguments: every bound argument by name, defaults included; the items of
        `*args` are named by their position ("0", "1", ...).
    """

    factory: Any
    arguments: Mapping[str, Any]
    data: tuple[type, ...] = (float, complex, np.ndarray, np.inexact, jax.Array)

    def __init__(self, factory: Any, arguments: Mapping[str, Any]):
        self.factory = factory
        self.arguments = arguments

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_with_keys_class(cls)

    @functools.cached_property
    def body(self) -> Any:
        """What the factory's function returns; built when first needed, so that
        JAX may unflatten an expression around any object."""
        built = _call(self.factory.__wrapped__, self.factory.signature, self.arguments)
        self._check_body(built)
        return built

    def _check_body(self, built: Any) -> None:
        raise NotImplementedError  # each subclass knows what its factories return

    @functools.cached_property
    def children(self) -> tuple:
        """The arguments as JAX sees them: what is not data wrapped in `Structure`."""
        wrap = lambda x: x if isinstance(x, (Expression, *self.data)) else Structure(x)
        return tuple(jax.tree.map(wrap, x, is_leaf=_is_node) for x in self.arguments.values())

    def tree_flatten_with_keys(self):
        keys = map(jax.tree_util.GetAttrKey, self.arguments)
        pairs = tuple(zip(keys, self.children, strict=True))
        return pairs, (self.factory, tuple(self.arguments))

    @classmethod
    def tree_unflatten(cls, aux, children):
        factory, names = aux
        unwrap = lambda x: x.value if isinstance(x, Structure) else x
        values = (jax.tree.map(unwrap, child, is_leaf=_is_node) for child in children)
        new = cls(factory, dict(zip(names, values, strict=True)))
        new.children = tuple(children)  # a leaf stays one, whatever object JAX puts there
        return new

    def __eq__(self, other):
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        mine, structure = jax.tree.flatten(self)
        theirs, other_structure = jax.tree.flatten(other)
        return structure == other_structure and all(map(_same_leaf, mine, theirs))

    def __ne__(self, other):  # tuple defines its own, by content
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self):
        leaves, structure = jax.tree.flatten(self)
        return hash((structure, tuple(map(_leaf_key, leaves))))

    def __reduce__(self):
        return _recall, (_reference(self.factory), type(self), dict(self.arguments))

    def __repr__(self):
        return f"{self.factory.__name__}({', '.join(_written_arguments(self))})"


def _is_tracer(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _leaf_key(x: Any) -> Any:
    """A hashable value that equal leaves share."""
    if _is_tracer(x):
        return id(x)
    if isinstance(x, np.ndarray | jax.Array) and np.ndim(x):
        return np.shape(x), np.asarray(x).tobytes()
    return x.item() if hasattr(x, "item") else x


def _same_leaf(x: Any, y: Any) -> bool:
    return x is y or _leaf_key(x) == _leaf_key(y)


def _call(function: Callable, signature: inspect.Signature, arguments: Mapping[str, Any]) -> Any:
    """Calls a function with remembered arguments, `*args` (named by digits) by position."""
    variadic = any(name.isdigit() for name in arguments)
    positional, keywords = [], {}
    for name, value in arguments.items():
        kind = signature.parameters[name].kind if name in signature.parameters else None
        if name.isdigit() or (variadic and kind is inspect.Parameter.POSITIONAL_OR_KEYWORD):
            positional.append(value)
        else:
            keywords[name] = value
    return function(*positional, **keywords)


def _bind(factory: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of one call by name, defaults applied, each admitted by its domain."""
    name = factory.__name__
    try:
        bound = factory.signature.bind(*args, **kwargs)
    except TypeError as error:
        usage = factory.signature.replace(
            parameters=[
                p.replace(annotation=p.empty) for p in factory.signature.parameters.values()
            ]
        )
        raise TypeError(f"{name}: {error}. Call it as {name}{usage}.") from None
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        parameter = factory.signature.parameters[key]
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments.update({str(i): v for i, v in enumerate(value)})
        elif parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[key] = domains.admit(name, key, value, parameter.annotation)
    return {key: _lift_all(value) for key, value in arguments.items()}


def _lift_all(value: Any) -> Any:
    """Turns every foreign gradient transformation inside an argument into an expression."""
    is_leaf = lambda x: _is_node(x) or isinstance(x, optax.GradientTransformation)
    return jax.tree.map(
        lambda x: lift(x) if isinstance(x, optax.GradientTransformation) else x,
        value,
        is_leaf=is_leaf,
    )


def _written_arguments(expression: Expression) -> Iterator[str]:
    """The arguments of a call as one would type them, defaults left out."""
    parameters = expression.factory.signature.parameters
    for name, value in expression.arguments.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            yield _written(value) if name.isdigit() else f"{name}={_written(value)}"
        elif parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            yield _written(value)
        elif not _is_default(value, parameter.default):
            yield f"{name}={_written(value)}"


def _written(value: Any) -> str:
    if inspect.isroutine(value):
        return value.__name__
    scalar = hasattr(value, "item") and not np.ndim(value) and not _is_tracer(value)
    return repr(value.item() if scalar else value)  # a plain number is equal, and can be typed


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray | jax.Array) or isinstance(default, np.ndarray | jax.Array):
        return value is default
    return bool(value is default or value == default)


def _reference(factory: Any) -> Any:
    """What pickle can find by name: the factory, or the function it was lifted from."""
    module = inspect.getmodule(factory)
    named = getattr(module, factory.__qualname__, None)
    return factory if named is factory else (factory.__wrapped__, factory.declared)


def _recall(reference: Any, cls: type, arguments: dict[str, Any]) -> Expression:
    if isinstance(reference, tuple):
        function, declared = reference
        reference = remember(function, cls, **declared)
    return cls(reference, arguments)


_lifted: dict[Callable, Any] = {}


def remember(function: Callable, cls: type, **declared: Any) -> Any:
    """The decorator proper: a factory whose calls return `cls` expressions."""
    if function in _lifted and _lifted[function].declared == declared:
        return _lifted[function]  # lifting the same function twice gives equal expressions

    def call(*args, **kwargs):
        expression = cls(factory, _bind(factory, args, kwargs))
        expression.body  # noqa: B018  a wrong call fails here, not at the first step
        return expression

    factory: Any = functools.wraps(function)(call)
    factory.signature = inspect.signature(function)
    factory.declared = declared
    _lifted[function] = factory
    return factory


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

    def __new__(cls, factory: Callable, arguments: Mapping[str, Any]):
        def init(params):
            trees.check_parameters(factory.__name__, params)
            return init_part(self, trees.widen(params))

        def update(updates, state, params=None, **extra):
            if self.consumes != "fork":
                trees.check_updates(factory.__name__, updates, params)
            arrays = all(_is_arraylike(x) for x in jax.tree.leaves(extra))
            run = _update_compiled if arrays else _update_widened
            return run(self, updates, state, params, extra)

        self = super().__new__(cls, init, update)
        self.factory = factory
        self.arguments = arguments
        return self

    def __init__(self, factory, arguments):
        pass  # a tuple is made in __new__

    def _check_body(self, built):
        if not isinstance(built, optax.GradientTransformation):
            raise TypeError(
                f"{self.factory.__name__}: returned {built!r}. A transformation's factory "
                "must return an optax.GradientTransformation."
            )

    @property
    def composite(self) -> bool:
        """Whether the body is itself an expression over other pieces."""
        return isinstance(self.body, Transformation)

    @property
    def consumes(self) -> str:
        """What `update` reads: "tree", or "fork" for a dict of branches."""
        return self.body.consumes if self.composite else self.factory.declared["consumes"]

    @functools.cached_property
    def leafwise(self) -> bool:
        """Whether transforming a tree is the same as transforming each of its leaves."""
        if self.composite:
            return self.body.leafwise
        declared = self.factory.declared["leafwise"]
        return declared and all(part.leafwise for part in slots(self).values())


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex)


@overload
def transformation(
    function: Callable[P, optax.GradientTransformation],
) -> Callable[P, Transformation]: ...
@overload
def transformation(
    *, leafwise: bool = False, consumes: str = "tree"
) -> Callable[[Callable[P, optax.GradientTransformation]], Callable[P, Transformation]]: ...
def transformation(
    function: Callable | None = None,
    *,
    leafwise: bool = False,
    consumes: str = "tree",
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
        scalars or trees shaped like the parameters.
      consumes: "tree" for gradients shaped like parameters, "fork" for a dict
        of branches.

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
    if function is None:
        return functools.partial(transformation, leafwise=leafwise, consumes=consumes)
    return remember(function, Transformation, leafwise=leafwise, consumes=consumes)


@transformation
def foreign(transform):
    """A gradient transformation from elsewhere, opaque and compared by identity."""
    return transform


def lift(tx: optax.GradientTransformation) -> Transformation:
    """Any gradient transformation as an expression."""
    if isinstance(tx, Transformation):
        return tx
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"lift: {tx!r} is not a gradient transformation. Pass what an optimizer or a piece "
            "returns, for example identity()."
        )
    return Transformation(foreign, {"transform": tx})


# --- running -----------------------------------------------------------------


def init_part(tx: Transformation, params: Any) -> Any:
    """The state of a part inside a larger expression."""
    if tx.composite:
        return init_part(tx.body, params)
    return tx.body.init(params)


def update_part(tx: Transformation, updates, state, params=None, extra: Mapping = {}):
    """One update of a part inside a larger expression: no checks, no casts."""
    if tx.leafwise and not trees.is_bare(updates):
        return trees.update_each_leaf(tx, _update_leaf, updates, state, params)
    return _update_whole(tx, updates, state, params, extra)


def _update_whole(tx, updates, state, params, extra):
    if tx.composite:
        return update_part(tx.body, updates, state, params, extra)
    return optax.with_extra_args_support(tx.body).update(updates, state, params, **extra)


@jax.jit
def _update_leaf(tx, update, state, param):
    # A leaf is a tree of its own: the same code serves, and JAX keeps one trace per shape.
    return _update_whole(tx, update, state, param, {})


def _update_widened(tx, updates, state, params, extra):
    out, state = update_part(tx, trees.widen(updates), state, trees.widen(params), extra)
    return trees.narrow(out, updates), state


_update_compiled = jax.jit(_update_widened)


# --- parts -------------------------------------------------------------------


def slots(tx: Transformation) -> dict[str, Transformation]:
    """The transformations directly inside `tx`, by name."""
    if tx.composite:
        return slots(tx.body)
    if tx.factory is foreign:
        return {}
    is_part = lambda x: isinstance(x, Transformation)
    found = {}
    for name, value in tx.arguments.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_node):
            if is_part(leaf):
                found[".".join((name, *trees.path_names(path)))] = leaf
    return found


def parts(tx: Transformation) -> dict[str, Transformation]:
    """Every part of an expression by its dotted path, outermost first.

    Example:
      >>> from adamw_jax import adamw, parts
      >>> list(parts(adamw(1e-3)))[:3]
      ['direction', 'direction.numerator', 'direction.numerator.0']
    """
    found: dict[str, Transformation] = {}
    for name, piece in slots(lift(tx)).items():
        found[name] = piece
        found.update({f"{name}.{path}": inner for path, inner in parts(piece).items()})
    return found


def part(tx: Transformation, path: str) -> Transformation:
    """The part of `tx` at a dotted path; the empty path is `tx` itself.

    Raises:
      KeyError: there is no such part; the message lists those there are.

    Example:
      >>> from adamw_jax import adamw, part
      >>> part(adamw(1e-3), "direction.denominator.correction")
      bias_correction(0.999)
    """
    return _find("part", tx, path)


def _find(function: str, tx: Transformation, path: str) -> Transformation:
    found = {"": lift(tx)} | parts(tx)
    if path not in found:
        raise KeyError(
            f"{function}: there is no {path!r} in {tx!r}. "
            f"Choose one of: {', '.join(filter(None, found))}."
        )
    return found[path]


def swap(tx: Transformation, path: str, piece: optax.GradientTransformation) -> Transformation:
    """The same expression with another piece in one slot.

    Args:
      tx: the optimizer or transformation; it is not changed.
      path: dotted names of slots, as `parts(tx)` lists them.
      piece: what to put there.

    Raises:
      KeyError: there is no such slot; the message lists those there are.
      TypeError: `piece` is not a gradient transformation.

    Example:
      >>> from adamw_jax import adam, identity, swap
      >>> swap(adam(1e-3), "direction.denominator.correction", identity()) == adam(1e-3)
      False
    """
    if not isinstance(piece, optax.GradientTransformation):
        raise TypeError(
            f"swap: {piece!r} is not a gradient transformation. Pass a piece such as identity()."
        )
    _find("swap", tx, path)  # raises the KeyError that lists the parts
    return _swap(lift(tx), path, lift(piece))


def _swap(tx: Transformation, path: str, piece: Transformation) -> Transformation:
    if not path:
        return piece
    if tx.composite:
        return _swap(tx.body, path, piece)
    name = next(n for n in slots(tx) if path == n or path.startswith(n + "."))
    inner = _swap(slots(tx)[name], path[len(name) + 1 :], piece)
    argument, *_ = name.split(".")

    def replaced(where, leaf):
        here = ".".join((argument, *trees.path_names(where)))
        return inner if here == name else leaf

    value = jax.tree_util.tree_map_with_path(replaced, tx.arguments[argument], is_leaf=_is_node)
    return Transformation(tx.factory, {**tx.arguments, argument: value})


def replace(tx: Transformation, path: str, **hyperparameters: Any) -> Transformation:
    """The same expression with other hyperparameters in one part.

    Args:
      tx: the optimizer or transformation; it is not changed.
      path: the part whose arguments change; "" for the outermost.
      **hyperparameters: the new values, checked as if that part were called anew.

    Raises:
      KeyError: there is no such part.
      TypeError: the part takes no such argument.

    Example:
      >>> from adamw_jax import adamw, replace
      >>> replace(adamw(1e-3), "", learning_rate=3e-4)
      adamw(0.0003)
    """
    old = _find("replace", tx, path)
    new = _call(old.factory, old.factory.signature, {**old.arguments, **hyperparameters})
    return _swap(lift(tx), path, new)


def expand(tx: Transformation) -> Transformation:
    """The expression written out in pieces and combinators alone.

    Example:
      >>> from adamw_jax import expand, sgd
      >>> expand(sgd(0.1))
      chain(direction=identity(), learning_rate=scale_by_learning_rate(0.1))
    """
    tx = lift(tx)
    while tx.composite:
        tx = tx.body
    for name, piece in slots(tx).items():
        tx = _swap(tx, name, expand(piece))
    return tx
