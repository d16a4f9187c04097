"""Lint: mistakes of order, found by walking the expression before anything runs.

A flat list of pieces lets one write another optimizer than one meant, silently:
a learning rate that is normalised away, a decay that is not decoupled, a step
that climbs.  Each rule of `adamw_jax.inspect.rules` looks for one such mistake.

Pieces declare what they do, `@transformation(traits=("average",))`, in the
words of `adamw_jax.inspect.facts.WORDS`.  A piece without traits, or one that
is not of this library, is unknown: nothing is concluded that depends on it.  A
composite is judged by its parts, unless it declares traits itself.

Something that is no whole optimizer, such as `scale_by_momentum(0.9)`, gets the
one finding of severity "note" there is, `no_learning_rate`.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.combinators import chain, fork, interpolate, join, merge, pick, precondition
from adamw_jax.core.flow import slots
from adamw_jax.core.numerics import add, divide
from adamw_jax.core.routing import masked, routed
from adamw_jax.core.slots import parts, replace
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.core.wrappers import scheduled
from adamw_jax.inspect.lint import facts, rules
from adamw_jax.inspect.lint.facts import GRADIENT, UNKNOWN, WORDS, Signal
from adamw_jax.inspect.lint.rules import RULES, Finding, finding


def lint(tx: optax.GradientTransformation, *, waive: str | Collection[str] = ()) -> list[Finding]:
    """Mistakes of order in an optimizer; an empty list when all is well.

    Looks at the expression alone: nothing is run, and training costs nothing more.

    Args:
      tx: the optimizer.
      waive: findings to leave out, by rule ("clip_after_learning_rate") or by
        rule and slot ("clip_after_learning_rate@clip").

    Raises:
      ValueError: `waive` names no rule, or a piece has a trait that is no word.

    Example:
      >>> from adamw_jax import adamw, chain, lint, scale_by_adam, scale_by_learning_rate
      >>> lint(adamw(1e-3))
      []
      >>> [f.rule for f in lint(chain(scale_by_learning_rate(1e-3), scale_by_adam()))]
      ['learning_rate_normalized_away']
    """
    waive = (waive,) if isinstance(waive, str) else tuple(waive)
    for name in waive:
        if name.split("@")[0] not in RULES:
            raise ValueError(
                f"lint: waive names no rule {name!r}. Choose one of: {', '.join(RULES)}."
            )
    tx = lift(tx, "lint")
    pieces = map(_opened, (tx, *parts(tx).values()))
    views = max((len(slots(piece)) for piece in pieces if piece.factory is routed), default=1)
    found: dict[tuple[str, str], Finding] = {}
    for view in range(views):  # as a leaf sees it that takes this branch of every route
        for hit in _Walk(view).run(tx):
            found.setdefault((hit.rule, hit.path), hit)
    return [f for f in found.values() if not {f.rule, f"{f.rule}@{f.path}"} & set(waive)]


def assert_clean(
    tx: optax.GradientTransformation, *, waive: str | Collection[str] = ()
) -> Transformation:
    """`tx` itself, after checking that `lint` finds nothing, notes included.

    Write `tx = assert_clean(chain(...))` where an optimizer is made.

    Raises:
      ValueError: there are findings; the message lists them.

    Example:
      >>> from adamw_jax import adamw, assert_clean
      >>> tx = assert_clean(adamw(1e-3))
    """
    findings = lint(tx, waive=waive)
    if findings:
        lines = "\n  ".join(map(str, findings))
        raise ValueError(f"assert_clean: {len(findings)} findings. Mend or waive:\n  {lines}")
    return lift(tx)


def _opened(tx: Transformation) -> Transformation:
    """The expression behind a name, unless the name's own traits speak for it."""
    while tx.composite and not tx.factory.declared["traits"]:
        tx = tx.body
    return tx


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def in_order(op, branches):
    import inspect

    names = inspect.signature(op).parameters
    return (
        {n: branches[n] for n in names if n in branches}
        if set(branches) <= set(names)
        else branches
    )


class _Walk:
    """One walk over an expression, taking one branch of every route."""

    def __init__(self, view: int):
        self.view = view
        self.route = ""  # path of the branch taken last
        self.findings: list[Finding] = []

    def run(self, tx: Transformation) -> list[Finding]:
        end = self.visit(tx, "", Signal(), frozenset())
        at_end = rules.at_end(end, self.route) if isinstance(end, Signal) else ()
        return [*self.findings, *at_end]

    def visit(self, tx: Transformation, path: str, s: Any, inside: frozenset) -> Any:
        """What `tx` returns for what it receives: a signal, or a dict of them for a fork.

        `inside` holds "route" and "denominator", if it stands in one."""
        tx = _opened(tx)
        traits = tx.factory.declared["traits"]
        if tx.factory in _COMBINATORS:
            return _COMBINATORS[tx.factory](self, tx, path, s, inside)
        if unknown := set(traits) - set(WORDS):
            raise ValueError(
                f"lint: {tx.factory.__name__} has the traits {', '.join(sorted(unknown))}. "
                f"Choose from: {', '.join(WORDS)}."
            )
        if "wrapper" in traits:
            return self.visit(tx.arguments["tx"], _join(path, "tx"), s, inside)
        if isinstance(s, dict) and "first" in traits:
            s = next(iter(s.values()))
        if isinstance(s, dict) and traits:
            self.findings.append(finding("open_fork", path))
        if isinstance(s, dict) or not traits:
            return UNKNOWN
        self.findings += rules.at_piece(set(traits), tx.arguments, path, s, inside)
        return facts.after(traits, tx.arguments, path, s)

    def parts(self, tx, path, s, inside) -> dict[str, Any]:
        """What every part returns, all of which receive the same."""
        return {n: self.visit(p, _join(path, n), s, inside) for n, p in slots(tx).items()}

    # One method a combinator.

    def chain(self, tx, path, s, inside):
        for name, stage in slots(tx).items():
            s = self.visit(stage, _join(path, name), s, inside)
        return s

    def fork(self, tx, path, s, inside):
        return self.parts(tx, path, s, inside)

    def pick(self, tx, path, s, inside):
        return s.get(tx.arguments["name"], UNKNOWN) if isinstance(s, dict) else UNKNOWN

    def merge(self, tx, path, s, inside):
        return self.joined(tx.arguments["op"], s) if isinstance(s, dict) else UNKNOWN

    def join(self, tx, path, s, inside):
        if isinstance(s, dict):
            return self.joined(tx.arguments["op"], self.parts(tx, path, s, inside))
        if tx.arguments["op"] is divide and len(slots(tx)) == 2:
            above, below = in_order(divide, slots(tx))
            return self.ratio(above, below, tx, path, s, inside)
        # Each term may hold the correction of an average that its neighbour keeps.
        decays = {name: _decays(branch) for name, branch in slots(tx).items()}
        out = {}
        for name, branch in slots(tx).items():
            lent = [d for other, ds in decays.items() if other != name for d in ds]
            seen = s._replace(lent=(*s.lent, *lent))
            out[name] = self.visit(branch, _join(path, name), seen, inside)
        return self.joined(tx.arguments["op"], out)._replace(lent=s.lent)

    def joined(self, op: Callable, branches: dict[str, Any]) -> Signal:
        parts = in_order(op, branches).values()
        signals = [b if isinstance(b, Signal) else UNKNOWN for b in parts]
        if op is divide and len(signals) == 2:
            return facts.quotient(*signals)
        return facts.summed(signals, certain=op is add)

    def precondition(self, tx, path, s, inside):
        return self.ratio("numerator", "denominator", tx, path, s, inside)

    def ratio(self, above, below, tx, path, s, inside):
        """What the part in slot `above` returns, divided by what the one in `below` does."""
        top = self.visit(slots(tx)[above], _join(path, above), s, inside)
        bottom = self.visit(slots(tx)[below], _join(path, below), s, inside | {"denominator"})
        if not isinstance(top, Signal) or not isinstance(bottom, Signal):
            return UNKNOWN
        if bottom.known and bottom.degrees[GRADIENT] != 0:
            self.findings += rules.too_early(top)
        out = facts.quotient(top, bottom)
        degree = out.degrees.get(GRADIENT)
        if out.known and degree is not None and degree < 0:
            self.findings.append(finding("unrooted_denominator", _join(path, below)))
        return out

    def interpolate(self, tx, path, s, inside):
        out = self.visit(tx.arguments["tx"], _join(path, "tx"), s, inside)
        return facts.summed([out, s]) if isinstance(s, Signal) and isinstance(out, Signal) else out

    def masked(self, tx, path, s, inside):
        out = self.visit(tx.arguments["tx"], _join(path, "tx"), s, inside | {"route"})
        if not isinstance(s, Signal) or not isinstance(out, Signal):
            return UNKNOWN
        changed = (out.degrees, out.positive) != (s.degrees, s.positive)
        if "denominator" in inside and out.known and changed:
            self.findings.append(finding("mask_in_denominator", path))
        return facts.merged(out, s)

    def routed(self, tx, path, s, inside):
        branches = slots(tx)
        name = list(branches)[min(self.view, len(branches) - 1)]
        self.route = _join(path, name)
        return self.visit(branches[name], self.route, s, inside | {"route"})

    def scheduled(self, tx, path, s, inside):
        # As in its update, the scheduled hyperparameters are tracers: equal to any other.
        out = []

        def traced(values):
            inner = replace(tx.arguments["tx"], tx.arguments["path"], **values)
            out.append(self.visit(inner, _join(path, "tx"), s, inside))

        names = [name for name in tx.arguments if name not in ("tx", "path")]
        jax.eval_shape(traced, dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.float32)))
        return out[0]


def _decays(tx: Transformation) -> list[Any]:
    """The decays of all averages in an expression."""
    pieces = (tx, *parts(tx).values())
    averages = [p for p in pieces if "average" in p.factory.declared["traits"]]
    return [facts.decay_of(piece.arguments) for piece in averages]


_COMBINATORS = {
    chain: _Walk.chain,
    fork: _Walk.fork,
    pick: _Walk.pick,
    merge: _Walk.merge,
    join: _Walk.join,
    precondition: _Walk.precondition,
    interpolate: _Walk.interpolate,
    masked: _Walk.masked,
    routed: _Walk.routed,
    scheduled: _Walk.scheduled,
}
