"""Transformations: gradient transformations that are expressions.

A `Transformation` is an ordinary `optax.GradientTransformationExtraArgs` that
remembers the call that built it, so any part of it can be swapped by name.

`update` of an outermost transformation checks its arguments, works in at least
float32, returns updates in the gradient's dtype, and runs as one program that
is compiled once per structure, shapes and dtypes, whatever the hyperparameters.
The parts inside are run by `update_part`, without that ceremony.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, overload

import jax
import numpy as np
import optax

from adamw_jax.core import trees
from adamw_jax.core.expression import Expression, is_node, remember

P = ParamSpec("P")


Kind = str | Callable[[list], str]


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

    @staticmethod
    def prepare(value):
        """Every foreign gradient transformation inside an argument, lifted."""
        foreign_or_node = lambda x: is_node(x) or isinstance(x, optax.GradientTransformation)
        lifted = lambda x: lift(x) if isinstance(x, optax.GradientTransformation) else x
        return jax.tree.map(lifted, value, is_leaf=foreign_or_node)

    def _check_body(self, built):
        name = self.factory.__name__
        if not isinstance(built, optax.GradientTransformation):
            raise TypeError(
                f"{name}: returned {built!r}. A transformation's factory "
                "must return an optax.GradientTransformation."
            )
        if self.factory.declared["leafwise"] and not isinstance(built, Transformation):
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
    def consumes(self) -> str:
        """What `update` reads: "tree", or "fork" for a dict of branches."""
        return self._declared("consumes")

    @property
    def produces(self) -> str:
        """What `update` returns: "tree" or "fork"."""
        return self._declared("produces")

    def _declared(self, what: str) -> str:
        if self.composite:
            return self.body._declared(what)
        declared = self.factory.declared[what]
        return declared(list(slots(self).values())) if callable(declared) else declared

    @functools.cached_property
    def leafwise(self) -> bool:
        """Whether transforming a tree is the same as transforming each of its leaves."""
        if self.composite:
            return self.body.leafwise
        declared = self.factory.declared["leafwise"]
        return declared and all(part.leafwise for part in slots(self).values())

    @property
    def separable(self) -> bool:
        """Whether the leaves of a tree may be dealt out, each updated alone."""
        return self.leafwise and self.consumes == self.produces == "tree"


def keywords_of(update: Callable) -> list[str]:
    """The extra arguments that an update names."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except ValueError:  # some builtins have no signature
        return []
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex)


@overload
def transformation(
    function: Callable[P, optax.GradientTransformation],
) -> Callable[P, Transformation]: ...


@overload
def transformation(
    *,
    leafwise: bool = False,
    consumes: Kind = "tree",
    produces: Kind = "tree",
    equation: Equation | None = None,
    traits: tuple[str, ...] = (),
    eval_params: Callable | None = None,
) -> Callable[[Callable[P, optax.GradientTransformation]], Callable[P, Transformation]]: ...


def transformation(
    function: Callable | None = None,
    *,
    leafwise: bool = False,
    consumes: Kind = "tree",
    produces: Kind = "tree",
    equation: Equation | None = None,
    traits: tuple[str, ...] = (),
    eval_params: Callable | None = None,
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
        of branches, or a function from the list of parts to one of these.
      produces: likewise, what `update` returns.
      equation: what the piece does, for `equations`: Python statements joined
        by ";" whose last one is the value passed on, such as
        "m = decay * m + (1 - decay) * u; m".  `u` is what the piece receives (the
        branches' names, if that is a fork), `theta` the parameter, `t` the number
        of this update; names that are assigned are state and begin at 0.  Or a
        function from the arguments to such a text.  The module
        `adamw_jax.inspect.equations` tells the rest.
      traits: words that `lint` reasons with; see `adamw_jax.inspect.lint`.
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
        "eval_params": eval_params,
    }
    for name, kind in (("consumes", consumes), ("produces", produces)):
        if kind not in ("tree", "fork") and not callable(kind):
            raise ValueError(f'transformation: {name} is {kind!r}. It must be "tree" or "fork".')
    if function is None:
        return functools.partial(transformation, **declared)
    return remember(function, Transformation, **declared)


@transformation
def foreign(transform):
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


def opened(tx: Transformation) -> Transformation:
    """The piece or combinator behind a name."""
    while tx.composite:
        tx = tx.body
    return tx


def init_part(tx: Transformation, params: Any) -> Any:
    """The state of a part inside a larger expression."""
    if tx.composite:
        return init_part(tx.body, params)
    return tx.body.init(params)


def update_part(tx: Transformation, updates, state, params=None, extra: Mapping = {}):
    """One update of a part inside a larger expression: no checks, no casts."""
    if tx.separable and not trees.is_bare(updates):
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
    trees.check_not_grown(tx.factory.__name__, out, updates)
    return trees.narrow(out, updates), state


_update_compiled = jax.jit(_update_widened)


def slots(tx: Transformation) -> dict[str, Transformation]:
    """The transformations directly inside `tx`, by name."""
    if tx.composite:
        return slots(tx.body)
    if tx.factory is foreign:
        return {}
    is_part = lambda x: isinstance(x, Transformation)
    found = {}
    for name, value in tx.arguments.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_node):
            if is_part(leaf):
                found[".".join((name, *trees.path_names(path)))] = leaf
    return found
