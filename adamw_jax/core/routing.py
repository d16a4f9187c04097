"""Routing: which transformation updates which leaf.

`masked` splits a tree in two by a mask, `route` in any number by ordered rules
on path and leaf.  Every leaf belongs to exactly one route, and `routes` lists
them all.  `matches` is a mask, or a rule, that is data.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adamw_jax.core import trees
from adamw_jax.core.expression import Expression, remember
from adamw_jax.core.flow import (
    AFlow,
    Flow,
    Owners,
    Path,
    Reading,
    Run,
    Value,
    interpret,
    opened,
    slots,
)
from adamw_jax.core.transformation import (
    Transformation,
    combinator,
    expect_parts,
    lift,
    transformation,
)

Matcher = str | Callable[[str, Any], Any]


class Matches(Expression):
    """A mask or a rule by regular expressions; see `matches`."""

    @staticmethod
    def prepare(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def _check_body(self, built: Any) -> None:
        pass  # there is one factory, below

    def __call__(self, *given: Any) -> Any:
        """The mask of parameters; of a path and a leaf, whether the path matches."""
        if len(given) == 2:
            return self.holds(given[0])
        leaf = lambda path, x: self.holds(trees.path_text(path))
        return jax.tree_util.tree_map_with_path(leaf, *given)

    def holds(self, path: str) -> bool:
        """Whether a path matches."""
        some, none = self.body
        return any(x.search(path) for x in some) and not any(x.search(path) for x in none)

    def check(self, params: Any) -> None:
        """Raises where a regular expression is found in no path of the parameters."""
        paths = ["/".join(names) or "(root)" for names in trees.paths_of(params)]
        for regex in itertools.chain(*self.body):
            if paths and not any(map(regex.search, paths)):
                raise ValueError(
                    f"matches: {regex.pattern!r} is found in no parameter. Correct or remove it; "
                    f"the paths are {', '.join(paths)}."
                )


@functools.partial(remember, cls=Matches)
def matches(*regexes: str, exclude: Sequence[str] = ()) -> Any:
    """A mask that is data: True where a regular expression is found in the path of a leaf.

    A path is written "layers/0/kernel".  Stands wherever a mask or the rule of a route
    does, prints as it was typed, compares, pickles, and is read back by `parse`.

    Args:
      *regexes: one of them must be found in the path.
      exclude: none of these may be.

    Raises:
      ValueError: one is no regular expression; or, at `init`, is found in no parameter.

    Example:
      >>> from adamw_jax import add_decoupled_weight_decay, matches
      >>> mask = matches("kernel", exclude=("head",))
      >>> mask({"head": {"kernel": 1.0}, "up": {"kernel": 1.0, "bias": 1.0}})
      {'head': {'kernel': False}, 'up': {'bias': False, 'kernel': True}}
      >>> add_decoupled_weight_decay(0.1, mask)
      add_decoupled_weight_decay(0.1, mask=matches('kernel', exclude=('head',)))
    """
    if isinstance(exclude, str) or not regexes:
        what = f"exclude is {exclude!r}" if regexes else "got no regular expression"
        raise TypeError(
            f"matches: {what}. Write matches('kernel', exclude=('head',)); '' is in every path."
        )
    return tuple(tuple(_regex("matches", x) for x in given) for given in (regexes, exclude))


def _regex(function: str, text: Any) -> re.Pattern[str]:
    if not isinstance(text, str):
        raise TypeError(f"{function}: {text!r} is no regular expression. Pass a string.")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"{function}: {text!r} is no regular expression: {error}. Correct it."
        ) from None


def _check(matcher: Any, params: Any) -> None:
    """Raises where a mask or a rule of regular expressions has one that is found nowhere."""
    if isinstance(matcher, Matches):
        matcher.check(params)


@combinator
def masked(tx: optax.GradientTransformation, mask: Any) -> AFlow:
    """Applies `tx` to the leaves where `mask` is True; the others pass unchanged.

    Args:
      tx: what to apply.
      mask: a tree of bools shaped like the parameters or a prefix of them, `matches`, or
        a function from parameters to such a tree.

    State: {"tx": the state of `tx`, with `optax.MaskedNode()` for the others}.

    Raises:
      ValueError: the mask does not fit the parameters, or holds something else
        than bools.

    Example:
      >>> from adamw_jax import masked, scale
      >>> tx = masked(scale(2.0), {"a": True, "b": False})
      >>> g = {"a": 1.0, "b": 1.0}
      >>> {name: float(u) for name, u in tx.update(g, tx.init(g))[0].items()}
      {'a': 2.0, 'b': 1.0}
    """
    expect_parts("masked", {"tx": tx})
    trees.check_mask("masked", mask)

    def of(tree: Any) -> list[str | None]:
        return ["tx" if flag else None for flag in trees.mask_flags("masked", mask, tree)]

    check = lambda found, params: _check(mask, params)
    return lambda run, u: run.split(u, Owners(of, passes=True, by=mask, check=check))


def _matches(matcher: Matcher, path: str, leaf: Any) -> bool:
    if isinstance(matcher, str):
        return re.search(matcher, path) is not None
    return bool(matcher(path, leaf))


def assign(matchers: Sequence[Matcher], names: Sequence[str], tree: Any) -> list[str]:
    """The name of the route of every leaf: the first matcher that holds, else the last name."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        text = trees.path_text(path)
        hits = (n for m, n in zip(matchers, names, strict=False) if _matches(m, text, leaf))
        found.append(next(hits, names[-1]))
    return found


@combinator
def routed(
    matchers: tuple[Matcher, ...],
    optional: tuple[str, ...] = (),
    /,
    **branches: optax.GradientTransformation,
) -> AFlow:
    """`route` written out: one branch a matcher in order, and a last one for the rest.

    Args:
      matchers: as the rules of `route`.
      optional: names of branches that may get no leaf.
      **branches: the transformations, by the names of their routes.

    State: a dict of the branches' states, with `optax.MaskedNode()` for leaves
    of other routes.

    Example:
      >>> from adamw_jax import expand, route, scale
      >>> expand(route([("kernel", scale(2.0))], default=scale(1.0)))
      routed(('kernel',), rule0=scale(2.0), default=scale(1.0))
    """
    expect_parts("routed", branches)
    names = tuple(branches)

    def check(owners: Sequence[str | None], params: Any) -> None:
        for matcher, name in zip(matchers, names, strict=False):
            _check(matcher, params)
            if owners and name not in owners and name not in optional:
                paths = [trees.path_text(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
                raise ValueError(
                    f"route: the rule {name!r} ({matcher!r}) matches no parameter that an earlier "
                    f"rule has not taken. Correct or remove it; the paths are {', '.join(paths)}."
                )

    owners = Owners(lambda tree: assign(matchers, names, tree), check=check)
    return lambda run, u: run.split(u, owners)


@transformation
def route(rules: Sequence[tuple[Any, ...]], default: Any) -> Transformation:
    """Sends every leaf to the transformation of the first rule that matches it.

    Args:
      rules: ordered `(matcher, transformation)` pairs, or `(name, matcher,
        transformation)` triples that also name the route.  A matcher is a
        regular expression searched in the path ("layers/0/kernel"), `matches`, or
        a function of path and leaf.
      default: the transformation of all other leaves, or a pair of its name
        and it.  Use `optax.set_to_zero()` to freeze them; frozen leaves hold
        no state.

    A function among the extra arguments of `update` (the loss that Sophia takes)
    is one of all parameters, also for a route that sees some of them.

    State: a dict of the routes' states.

    Raises:
      ValueError: a rule matches nothing (at `init`), or is not of that form.

    Example:
      >>> from adamw_jax import adamw, route, routes, sgd
      >>> tx = route([("vectors", "bias$", sgd(0.1))], default=("rest", adamw(1e-3)))
      >>> routes(tx, {"kernel": 1.0, "bias": 0.0})
      {'bias': 'vectors', 'kernel': 'rest'}
    """
    named = [_named_rule(i, rule) for i, rule in enumerate(_sequence(rules))]
    last = _named_default(default)
    branches = {name: tx for name, _, tx in named} | dict([last])
    if len(branches) != len(named) + 1:
        raise ValueError(
            f"route: two routes share a name among {[name for name, *_ in [*named, last]]}. "
            "Give each its own."
        )
    return routed(tuple(matcher for _, matcher, _ in named), **branches)


def _sequence(rules: Any) -> Sequence[Any]:
    if not isinstance(rules, list | tuple) or isinstance(rules, optax.GradientTransformation):
        raise TypeError(
            f"route: rules is {rules!r}. Pass a list of (matcher, transformation) pairs."
        )
    return rules


def _named_rule(index: int, rule: Any) -> tuple[str, Matcher, Any]:
    """A rule as (name, matcher, transformation)."""
    is_rule = isinstance(rule, tuple | list) and len(rule) in (2, 3)
    if not is_rule or isinstance(rule, optax.GradientTransformation):  # which is a pair, too
        raise TypeError(
            f"route: rule {index} is {rule!r}. Write (matcher, transformation) or "
            "(name, matcher, transformation)."
        )
    name, matcher, tx = rule if len(rule) == 3 else (f"rule{index}", *rule)
    if not isinstance(name, str) or not name:
        raise TypeError(f"route: rule {index} is named {name!r}. Name it with a word.")
    if isinstance(matcher, str):
        _regex("route", matcher)
    elif not trees.is_function(matcher):
        raise TypeError(
            f"route: the matcher of {name!r} is {matcher!r}. Pass a regular expression, or a "
            "function of path and leaf."
        )
    return name, matcher, tx


def _named_default(default: Any) -> tuple[str, Any]:
    if isinstance(default, optax.GradientTransformation):
        return "default", default
    if isinstance(default, tuple | list) and len(default) == 2 and isinstance(default[0], str):
        return default[0], default[1]
    raise TypeError(
        f"route: default is {default!r}. Pass a transformation, or a pair of a name and one."
    )


def routes(tx: optax.GradientTransformation, params: Any) -> dict[str, str]:
    """Every parameter's path with the name of its route; "all" where nothing is routed.

    Routes within routes are joined by dots.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import muon, routes
      >>> routes(muon(0.02), {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
      {'bias': 'adamw', 'kernel': 'muon'}
    """
    trees.check_parameters("routes", params)
    seen = Leaves.of(trees.widen(params))  # as init shows them to the rules
    names = one_of(interpret(lift(tx, "routes"), seen, _Routes())).names
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        trees.path_text(path): ".".join(names[i]) or "all" for i, (path, _) in enumerate(leaves)
    }


class Leaves(Value):
    """The leaves that take some way through an expression, and the routes they have taken.

    Attributes:
      params: the parameters, without those that do not come this way.
      indices: of the leaves among all parameters.
      names: by index, the routes taken so far.
      settled: whether a stage before has said which way they go.
    """

    def __init__(self, params: Any, indices: tuple[int, ...], names: dict[int, tuple[str, ...]]):
        self.params, self.indices, self.names, self.settled = params, indices, names, False

    @classmethod
    def of(cls, params: Any) -> "Leaves":
        """All leaves, at the start."""
        indices = tuple(range(len(jax.tree.leaves(params))))
        return cls(params, indices, dict.fromkeys(indices, ()))

    def each(self, op: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        named = (x for x in values if isinstance(x, Leaves) and any(x.names.values()))
        return next(named, self)

    def __getitem__(self, name: str) -> "Leaves":
        return self

    def chosen(self, flags: list[bool]) -> "Leaves":
        """Those of the leaves whose flag is set."""
        indices = tuple(i for i, flag in zip(self.indices, flags, strict=True) if flag)
        names = {i: self.names[i] for i in indices}
        return Leaves(trees.select(self.params, flags), indices, names)


def one_of(u: Leaves | dict[str, Any]) -> Leaves:
    """Of the branches of a fork the first that has taken a route; they are of the same leaves."""
    if not isinstance(u, dict):
        return u
    branches = [one_of(x) for x in u.values()]
    return next((x for x in branches if any(x.names.values())), branches[0])


class _Routes(Reading):
    """The reading by paths: which way every leaf goes."""

    def piece(self, tx: Any, u: Any, path: Path) -> Any:
        u = one_of(u)
        inner = [interpret(part, u, self, (*path, slot)) for slot, part in slots(tx).items()]
        return one_of({"": u, **{str(i): one_of(x) for i, x in enumerate(inner)}})

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        u = one_of(u)
        if u.settled:
            return u
        found, names = owners.of(u.params), dict(u.names)
        for slot in run.parts:
            own = u.chosen([owner == slot for owner in found])
            if not owners.passes:
                own.names = {i: (*taken, slot) for i, taken in own.names.items()}
            inside = self.part(run, slot, own)
            names |= inside.names
        out = Leaves(u.params, u.indices, names)
        out.settled = any(names.values())
        return out


# --- one step of the way -----------------------------------------------------------------


class Way(NamedTuple):
    """What of an update goes through a slot.

    Attributes:
      flags: for every leaf, whether it goes there.
      whole: whether all that becomes of these leaves has gone there.
      split: whether leaves are dealt out; route: among slots that take all of them.
    """

    flags: list[bool]
    whole: bool
    split: bool = False
    route: bool = False


def ways(tx: Any, params: Any) -> dict[str, Way]:
    """What goes through each of the slots of an expression, in the order in which they run.

    A piece that is no combinator shows all to the parts inside it, and returns what
    the one in slot `tx` makes of it."""
    tx, everything = opened(tx), [True] * len(jax.tree.leaves(params))
    if not isinstance(tx.body, Flow):
        return {slot: Way(everything, slot == "tx") for slot in slots(tx)}
    reading = _Ways(params)
    whole = _gone_through(interpret(tx, _Passed(frozenset()), reading))
    return {slot: way._replace(whole=slot in whole) for slot, way in reading.found.items()}


class _Passed(Value):
    """A value that knows through which slots all of it has gone."""

    def __init__(self, slots: frozenset[str]):
        self.slots = slots

    def each(self, op: Callable[..., Any], values: tuple[Any, ...]) -> "_Passed":
        return _Passed(frozenset.intersection(*map(_gone_through, values)))

    def __getitem__(self, name: str) -> "_Passed":
        return self


def _gone_through(u: Any) -> frozenset[str]:
    branches = u.values() if isinstance(u, dict) else [u]
    return frozenset.intersection(*(x.slots for x in branches))


class _Ways(Reading):
    """The reading of one combinator alone: which leaves go through which slot."""

    def __init__(self, params: Any):
        self.params = params
        self.found: dict[str, Way] = {}

    def part(self, run: Run, slot: str, u: Any) -> _Passed:
        self.found[slot] = Way([True] * len(jax.tree.leaves(self.params)), False)
        return _Passed(_gone_through(u) | {slot})

    def split(self, run: Run, u: Any, owners: Owners) -> _Passed:
        found = owners.of(self.params)
        for slot in run.parts:
            flags = [owner == slot for owner in found]
            self.found[slot] = Way(flags, False, split=True, route=not owners.passes)
        return _Passed(_gone_through(u) | set(run.parts))
