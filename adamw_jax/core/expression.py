"""Expressions: calls that are remembered.

An `Expression` keeps the factory that made it and the arguments of that call.
It can therefore be printed, compared, hashed and pickled, and it is a JAX
pytree whose leaves are its hyperparameters.

Two rules say what an argument is to JAX:

* floats, complex numbers, arrays and nested expressions are *data* (leaves);
* everything else (ints, bools, strings, dtypes, functions) is *structure*.
"""

import functools
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import jax
import numpy as np
import optax

from adamw_jax.core import domains

P = ParamSpec("P")
E = TypeVar("E", bound="Expression", covariant=True)


@jax.tree_util.register_pytree_node_class
class Structure:
    """A value that JAX keeps in the tree structure instead of among the leaves."""

    def __init__(self, value: Any):
        # NumPy's bools, which a mask may hold, are Python's.
        self.value = bool(value) if isinstance(value, np.bool_) else value

    def __eq__(self, other: Any) -> bool:
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def tree_flatten(self) -> tuple[tuple[()], Self]:
        return (), self

    @classmethod
    def tree_unflatten(cls, aux: Self, children: Any) -> Self:
        return aux


def is_node(x: Any) -> bool:
    return isinstance(x, Expression | Structure)


class Factory(Protocol[P, E]):
    """A function whose calls are remembered: what the decorators make of one.

    Attributes:
      signature: of the function that was decorated, domains included.
      declared: what the decorator was told.
      scheduled: the parameters that may be schedules.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]
    __signature__: inspect.Signature
    signature: inspect.Signature
    declared: Mapping[str, Any]
    scheduled: tuple[str, ...]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> E: ...


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_with_keys_class(cls)

    @functools.cached_property
    def body(self) -> Any:
        """What the factory's function returns; built when first needed, so that
        JAX may unflatten an expression around any object."""
        built = call_with(self.factory.__wrapped__, self.factory.signature, self.arguments)
        self._check_body(built)
        return built

    @staticmethod
    def prepare(value: Any) -> Any:
        """An argument as this kind of expression keeps it."""
        return value

    def _check_body(self, built: Any) -> None:
        raise NotImplementedError  # each subclass knows what its factories return

    @functools.cached_property
    def children(self) -> tuple[Any, ...]:
        """The arguments as JAX sees them: what is not data wrapped in `Structure`."""
        data = lambda x: isinstance(x, (Expression, *self.data)) and not isinstance(x, bool)
        wrap = lambda x: x if data(x) else Structure(x)
        return tuple(jax.tree.map(wrap, x, is_leaf=is_node) for x in self.arguments.values())

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        keys = map(jax.tree_util.GetAttrKey, self.arguments)
        pairs = tuple(zip(keys, self.children, strict=True))
        return pairs, (self.factory, tuple(self.arguments))

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Self:
        factory, names = aux
        unwrap = lambda x: x.value if isinstance(x, Structure) else x
        values = (jax.tree.map(unwrap, child, is_leaf=is_node) for child in children)
        new = cls(factory, dict(zip(names, values, strict=True)))
        new.children = tuple(children)  # a leaf stays one, whatever object JAX puts there
        return new

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        mine, structure = jax.tree.flatten(self)
        theirs, other_structure = jax.tree.flatten(other)
        return structure == other_structure and all(map(_same_leaf, mine, theirs))

    def __ne__(self, other: Any) -> bool:  # tuple defines its own, by content
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        leaves, structure = jax.tree.flatten(self)
        return hash((structure, tuple(map(_leaf_key, leaves))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _recall, (_reference(self.factory), type(self), dict(self.arguments))

    def __repr__(self) -> str:
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


def call_with(
    function: Callable[..., Any], signature: inspect.Signature, arguments: Mapping[str, Any]
) -> Any:
    """Calls a function with remembered arguments, `*args` (named by digits) by position."""
    variadic = any(name.isdigit() for name in arguments)
    positional, keywords = [], {}
    for name, value in arguments.items():
        kind = signature.parameters[name].kind if name in signature.parameters else None
        first = kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and variadic
        if name.isdigit() or first or kind is inspect.Parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            keywords[name] = value
    return function(*positional, **keywords)


def _bind(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one call by name, defaults applied, each admitted by its domain."""
    name = factory.__name__
    try:
        bound = factory.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}. Call it as {name}{factory.__signature__}.") from None
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        parameter = factory.signature.parameters[key]
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments.update({str(i): v for i, v in enumerate(value)})
        elif parameter.kind is parameter.VAR_KEYWORD:
            taken = [word for word in value if word in arguments]
            if taken:
                raise TypeError(f"{name}: {taken[0]!r} names an argument. Choose another name.")
            arguments.update(value)
        else:
            arguments[key] = domains.admit(name, key, value, parameter.annotation)
    return arguments


def _written_arguments(expression: Expression) -> Iterator[str]:
    """The arguments of a call as one would type them, defaults left out."""
    parameters = expression.factory.signature.parameters
    for name, value in expression.arguments.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            yield written(value) if name.isdigit() else _keyword(name, value)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            yield written(value)
        elif not _is_default(value, parameter.default):
            keyword = "" if parameter.kind is parameter.POSITIONAL_ONLY else f"{name}="
            yield f"{keyword}{written(value)}"


def _keyword(name: str, value: Any) -> str:
    """An argument by its name, which may be none that Python knows: a slot has any."""
    plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return f"{name}={written(value)}" if plain else f"**{{{name!r}: {written(value)}}}"


def made_by(transform: optax.GradientTransformation) -> str:
    """The name of the function that made a transformation of another library."""
    update = transform.update
    maker = getattr(update, "__qualname__", type(update).__name__).split(".")[0]
    return maker if maker.isidentifier() else "foreign"


def written(value: Any) -> str:
    """An argument as one would type it; without the addresses of functions."""
    if type(value) in (tuple, list):
        inside = ", ".join(map(written, value)) + ("," if len(value) == 1 else "")
        return f"[{inside.rstrip(',')}]" if isinstance(value, list) else f"({inside})"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {written(x)}' for key, x in value.items())}}}"
    if inspect.isroutine(value):
        return value.__name__
    if isinstance(value, optax.GradientTransformation) and not isinstance(value, Expression):
        return made_by(value)  # no addresses: what a run is named after is the same tomorrow
    if not isinstance(value, np.generic | np.ndarray | jax.Array) or _is_tracer(value):
        return repr(value)
    if not np.ndim(value):
        return repr(value.item())  # a plain number is equal, and can be typed
    # Of a stack of optimizers, the values of each: all of a few, the ends of many.
    return np.array2string(
        np.asarray(value), 10**6, separator=", ", threshold=16, formatter={"all": str}
    )


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray | jax.Array) or isinstance(default, np.ndarray | jax.Array):
        return value is default
    return bool(value is default or value == default)


def _reference(factory: Any) -> Any:
    """What pickle can find by name: the factory, or the function it was lifted from."""
    module = inspect.getmodule(factory)
    named = getattr(module, factory.__qualname__, None)
    return factory if named is factory else (factory.__wrapped__, factory.declared)


def _recall(reference: Any, cls: type[Expression], arguments: dict[str, Any]) -> Expression:
    if isinstance(reference, tuple):
        function, declared = reference
        reference = remember(function, cls, **declared)
    return cls(reference, arguments)


_lifted: dict[Callable[..., Any], Any] = {}


def remember(function: Callable[P, Any], cls: type[E], **declared: Any) -> Factory[P, E]:
    """The decorator proper: a factory whose calls return `cls` expressions."""
    known: Factory[P, E] | None = _lifted.get(function)
    if known is not None and known.declared == declared:
        return known  # lifting the same function twice gives equal expressions

    def call(*args: P.args, **kwargs: P.kwargs) -> E:
        bound = _bind(factory, args, kwargs)
        expression = cls(factory, {name: cls.prepare(value) for name, value in bound.items()})
        expression.body  # noqa: B018  a wrong call fails here, not at the first step
        return expression

    made: Any = functools.wraps(function)(call)
    factory: Factory[P, E] = made
    factory.signature = inspect.signature(function)
    # What help() shows: a domain written out is longer than the docstring that explains it.
    bare = [p.replace(annotation=p.empty) for p in factory.signature.parameters.values()]
    factory.__signature__ = factory.signature.replace(
        parameters=bare, return_annotation=inspect.Signature.empty
    )
    factory.declared = declared
    parameters = factory.signature.parameters.items()
    factory.scheduled = tuple(k for k, p in parameters if domains.admits_schedule(p.annotation))
    _lifted[function] = factory
    return factory
