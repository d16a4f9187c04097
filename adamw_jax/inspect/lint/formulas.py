"""Formulas: what a piece makes of a signal, from what it says.

A saying is a few lines of Python; here they are run on signals and numbers.  State
that is read before it is assigned is what it was: `m = decay * m + (1 - decay) * u`
is an average, and the value of `m` from then on.
"""

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import jax
import numpy as np

from adamw_jax.core import domains
from adamw_jax.core.saying import Saying, assignment
from adamw_jax.core.symbols import Symbol
from adamw_jax.inspect.lint import rules, signal
from adamw_jax.inspect.lint.signal import ANY, Hyper, Number, Signal

Known = Signal | Number

# Functions by what they are of their first argument.
_NORMS = {"norm", "rms", "global_norm", "norm_1"}
_LINEAR = {"rotate", "rotate_back"}


class Changing(Symbol):
    """A hyperparameter that follows a schedule: equal to any other."""


class Piece:
    """The arithmetic of one piece, or of an operation of a combinator, at one place.

    Attributes:
      path: the slot in which it stands.
      say: takes what is wrong: a rule, a path, details.
      arguments: of the piece, by name; annotations: of its factory.
      known: what other names stand for.
      meant: which decay it is meant to add.
      part: what a part of it makes of a signal, by slot.
      places: by name, the slots that values come from.
    """

    def __init__(self, path: str, say: rules.Say, arguments: Mapping[str, Any] | None = None):
        self.path, self.say = path, say
        self.arguments = arguments or {}
        self.annotations: Mapping[str, Any] = {}
        self.known: dict[str, Known] = {}
        self.meant = ""
        self.part: Callable[[str, Known], Known] | None = None
        self.parts: frozenset[str] = frozenset()
        self.places: dict[str, str] = {}
        self.is_global = False
        self._hypers: dict[str, Hyper] = {}

    # --- running a saying ---

    def run(self, said: Saying) -> Known:
        """What is passed on."""
        targets = {n.id for s in said.statements for n in ast.walk(s) if _is_target(n)}
        first = self._pass(said, targets, {})
        final = {k: v for k, v in first.items() if not _olds(v)}
        after = first if targets <= set(final) else self._pass(said, targets, first, final)
        self.known |= after
        out = self.of(said.result)
        return signal.unknown(out) if _olds(out) else out

    def _pass(self, said, targets, earlier, final=None) -> dict[str, Known]:
        """The values of all assigned names; state that is not assigned yet is as `earlier`."""
        starts: dict[str, Known] = {}
        done: dict[str, Known] = {}
        for statement in said.statements:
            is_start = isinstance(statement, ast.If) and ast.unparse(statement.test) == "t == 1"
            for line in statement.body if isinstance(statement, ast.If) else [statement]:
                name, value = assignment(line)
                opaque = {x: signal.old_state(x) for x in targets}
                self.known |= opaque | earlier | {name: opaque[name]} | done
                if is_start:
                    starts[name] = self.of(value)
                elif final and name in final:
                    done[name] = final[name]
                else:
                    done[name] = self._state(name, self.of(value), starts.get(name))
        return done

    def _state(self, name: str, value: Known, start: Known | None) -> Known:
        """A state from now on, if its new value is made of the old one."""
        if isinstance(value, Number):
            return value
        own = [t for t in value.terms if t.old == name]
        rest = value._replace(terms=tuple(t for t in value.terms if t.old != name))
        if not own:
            return value
        if not rest.terms:
            return Number()
        if isinstance(start, Signal):  # it began as a function of θ
            return signal.unknown(rest)
        if start is not None and start.low < 0:
            rest = rest._replace(definite=None if rest.definite else rest.definite)
        if (own[0].low, own[0].high) == (1, 1) and len(own) == 1:
            return rest  # a sum
        began = own[0].by is None or (start is not None and start.exact != 0)
        return self.average(rest, None if began else own[0].by)

    # --- arithmetic that has something to say ---

    def entering(self, s: Signal) -> Signal:
        return rules.entered(self.say, s)

    def average(self, s: Signal, decay: Hyper | None) -> Signal:
        rules.averaged(self.say, s, self.path)
        return signal.averaged(self.entering(s), decay)

    def square(self, s: Signal) -> Signal:
        rules.squared(self.say, s)
        return self.power(s, 2.0)

    def root(self, s: Signal) -> Signal:
        return self.power(s, 0.5)

    def power(self, s: Signal, p: float) -> Signal:
        if p % 1:
            rules.rooted(self.say, s, self.path)
        rules.uncorrected(self.say, s)
        return signal.power(self.entering(s), p)

    def quotient(self, top: Known, bottom: Signal, path: str) -> Signal:
        rules.uncorrected(self.say, bottom)
        if bottom.known and bottom.degree != 0:
            bottom = self.entering(bottom)
            top = self.entering(top) if isinstance(top, Signal) else top
        if isinstance(top, Number):
            one = Signal((signal.Term(degrees={}),), definite=True)
            out = signal.product(signal.times(one, top), bottom, -1.0)
        else:
            out = signal.product(top, bottom, -1.0)
        rules.denominator(self.say, top, bottom, out, path)
        return out

    def clip(self, s: Signal) -> None:
        rules.clipped(self.say, s, self.path)

    def argument(self, name: str) -> Number:
        """A hyperparameter."""
        value = self.arguments.get(name)
        if name not in self.arguments:
            return Number(0.0) if name == "learning_rate" else Number()
        if name not in self._hypers:
            known = _is_number(value) and not isinstance(value, Changing)
            self._hypers[name] = Hyper(value) if known else ANY
        low, high = self._bounds(name, value)
        degrees = {self.path: 1.0} if name == "learning_rate" else {}
        return Number(low, high, self._hypers[name], degrees)

    def _bounds(self, name: str, value: Any) -> tuple[float, float]:
        plain = not callable(value) and not signal.is_traced(value)
        if plain and not isinstance(value, Changing) and not np.iscomplexobj(value):
            found = np.asarray(value)
            if found.dtype.kind in "fiub" and found.size:
                return float(found.min()), float(found.max())
        annotation = self.annotations.get(name)
        low = 0.0 if not _admits(name, -1.0, annotation) else -math.inf
        return low, math.inf if _admits(name, 2.0, annotation) else 1.0

    # --- expressions ---

    def of(self, node: ast.expr) -> Known:
        """The value of an expression."""
        reader = getattr(self, f"_{type(node).__name__}", None)
        return signal.unknown() if reader is None else reader(node)

    def _Constant(self, node):
        number = isinstance(node.value, int | float)
        return signal.constant(float(node.value)) if number else signal.unknown()

    def _Name(self, node):
        name = node.id
        if name in self.known:
            return self.known[name]
        if name == "theta":
            return signal.parameter(self.path, self.meant)
        if name == "t":
            return Number(1.0, counts=True)
        return self.argument(name) if _is_number(self.arguments.get(name)) else signal.unknown()

    def _UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            return Number(0.0, 1.0)
        value = self.of(node.operand)
        return self._times(signal.constant(-1.0), value) if type(node.op) is ast.USub else value

    def _BinOp(self, node):
        a, b = self.of(node.left), self.of(node.right)
        match node.op:
            case ast.Add():
                return self._plus(a, b)
            case ast.Sub():
                if isinstance(a, Number) and isinstance(b, Number):
                    return signal.number_difference(a, b)
                return self._plus(a, self._times(signal.constant(-1.0), b))
            case ast.Mult():
                return self._times(a, b)
            case ast.Div():
                place = self.places.get(getattr(node.right, "id", ""), self.path)
                return self._over(a, b, place)
            case ast.Pow():
                return self._power(a, b)
        return signal.unknown(a, b)

    def _plus(self, a, b):
        if isinstance(a, Number) and isinstance(b, Number):
            return signal.number_sum(a, b)
        return signal.plus(a, b)

    def _times(self, a, b):
        if isinstance(a, Number):
            a, b = b, a
        if isinstance(a, Number):
            return signal.number_product(a, b)
        if isinstance(b, Number):
            return signal.times(a, b)
        if a is b:
            return self.square(a)
        return signal.unknown(a, b) if _olds(a) or _olds(b) else signal.product(a, b)

    def _over(self, a, b, place):
        if isinstance(b, Number):
            if isinstance(a, Number):
                return signal.number_product(a, b, -1.0)
            return signal.times(a, b, -1.0)
        if _olds(a) or _olds(b):
            return signal.unknown(*(x for x in (a, b) if isinstance(x, Signal)))
        return self.quotient(a, b, place)

    def _power(self, a, b):
        if isinstance(a, Number):
            return signal.number_power(a, b) if isinstance(b, Number) else signal.unknown(b)
        p = b.exact if isinstance(b, Number) else None
        if p is None or p == 0 or _olds(a):
            return signal.unknown(a)
        up = a if abs(p) == 1 else self.square(a) if abs(p) == 2 else self.power(a, abs(p))
        return up if p > 0 else self.quotient(signal.constant(1.0), up, self.path)

    def _Compare(self, node):
        return Number(0.0, 1.0)

    _BoolOp = _Compare

    def _IfExp(self, node):
        return signal.either(self.of(node.body), self.of(node.orelse))

    def _Call(self, node):
        name = getattr(node.func, "id", "")
        values = [self.of(x) for x in node.args]
        if name in self.parts and self.part is not None and values:
            return self.part(name, values[0])
        if name in _NORMS and values:
            self.is_global = self.is_global or name == "global_norm"
            return _norm(values[0])
        known = getattr(self, f"_{name}_of", None)
        if name in _LINEAR and values and isinstance(values[0], Signal):
            definite = None if values[0].definite else values[0].definite
            return values[0]._replace(definite=definite, signs=None, form="", at="")
        return known(*values) if known is not None and values else signal.unknown(*values)

    def _sqrt_of(self, x):
        return self._power(x, signal.constant(0.5))

    def _abs_of(self, x):
        if isinstance(x, Number):
            return x if x.low >= 0 else Number(0.0, degrees=x.degrees)
        return signal.unknown(x) if _olds(x) else signal.magnitude(self.entering(x))

    def _sign_of(self, x):
        if isinstance(x, Number) or _olds(x):
            return signal.unknown(x)
        rules.uncorrected(self.say, x)
        return signal.normalized(self.entering(x), self.path)

    def _mean_of(self, x):
        return x if isinstance(x, Number) else signal.unknown(x)

    def _clip_of(self, x, low=None, high=None):
        if isinstance(x, Number):
            return x
        self.clip(x)
        return x._replace(scaled=None, at="")

    def _maximum_of(self, a, b):
        return self._bounded(a, b, max)

    def _minimum_of(self, a, b):
        return self._bounded(a, b, min)

    def _bounded(self, a, b, pick):
        if isinstance(a, Number) and isinstance(b, Number):
            return self._bounded_number(a, b, pick)
        if isinstance(a, Number) or isinstance(b, Number):
            s, n = (b, a) if isinstance(a, Number) else (a, b)
            definite = s.definite
            if pick is max and n.low >= 0:
                definite = True
            elif pick is min and n.low < 0:
                definite = None if definite else definite
            return s._replace(definite=definite, form="", scaled=None, at="")
        definite = a.definite and b.definite if pick is min else a.definite or b.definite
        a, b = signal.without_old(a), signal.without_old(b)
        if not a.terms or not b.terms:  # the largest so far
            s = a if a.terms else b
            return s._replace(definite=definite, form="", scaled=None, at="")
        return signal.either(a, b)._replace(definite=definite, form="")

    def _bounded_number(self, a: Number, b: Number, pick) -> Number:
        bounds = pick(a.low, b.low), pick(a.high, b.high)
        if a.exact == 1 or b.exact == 1:  # min(1, bound / norm): a clip, mostly 1
            other = b if a.exact == 1 else a
            if any(d for name, d in other.degrees.items() if name != signal.GRADIENT):
                self.say("clip_after_learning_rate", self.path)
            return Number(*bounds)
        same_degrees = dict(a.degrees) == dict(b.degrees)
        return Number(*bounds, degrees=a.degrees if same_degrees else _lost(a, b))


def _lost(a: Number, b: Number) -> dict[str, None]:
    return dict.fromkeys({**a.degrees, **b.degrees})


def _norm(x: Known) -> Number:
    """The size of something: never negative, and of its degree."""
    if isinstance(x, Number):
        return x if x.low >= 0 else Number(0.0, degrees=x.degrees)
    return Number(0.0, degrees=x.degrees)


def _olds(x: Known) -> bool:
    return isinstance(x, Signal) and any(t.old is not None for t in x.terms)


def _is_target(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(getattr(node, "ctx", None), ast.Store)


def _is_number(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return False
    return callable(value) or isinstance(
        value, int | float | complex | np.generic | np.ndarray | jax.Array
    )


def _admits(name: str, value: float, annotation: Any) -> bool:
    """Whether a hyperparameter may have a value."""
    try:
        domains.admit("lint", name, value, annotation)
    except ValueError:
        return False
    return True
