"""The reading by units and signs: an expression's flow, run on signals.

What a piece does is in its formula or equation (`formulas`), or in the words by which
it says what no reader can derive (`facts`); what a combinator does is its flow.  So
there is nothing here about any particular piece or combinator.
"""

import ast
from collections.abc import Callable, Iterator
from typing import Any

from adamw_jax.core.flow import Owners, Path, Reading, Run, Value, interpret, slots
from adamw_jax.core.saying import saying
from adamw_jax.core.slots import parts
from adamw_jax.core.symbols import Symbol, formula_of, variable
from adamw_jax.inspect.lint import facts, rules, signal
from adamw_jax.inspect.lint.formulas import Changing, Known, Piece
from adamw_jax.inspect.lint.rules import Finding, finding
from adamw_jax.inspect.lint.signal import Hyper, Number, Signal
from adamw_jax.inspect.lint.views import View, views_of

Seeing = frozenset[View]


class Seen(Value):
    """What is known of the updates at one place: a signal for every set of views."""

    def __init__(self, reader: "Order", groups: list[tuple[Seeing, Known]]):
        self.reader, self.groups = reader, groups

    @property
    def views(self) -> Seeing:
        return frozenset().union(*(views for views, _ in self.groups))

    def each(self, op: Callable, values: tuple) -> "Seen":
        return self.reader.operate(op, values)

    def __getitem__(self, name: str) -> "Seen":
        unknown = [(views, signal.unknown(s)) for views, s in self.groups]
        return Seen(self.reader, unknown)  # a branch of what is no fork, or of an unknown one

    def map(self, function: Callable[[Seeing, Known], Known]) -> "Seen":
        """Another signal for every set of views."""
        return Seen(self.reader, [(views, function(views, s)) for views, s in self.groups])

    def only(self, views: Seeing) -> "Seen":
        """What is seen in some of the views."""
        kept = [(mine & views, s) for mine, s in self.groups if mine & views]
        return Seen(self.reader, kept)


def together(values: dict[str, Seen]) -> Iterator[tuple[Seeing, dict[str, Known]]]:
    """Several values, by sets of views in which each is one signal."""
    found: list[tuple[Seeing | None, dict[str, Known]]] = [(None, {})]
    for name, value in values.items():
        found = [
            (mine if views is None else views & mine, {**known, name: s})
            for views, known in found
            for mine, s in value.groups
            if views is None or views & mine
        ]
    yield from ((views, known) for views, known in found if views)


class Order(Reading):
    """One walk over an expression, in all views at once."""

    def __init__(self, tx: Any):
        self.tx = tx
        self.views = views_of(tx)
        self.found: dict[tuple[str, str], tuple[set[View], dict]] = {}
        self.missed: dict[View, tuple[str, ...]] = {}
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
            for mask in {m for view in views for m in self.missed.get(view, ())}:
                inside = self.views.entering(self.split_at(mask))
                if inside and not inside & views:
                    return "mask_in_denominator", mask
        return rule, path

    def split_at(self, dotted: str) -> Path:
        """The path of a split that is shown as a dotted one."""
        return next(p for way in self.views.ways for p in way if self.dotted(p) == dotted)

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
        return tx.composite and any(p.factory is tx.factory for p in parts(tx.body).values())

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
            out = out.map(lambda views, s: s._replace(last=s.last if s.last is not None else where))
        return out

    def part(self, run: Run, slot: str, u: Any) -> Any:
        path = (*run.path, slot)
        out = self.visit(run.parts[slot], u, path)
        if isinstance(out, Seen):
            out = out.map(lambda views, s: s._replace(at=self.dotted(path)))
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
            return Seen(self, [(self.views.all, signal.unknown())])
        groups: list[tuple[Seeing, Known]] = []
        for slot in run.parts:
            mine = u.only(self.views.taking(run.path, slot))
            if not owners.passes:
                route = self.dotted((*run.path, slot))
                mine = mine.map(lambda views, s, r=route: s._replace(route=r))
            out = self.part(run, slot, mine) if mine.groups else mine
            if isinstance(out, dict):
                return Seen(self, [(self.views.all, signal.unknown())])
            groups += out.groups
        where = self.dotted(run.path)
        passing = u.only(self.views.taking(run.path, None))
        groups += passing.map(lambda views, s: s._replace(missed=(*s.missed, where))).groups
        return Seen(self, groups)

    def operate(self, op: Callable, values: tuple) -> Seen:
        """An operation on values: run on symbols, and its formula on signals."""
        if any(isinstance(x, dict) for x in values):
            return Seen(self, [(self.views.all, signal.unknown())])
        names = [f"x{i}" for i in range(len(values))]
        try:
            result = op(*map(variable, names))
        except Exception:  # it is not arithmetic
            result = None
        node = formula_of(result) if isinstance(result, Symbol) else None
        path = self.dotted(self.paths[-1] if self.paths else ())
        groups = []
        for views, known in together(dict(zip(names, values, strict=True))):
            self.note(views, known.values())
            groups.append((views, self._result(node, known, path, views)))
        return Seen(self, groups)

    def _result(self, node: Any, known: dict[str, Signal], path: str, views: Seeing) -> Known:
        of = Piece(path, self.say(views))
        if node is None:
            return signal.uncertain(list(known.values()))
        of.places = {name: s.at for name, s in known.items() if s.at}
        of.known = {name: _of_branch(s) for name, s in known.items()}
        out = of.of(node)
        out = out if isinstance(out, Signal) else signal.unknown()
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
        where = self.dotted(path)
        said = _said(tx)
        values = {"u": u}
        if isinstance(u, dict):
            if "first" in words:
                values = {"u": next(iter(u.values()))}
            elif tx.factory.declared["consumes"] == "fork":
                values = u
            elif words or said:
                self.say(self.views.all)("open_fork", where)
                values = {}
        if not values:
            return Seen(self, [(self.views.all, signal.unknown())])
        if said is not None and isinstance(said.result, ast.Dict) and not words:
            return {
                ast.literal_eval(key): Seen(self, [(self.views.all, signal.unknown())])
                for key in said.result.keys
                if key is not None
            }
        groups: list[tuple[Seeing, Known]] = []
        for views, known in together(values):
            self.note(views, known.values())
            groups += self._piece(tx, words, said, known, path, views)
        return Seen(self, groups)

    def _piece(self, tx, words, said, known, path, views) -> list[tuple[Seeing, Known]]:
        """What a piece makes of the signals it receives in some views."""
        where, say = self.dotted(path), self.say(views)
        of = Piece(where, say, tx.arguments)
        of.annotations = {k: p.annotation for k, p in tx.factory.signature.parameters.items()}
        of.meant = facts.meaning(words)
        of.known = dict(known)
        before = next(iter(known.values()))
        if "wrapper" in words:
            return self._wrapped(tx, of, before, path, views)
        inner: list[tuple[Seeing, Known]] = []
        of.parts = frozenset(slots(tx))
        now = tx.factory.declared["now"]
        inside = slots(tx) | (now(tx.arguments, _changing) if now else {})

        def part(slot: str, s: Known) -> Known:
            s = s if isinstance(s, Signal) else signal.unknown()
            out = self.visit(inside[slot], Seen(self, [(views, s)]), (*path, slot))
            inner[:] = out.groups if isinstance(out, Seen) else []
            return inner[0][1] if len(inner) == 1 else signal.unknown(s)

        of.part = part
        if said is not None and (not words - facts.NAMES or _passes(said)):
            out = of.run(said)
            if len(inner) > 1 and _is_part(said.result):
                return inner  # leaves went several ways inside, and come out as they are
            out = out if isinstance(out, Signal) else signal.unknown(before)
        elif words:
            out = facts.after(words, of, before)
        else:
            rules.uncorrected(say, before)
            out = signal.unknown(before)
        if ("global" in words or of.is_global) and views_missing(self, known, path):
            say("global_clip_in_route", where)
        return [(views, self._judged(tx, words, said, of, before, out))]

    def _judged(self, tx, words, said, of: Piece, before: Signal, after: Signal) -> Signal:
        """What a piece returns, held against what it received."""
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
        if before.last is not None and after.known and not _is_part(said and said.result):
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

    def note(self, views: Seeing, signals: Any) -> None:
        """Remembers which masks were missed."""
        for s in signals:
            for view in views if s.missed else ():
                self.missed[view] = tuple(dict.fromkeys((*self.missed.get(view, ()), *s.missed)))

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
            guessed = self.split_at(mask) in self.views.guessed
            words = "the mask is False, if there are any," if guessed else "the mask is False"
            self.say(views)("masked_leaves_ascend", mask, mask=words)

    def _would_turn(self, mask: str, out: Seen) -> bool:
        """Whether what stands behind a mask turns the leaves that go there into a step."""
        inside = self.views.entering(self.split_at(mask))
        start = f"{mask}." if mask else ""
        for views, s in out.groups:
            turns = [*s.rates, *(t.turned for t in s.gradient if t.turned and t.sign == -1)]
            if views & inside and any(path.startswith(start) for path in turns):
                return True
        return False


def views_missing(reader: Order, known: dict, path: Path) -> bool:
    """Whether some leaves do not come to a place."""
    ways = reader.views.ways
    splits = [p for p in ways[0] if path[: len(p)] == p and len(path) > len(p)]
    return any(way[p] != path[len(p)] for way in ways for p in splits)


def _said(tx: Any) -> Any:
    """What a piece says, None if that cannot be read."""
    try:
        return saying(tx)
    except (TypeError, ValueError):
        return None


def _changing(name: str, schedule: Callable) -> Changing:
    return Changing(float(schedule(0)), ast.Name(name))


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


def _is_part(node: Any) -> bool:
    """Whether a result is that of a part, as it is."""
    if isinstance(node, ast.IfExp):
        return _is_part(node.body)
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tx"


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
