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
Which leaf gets which transformation is the subject of `adamw_jax.routing`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from adamw_jax.core.domains import Fraction
from adamw_jax.core.numerics import divide, rotate
from adamw_jax.core.slots import states_of
from adamw_jax.core.transformation import Transformation, init_part, transformation, update_part
from adamw_jax.core.trees import branches_of, cast


def expect_parts(name: str, stages: dict[str, Any]) -> None:
    """Raises where a stage is not a transformation or its name cannot be a slot."""
    for key, stage in stages.items():
        if not isinstance(stage, Transformation):
            raise TypeError(
                f"{name}: {key!r} is {stage!r}, not a gradient transformation. "
                "Pass a piece, for example identity()."
            )
        if "." in key:
            raise TypeError(f"{name}: the name {key!r} holds a dot. Dots separate slots in a path.")


def _as_first(parts: list[Transformation]) -> str:
    return parts[0].consumes if parts else "tree"


def _as_last(parts: list[Transformation]) -> str:
    return parts[-1].produces if parts else "tree"


@transformation(leafwise=True, consumes=_as_first, produces=_as_last)
def chain(*stages: optax.GradientTransformation, **named: optax.GradientTransformation):
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
    mirror = dict if named else lambda states: tuple(states.values())

    def init(params):
        return mirror({name: init_part(part, params) for name, part in parts.items()})

    def update(updates, state, params=None, **extra):
        states, new = states_of("chain", tuple(parts), state, listed=not named), {}
        for name, part in parts.items():
            updates, new[name] = update_part(part, updates, states[name], params, extra)
        return updates, mirror(new)

    return optax.GradientTransformationExtraArgs(init, update)


def _side_by_side(branches: dict[str, Transformation], join: Callable[[dict[str, Any]], Any]):
    """Every branch sees the same input; `join` makes one result of theirs."""

    def init(params):
        return {name: init_part(branch, params) for name, branch in branches.items()}

    def update(updates, state, params=None, **extra):
        states, out, new = states_of("fork", tuple(branches), state), {}, {}
        for name, branch in branches.items():
            out[name], new[name] = update_part(branch, updates, states[name], params, extra)
        return join(out), new

    return optax.GradientTransformationExtraArgs(init, update)


@transformation(leafwise=True, consumes=_as_first, produces="fork")
def fork(**branches: optax.GradientTransformation):
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
    return _side_by_side(branches, lambda out: out)


@transformation(leafwise=True, consumes="fork")
def merge(op: Callable):
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

    def leafwise(updates, params):
        if not isinstance(updates, dict):
            raise TypeError(f"merge: got {type(updates).__name__}, no dict. Put a fork before it.")
        if not names_branches(op, updates):
            raise TypeError(
                f"merge: the function's parameters are not the branches {', '.join(updates)}. "
                "Name them alike, for example merge(lambda g, m: g + m)."
            )
        leaf = lambda *xs: op(**dict(zip(updates, xs, strict=True)))
        return jax.tree.map(leaf, *updates.values())

    return optax.stateless(leafwise)


def names_branches(op: Callable, branches: dict[str, Any]) -> bool:
    """Whether the parameters of `op` are named like the branches."""
    try:
        parameters = inspect.signature(op).parameters.values()
    except ValueError:  # some builtins have no signature
        return False
    by_name = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return set(branches) <= by_name


def _takes(op: Callable, arguments: Iterable) -> bool:
    try:
        inspect.signature(op).bind(*arguments)
    except ValueError:  # some builtins have no signature
        return True
    except TypeError:
        return False
    return True


@transformation(leafwise=True, consumes="fork")
def pick(name: str):
    """{name: tree} -> tree: takes one branch of a fork.

    Raises:
      KeyError: there is no such branch.

    Example:
      >>> from adamw_jax import pick
      >>> pick("b").update({"a": 1.0, "b": 2.0}, pick("b").init(0.0))[0].item()
      2.0
    """
    return optax.stateless(lambda fork, params: branches_of("pick", fork, name)[0])


@transformation(leafwise=True, consumes=_as_first)
def join(op: Callable, **branches: optax.GradientTransformation):
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
        leaf = lambda *xs: op(**dict(zip(branches, xs, strict=True)))
    else:
        leaf = op
    return _side_by_side(branches, lambda out: jax.tree.map(leaf, *out.values()))


@transformation(leafwise=True, consumes=_as_first)
def precondition(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    basis: optax.GradientTransformation | None = None,
):
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
    branches = {"numerator": numerator, "denominator": denominator}
    expect_parts("precondition", branches)
    if basis is None:
        return _side_by_side(branches, lambda out: jax.tree.map(divide, *out.values()))
    branches["basis"] = basis
    expect_parts("precondition", branches)

    def init(params):
        return {name: init_part(branch, params) for name, branch in branches.items()}

    def update(updates, state, params=None, **extra):
        run = lambda name, u: update_part(branches[name], u, state[name], params, extra)
        rotations, new_basis = run("basis", updates)
        top, new_numerator = run("numerator", updates)
        bottom, new_denominator = run("denominator", jax.tree.map(rotate, updates, rotations))
        quotient = jax.tree.map(divide, jax.tree.map(rotate, top, rotations), bottom)
        new = {"numerator": new_numerator, "denominator": new_denominator, "basis": new_basis}
        return jax.tree.map(functools.partial(rotate, back=True), quotient, rotations), new

    return optax.GradientTransformationExtraArgs(init, update)


@transformation(leafwise=True, equation="weight * tx(u) + (1 - weight) * u")
def interpolate(weight: Fraction, tx: optax.GradientTransformation):
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

    def init(params):
        return {"tx": init_part(tx, params)}

    def update(updates, state, params=None, **extra):
        branch, new = update_part(tx, updates, state["tx"], params, extra)
        mix = lambda m, u: cast(weight, u) * m + (1 - cast(weight, u)) * u
        return jax.tree.map(mix, branch, updates), {"tx": new}

    return optax.GradientTransformationExtraArgs(init, update)
