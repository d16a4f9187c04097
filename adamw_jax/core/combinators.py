"""Combinators: how pieces make an optimizer.

Adam divides an average of g by the root of an average of g².  Both averages
must see the raw gradient, so a flat chain cannot say it: its second piece sees
the output of the first.  The algebra therefore has two directions.

* `chain(a, b)` runs in sequence: `b` sees what `a` returns.
* `fork(x=a, y=b)` runs side by side: both see the same input, and the result is
  a dict of trees.  `merge(op)` makes one tree of them, `pick(name)` takes one.
* `join(op, x=a, y=b)` is the two together: `u -> op(a(u), b(u))`.
* `precondition(numerator, denominator)` is the join by division that most
  optimizers are: `u -> numerator(u) / denominator(u)`.
* `interpolate(weight, a)` mixes a branch with its input.

State mirrors the expression: a tuple for positional parts, a dict for named ones.
Which leaf gets which transformation is the subject of `adamw_jax.core.routing`.
The body of each is its flow, which everything else reads: see `adamw_jax.core.flow`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import optax

from adamw_jax.core.domains import Fraction
from adamw_jax.core.flow import AFlow, Run, Value, each
from adamw_jax.core.numerics import divide, like, rotate, rotate_back
from adamw_jax.core.transformation import combinator, expect_parts
from adamw_jax.core.trees import branches_of


@combinator
def chain(*stages: optax.GradientTransformation, **named: optax.GradientTransformation) -> AFlow:
    """u -> last(...second(first(u))): each stage sees what the one before returns.

    Args:
      *stages: transformations in order, or
      **named: named ones in order, whose names are the slots that `swap` knows.

    State: a tuple of the stages' states, or a dict by name.

    Raises:
      TypeError: a stage is not a gradient transformation, or some are named and
        others not.

    Example:
      >>> from adamw_jax import chain, clip, scale
      >>> tx = chain(clip(1.0), scale(-0.5))
      >>> tx.update(4.0, tx.init(0.0))[0].item()
      -0.5
    """
    if stages and named:
        raise TypeError("chain: some stages are named and others are not. Name all or none.")
    parts = named or {str(i): stage for i, stage in enumerate(stages)}
    expect_parts("chain", parts)

    def flow(run: Run, u: Any) -> Any:
        for slot in parts:
            u = run(slot, u)
        return u

    return flow


@combinator
def fork(**branches: optax.GradientTransformation) -> AFlow:
    """u -> {name: branch(u)}: every branch sees the same input.

    Follow it with `merge` or `pick`, or use `join` for fork and merge in one.

    State: a dict of the branches' states.

    Example:
      >>> from adamw_jax import chain, fork, identity, pick, scale
      >>> tx = chain(fork(plain=identity(), twice=scale(2.0)), pick("twice"))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      6.0
    """
    expect_parts("fork", branches)
    return lambda run, u: {name: run(name, u) for name in branches}


@combinator
def merge(op: Callable[..., Any]) -> AFlow:
    """{name: tree} -> op(name=leaf, ...), leaf by leaf: makes one tree of a fork.

    Args:
      op: a function of arrays whose parameters are named like the branches.

    Raises:
      TypeError: `op` does not name the branches.

    Example:
      >>> from adamw_jax import chain, fork, identity, merge, scale
      >>> tx = chain(fork(g=identity(), m=scale(2.0)), merge(lambda g, m: g - m))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      -3.0
    """
    names = _parameters(op)

    def flow(run: Run, u: Any) -> Any:
        if not isinstance(u, dict | Value):
            raise TypeError(f"merge: got {type(u).__name__}, no dict. Put a fork before it.")
        there = u if isinstance(u, dict) else dict.fromkeys(names)
        if not names_branches(op, there):
            raise TypeError(
                f"merge: the function's parameters are not the branches {', '.join(there)}. "
                "Name them alike, for example merge(lambda g, m: g + m)."
            )
        return each_by_name(op, dict(zip(there, branches_of("merge", u, *there), strict=True)))

    return flow


def _parameters(op: Callable[..., Any]) -> list[str]:
    """The parameters of a function that have no default."""
    try:
        parameters = inspect.signature(op).parameters.values()
    except ValueError:  # some builtins have no signature
        return []
    return [p.name for p in parameters if p.default is p.empty]


def each_by_name(op: Callable[..., Any], branches: dict[str, Any]) -> Any:
    """`each` of an operation whose parameters are named like the branches, in its own order."""
    names = [name for name in inspect.signature(op).parameters if name in branches]
    called = functools.wraps(op)(lambda *xs: op(**dict(zip(names, xs, strict=True))))
    return each(called, *(branches[name] for name in names))


def names_branches(op: Callable[..., Any], branches: dict[str, Any]) -> bool:
    """Whether the parameters of `op` are named like the branches."""
    try:
        parameters = inspect.signature(op).parameters.values()
    except ValueError:  # some builtins have no signature
        return False
    by_name = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return set(branches) <= by_name


def _takes(op: Callable[..., Any], arguments: Iterable[Any]) -> bool:
    try:
        inspect.signature(op).bind(*arguments)
    except ValueError:  # some builtins have no signature
        return True
    except TypeError:
        return False
    return True


@combinator
def pick(name: str) -> AFlow:
    """{name: tree} -> tree: takes one branch of a fork.

    Raises:
      KeyError: there is no such branch.

    Example:
      >>> from adamw_jax import pick
      >>> pick("b").update({"a": 1.0, "b": 2.0}, pick("b").init(0.0))[0].item()
      2.0
    """
    return lambda run, u: branches_of("pick", u, name)[0]


@combinator
def join(op: Callable[..., Any], **branches: optax.GradientTransformation) -> AFlow:
    """u -> op(branch(u), ...), leaf by leaf; every branch sees the same input.

    Args:
      op: a function of as many arrays as there are branches.  If its parameters
        are named like the branches they are matched by name, else in order.
      **branches: transformations.

    State: a dict of the branches' states.

    Example:
      >>> from adamw_jax import identity, join, scale
      >>> tx = join(lambda g, m: g - m, g=identity(), m=scale(0.5))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      1.5
    """
    if not branches:
        raise TypeError("join: got no branches. Name at least one.")
    if not callable(op) or not (names_branches(op, branches) or _takes(op, branches)):
        raise TypeError(f"join: op is {op!r}. Pass a function of {', '.join(branches)} (arrays).")
    expect_parts("join", branches)
    if names_branches(op, branches):
        return lambda run, u: each_by_name(op, {name: run(name, u) for name in branches})
    return lambda run, u: each(op, *(run(name, u) for name in branches))


@combinator
def precondition(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    basis: optax.GradientTransformation | None = None,
) -> AFlow:
    """u -> numerator(u) / denominator(u), 0 where the denominator is 0.

    The sentence most optimizers are.  Both branches see the same u, so what
    stands before (clipping, an L2 term) reaches both.

    With a basis the quotient is taken in rotated coordinates, for a matrix
    u -> Q (Qᵀ numerator(u) R / denominator(Qᵀ u R)) Rᵀ.

    Args:
      numerator: what is divided.
      denominator: what divides.
      basis: from u to the rotations, a tuple of matrices for every leaf, one an
        axis, None for an axis left alone; see `eigenbasis`.

    State: {"numerator": ..., "denominator": ..., "basis": ... if there is one}.

    Example:
      >>> from adamw_jax import chain, identity, precondition, root, square
      >>> tx = precondition(identity(), chain(square(), root(eps=1.0)))
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      0.75
    """
    expect_parts("precondition", {"numerator": numerator, "denominator": denominator})
    if basis is None:
        return lambda run, u: each(divide, run("numerator", u), run("denominator", u))
    expect_parts("precondition", {"basis": basis})

    def flow(run: Run, u: Any) -> Any:
        rotations = run("basis", u)
        above = each(rotate, run("numerator", u), rotations)
        below = run("denominator", each(rotate, u, rotations))
        return each(rotate_back, each(divide, above, below), rotations)

    return flow


@combinator
def interpolate(weight: Fraction, tx: optax.GradientTransformation) -> AFlow:
    """u -> weight * tx(u) + (1 - weight) * u.

    Args:
      weight: the share of the branch, in [0, 1].
      tx: the branch.

    State: {"tx": state of the branch}.

    Example:
      >>> from adamw_jax import interpolate, scale
      >>> tx = interpolate(0.25, scale(5.0))
      >>> tx.update(1.0, tx.init(0.0))[0].item()
      2.0

    Reference: Chen et al., "Symbolic Discovery of Optimization Algorithms",
    2023, algorithm 2 (Lion's direction).
    """
    expect_parts("interpolate", {"tx": tx})

    def mix(m: Any, g: Any) -> Any:
        share = like(weight, m)
        return share * m + (1 - share) * g

    return lambda run, u: each(mix, run("tx", u), u)
