"""The reading by units and signs: an expression's flow, run on signals.

What a piece does is in its formula or equation (`formulas`), or in the words by which
it says what no reader can derive (`facts`); what a combinator does is its flow.  So
there is nothing here about any particular piece or combinator.
"""

import ast
import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from adamw_jax.core.flow import Owners, Path, Reading, Run, interpret, slots
from adamw_jax.core.saying import saying
from adamw_jax.core.slots import parts
from adamw_jax.core.symbols import Symbol, formula_of, variable
from adamw_jax.inspect.lint import facts, rules, signal
from adamw_jax.inspect.lint.formulas import Changing, Known, Piece
from adamw_jax.inspect.lint.rules import Finding, finding
from adamw_jax.inspect.lint.signal import Hyper, Number, Signal
from adamw_jax.inspect.lint.views import Seeing, Seen, View, nothing, together, views_of


class Order(Reading):
    """One walk over an expression, in all views at once."""

    def __init__(self, tx: Any):
        self.tx = tx
        self.views = views_of(tx)
        self.found: dict[tuple[str, str], tuple[set[View], dict]] = {}
        self.missed: dict[View, set[Path]] = {}
        self.rates: dict[str, Hyper] = {}
        self.paths: list[Path] = []  # of the combinators that are being run
        self.named: dict[Path, Path] = {}  # slots that are shown under a name around them

    def run(self) -> list[Finding]:
        """All findings, in the order in which they were found."""
        start = Seen(self, [(self.views.all, Signal())])
        out = self.visit(self.tx, start, ())
        if isinstance(out, Seen):
            self.end(out)
        found: dict[tuple[str, str], Finding] = {}
        for (rule, path), (views, details) in self.found.items():
            if any(needed <= views for needed in self.views.needed):
                rule, path = self.blamed(rule, path, frozenset(views))
                found.setdefault((rule, path), finding(rule, path, **details))
        return list(found.values())

    def say(self, views: Seeing) -> rules.Say:
        """What takes a finding in some views."""

        def say(rule: str, path: str, **details: Any) -> None:
            self.found.setdefault((rule, path), (set(), details))[0].update(views)

        return say

    def blamed(self, rule: str, path: str, views: Seeing) -> tuple[str, str]:
        """A denominator that is wrong only where it has missed a mask: the mask's fault."""
        if rule in ("signed_denominator", "unrooted_denominator", "root_of_signed"):
            for mask in sorted({m for view in views for m in self.missed.get(view, ())}):
                inside = self.views.entering(mask)
                if inside and not inside & views:
                    return "mask_in_denominator", self.dotted(mask)
        return rule, path

    def dotted(self, path: Path) -> str:
        """A path as it is shown."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.named:
                return ".".join(self.named[path[:n]])
        return ".".join(path)

    # --- what the reading says of slots, operations and splits ---

    def speaks(self, tx):
        declared = tx.factory.declared["traits"]
        return bool(declared) and not self._stands_for_itself(tx)

    def _stands_for_itself(self, tx: Any) -> bool:
        """Whether a name is made of the same under a mask, which says more than the name."""
        return tx.composite and any(p.factory == tx.factory for p in parts(tx.body).values())

    def visit(self, tx: Any, u: Any, path: Path) -> Any:
        """What an expression makes of a value."""
        last, inner = False, tx
        while True:
            last = last or inner.factory.declared["eval_params"] is not None
            if not inner.composite or self.speaks(inner):
                break
            if inner.factory.declared["traits"]:
                self.named[path] = path
            inner = inner.body
        out = interpret(inner, u, self, path)
        if last and isinstance(out, Seen):
            where = self.dotted(path)
            out = out.map(lambda s: s if s.last is not None else s._replace(last=where))
        return out

    def part(self, run: Run, slot: str, u: Any) -> Any:
        path = (*run.path, slot)
        out = self.visit(run.parts[slot], u, path)
        if isinstance(out, Seen):
            out = out.map(lambda s: s._replace(at=self.dotted(path)))
        return out

    def flow(self, tx, path):
        def flow(run, u):
            self.paths.append(path)
            try:
                return tx.body.flow(run, u)
            finally:
                self.paths.pop()

        return flow

    def split(self, run: Run, u: Any, owners: Owners) -> Any:
        if isinstance(u, dict):
            return nothing(self, u)
        groups: list[tuple[Seeing, Signal]] = []
        for slot in run.parts:
            mine = u.only(self.views.taking(run.path, slot))
            if not owners.passes:
                route = self.dotted((*run.path, slot))
                mine = mine.map(lambda s, r=route: s._replace(route=r))
            out = self.part(run, slot, mine) if mine.groups else mine
            groups += (nothing(self, out) if isinstance(out, dict) else out).groups
        passing = u.only(self.views.taking(run.path, None))
        groups += passing.map(lambda s: s._replace(missed=(*s.missed, run.path))).groups
        return Seen(self, groups)

    def operate(self, op: Callable, values: tuple) -> Seen:
        """An operation on values: run on symbols, and its formula on signals."""
        if any(isinstance(x, dict) for x in values):
            return nothing(self, {f"{i}": x for i, x in enumerate(values)})
        seen = {f"x{i}": x for i, x in enumerate(values) if isinstance(x, Seen)}
        holes = [variable(f"x{i}") if f"x{i}" in seen else x for i, x in enumerate(values)]
        try:
            result = op(*holes)
        except Exception:  # it is not arithmetic
            result = None
        node = formula_of(result) if isinstance(result, Symbol) else None
        path = self.dotted(self.paths[-1] if self.paths else ())
        return Seen(
            self,
            [
                (views, self._result(node, known, path, views))
                for views, known in together(seen)
                if self.note(views, known.values())
            ],
        )

    def _result(self, node: Any, known: dict[str, Signal], path: str, views: Seeing) -> Signal:
        """What a formula of several signals makes of them; None for one that cannot be read."""
        if node is None:
            return signal.uncertain(list(known.values()))
        of = Piece(path, self.say(views))
        of.places = {name: s.at for name, s in known.items() if s.at}
        of.known = {name: _of_branch(s) for name, s in known.items()}
        out = of.of(node)
        out = out if isinstance(out, Signal) else signal.unknown(*known.values())
        if len(out.terms) <= max(len(s.terms) for s in known.values()):  # it is no sum
            out = out._replace(terms=tuple(t._replace(slot=None) for t in out.terms))
        last = next((s.last for s in known.values() if s.last is not None), None)
        if last is not None and out.known and not isinstance(node, ast.Name):
            of.say("changed_after_last", path, last=last)
        return rules.settled(of.say, out, path)

    # --- pieces ---

    def piece(self, tx, u, path):
        words = set(tx.factory.declared["traits"])
        if unknown := words - set(facts.WORDS):
            raise ValueError(
                f"lint: {tx.factory.__name__} has the traits {', '.join(sorted(unknown))}. "
                f"Choose from: {', '.join(facts.WORDS)}."
            )
        said = _said(tx)
        values = self._received(tx, u, path, said)
        if not values:
            return nothing(self, u)
        if said is not None and isinstance(said.result, ast.Dict) and not words:
            names = [ast.literal_eval(key) for key in said.result.keys if key is not None]
            return dict.fromkeys(names, nothing(self, u))
        groups: list[tuple[Seeing, Signal]] = []
        for views, known in together(values):
            self.note(views, known.values())
            groups += self._piece(tx, words, said, known, path, views)
        return Seen(self, groups)

    def _received(self, tx: Any, u: Any, path: Path, said: Any) -> dict[str, Seen]:
        """What a piece receives, by the name that it has in what the piece says."""
        words = tx.factory.declared["traits"]
        if not isinstance(u, dict):
            return {"u": u}
        if "first" in words:
            return {"u": next(iter(u.values()))}
        if tx.factory.declared["consumes"] == "fork":
            return u
        if words or said is not None:
            self.say(nothing(self, u).views)("open_fork", self.dotted(path))
        return {}

    def _piece(self, tx, words, said, known, path, views) -> list[tuple[Seeing, Signal]]:
        """What a piece makes of the signals it receives in some views."""
        of = Piece(self.dotted(path), self.say(views), tx.arguments)
        of.annotations = {k: p.annotation for k, p in tx.factory.signature.parameters.items()}
        of.meant = facts.meaning(words)
        of.known = dict(known)
        before = next(iter(known.values()))
        if "wrapper" in words:
            return self._wrapped(tx, of, before, path, views)
        inner = _Inside(self, _parts_now(tx), path, views)
        of.parts, of.part = frozenset(inner.parts), inner
        if said is not None and (not words - facts.NAMES or _passes(said)):
            out = of.run(said)
            if len(inner.groups) > 1 and _is_part(said.result, inner.parts):
                return inner.groups  # leaves went several ways inside, and come out as they are
            out = out if isinstance(out, Signal) else signal.unknown(before)
        elif words:
            out = facts.after(words, of, before)
        else:
            rules.uncorrected(of.say, before)
            out = signal.unknown(before)
        if ("global" in words or of.is_global) and self._is_part_of_the_tree(path):
            of.say("global_clip_in_route", of.path)
        kept = said is not None and _is_part(said.result, inner.parts)
        return [(views, self._judged(tx, words, said, of, before, out, kept))]

    def _is_part_of_the_tree(self, path: Path) -> bool:
        """Whether some leaves do not come to a place."""
        ways = self.views.ways
        above = [p for p in ways[0] if path[: len(p)] == p and len(path) > len(p)]
        return any(way[p] != path[len(p)] for way in ways for p in above)

    def _judged(self, tx, words, said, of: Piece, before: Signal, after: Signal, kept: bool):
        """What a piece returns, held against what it received; `kept` if it is as a part of it
        returned it."""
        if after is before:
            return before
        after = _carried(before, after)
        after = rules.settled(of.say, after, of.path)
        if "learning_rate" in tx.arguments:
            self.rates[of.path] = of.argument("learning_rate").known_as
        rules.two_rates(of.say, after, of.path)
        if "clip" in words and said is None:
            of.clip(before)
        after = rules.decayed(of.say, before, after, of.path)
        if "independent" in words:
            rates = [self.rates[r] for t in before.gradient for r in t.degrees if r in self.rates]
            rules.scaled_again(of.say, of.argument("schedule").hyper, rates, of.path)
        if before.last is not None and after.known and not kept:
            of.say("changed_after_last", of.path, last=before.last)
        own = any(of.path in t.degrees for t in after.gradient)
        if before.sign != after.sign and not own:
            turned = tuple(t._replace(turned=of.path) for t in after.terms)
            after = after._replace(terms=turned)
        if said is not None and _only_scales(said, of):
            after = after._replace(scaled=of.path)
        elif "scale" not in words:
            unmoved = after.gradient == before.gradient
            after = after._replace(scaled=before.scaled if unmoved else None)
        return after

    def _wrapped(self, tx, of: Piece, before: Signal, path, views):
        """A piece that returns what its part does, at other points or times."""
        out = self.visit(tx.arguments["tx"], Seen(self, [(views, before)]), (*path, "tx"))
        if not isinstance(out, Seen):
            return [(views, signal.unknown(before))]
        if "learning_rate" in tx.arguments:
            mine = of.argument("learning_rate").hyper
            inside = [r for _, s in out.groups for r in s.rates if r in self.rates]
            if inside and not any(signal.same(mine, self.rates[r]) for r in inside):
                of.say("other_learning_rate", of.path, inside=inside[0])
        return out.groups

    def note(self, views: Seeing, signals: Iterable[Signal]) -> bool:
        """Remembers which masks were missed; always true."""
        for s in signals:
            for view in views if s.missed else ():
                self.missed.setdefault(view, set()).update(s.missed)
        return True

    # --- the end ---

    def end(self, out: Seen) -> None:
        """What is wrong with the step as a whole."""
        left = []
        for views, s in out.groups:
            if rules.at_end(self.say(views), s):
                left.append((views, s))
        for views, s in left:
            mask = next((m for m in s.missed if self._would_turn(m, out)), None)
            if mask is None:
                rules.not_turned(self.say(views), s)
                continue
            some = ", if there are any," if mask in self.views.guessed else ""
            where = self.dotted(mask)
            self.say(views)("masked_leaves_ascend", where, mask=f"the mask is False{some}")

    def _would_turn(self, mask: Path, out: Seen) -> bool:
        """Whether what stands behind a mask turns the leaves that go there into a step, or may."""
        start = f"{self.dotted(mask)}." if mask else ""
        for _, s in out.only(self.views.entering(mask)).groups:
            turns = [t.turned for t in s.gradient if t.turned is not None and t.sign == -1]
            if not s.known or any(path.startswith(start) for path in (*s.rates, *turns)):
                return True
        return False


class _Inside:
    """What the parts of a piece make of a signal, in some views.

    Attributes:
      groups: of the last one, the signals by views."""

    def __init__(self, reader: Order, parts: dict[str, Any], path: Path, views: Seeing):
        self.reader, self.parts, self.path, self.views = reader, parts, path, views
        self.groups: list[tuple[Seeing, Signal]] = []

    def __call__(self, slot: str, s: Known) -> Signal:
        s = s if isinstance(s, Signal) else signal.unknown()
        u = Seen(self.reader, [(self.views, s)])
        out = self.reader.visit(self.parts[slot], u, (*self.path, slot))
        self.groups = out.groups if isinstance(out, Seen) else []
        return self.groups[0][1] if len(self.groups) == 1 else signal.unknown(s)


def _said(tx: Any) -> Any:
    """What a piece says, None if that cannot be read."""
    try:
        return saying(tx)
    except (TypeError, ValueError):
        return None


def _parts_now(tx: Any) -> dict[str, Any]:
    """The parts of a piece; hyperparameters that follow a schedule are equal to any other."""
    now = tx.factory.declared["now"]
    for value in (0.5, 8.0) if now else ():  # one of them is in any domain
        with contextlib.suppress(ValueError):
            return slots(tx) | now(tx.arguments, lambda name, schedule, v=value: Changing(v, _NONE))
    return slots(tx)


_NONE = ast.Constant(None)


def _of_branch(s: Signal) -> Signal:
    """A signal whose terms remember the branch they come from."""
    if not s.at:
        return s
    return s._replace(terms=tuple(t._replace(slot=t.slot or s.at) for t in s.terms))


def _carried(before: Signal, after: Signal) -> Signal:
    """The signal behind a piece with what is remembered of the way to it."""
    return after._replace(
        known=after.known and before.known,
        missed=tuple(dict.fromkeys((*before.missed, *after.missed))),
        last=after.last if after.last is not None else before.last,
        route=after.route or before.route,
        inside=tuple(dict.fromkeys((*before.inside, *after.inside))),
    )


def _passes(said: Any) -> bool:
    return not said.statements and isinstance(said.result, ast.Name) and said.result.id == "u"


def _is_part(node: Any, parts: Collection[str]) -> bool:
    """Whether a result is that of a part, as it is."""
    if isinstance(node, ast.IfExp):
        return _is_part(node.body, parts)
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in parts


def _only_scales(said: Any, of: Piece) -> bool:
    """Whether a piece multiplies what it receives by a hyperparameter, and nothing else."""
    node = said.result
    if said.statements or not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    sides = [node.left, node.right]
    others = [x for x in sides if not (isinstance(x, ast.Name) and x.id == "u")]
    if len(others) != 1 or not isinstance(others[0], ast.Name):
        return False
    factor = of.of(others[0])
    return isinstance(factor, Number) and not factor.degrees and not factor.counts
