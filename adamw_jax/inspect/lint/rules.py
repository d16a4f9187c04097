"""Rules: the mistakes that `lint` looks for, and what it says of each."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from adamw_jax.inspect.lint import facts
from adamw_jax.inspect.lint.facts import GRADIENT, Signal


class Rule(NamedTuple):
    """What a rule says when it is broken, and what to do."""

    severity: str
    message: str
    cure: str


RULES = {
    "learning_rate_normalized_away": Rule(
        "error",
        "this learning rate stands before a piece that returns the same for any multiple of what "
        "it receives, and has no effect",
        "Move it to the end.",
    ),
    "two_learning_rates": Rule(
        "error",
        "a learning rate has been applied at {first!r} already; the two multiply, and with them "
        "their signs",
        "Remove one of them.",
    ),
    "no_learning_rate": Rule(
        "note",
        "nothing multiplies by a learning rate or turns the direction of ascent into a step down",
        "In a whole optimizer, end with scale_by_learning_rate(...).",
    ),
    "ascent": Rule(
        "error",
        "the update points up the gradient: parameters would climb",
        "Use scale_by_learning_rate, which negates, or negate once.",
    ),
    "decoupled_decay_too_early": Rule(
        "error",
        "this decay claims to be decoupled, but is averaged or divided with the gradient",
        "Move it behind the averages and the quotient, or call it add_l2_gradient.",
    ),
    "l2_after_moments": Rule(
        "error",
        "the L2 term is added behind the averages or the quotient, which should see it",
        "Move it to the front, or call it add_decoupled_weight_decay.",
    ),
    "decay_after_learning_rate": Rule(
        "error",
        "adds a multiple of the weights to a step that is negated already: they would grow",
        "Move it before the learning rate, or use shrink, which subtracts.",
    ),
    "shrink_before_learning_rate": Rule(
        "error",
        "takes the decay off a direction that the learning rate will negate and scale again: "
        "weights would grow",
        "Move it behind the learning rate, or use add_decoupled_weight_decay.",
    ),
    "decay_scaled_again": Rule(
        "warning",
        "the decay is independent of the learning rate by name, and scaled by it through its "
        "schedule",
        "Give it relative(schedule) or none; to couple, put add_decoupled_weight_decay before "
        "the learning rate.",
    ),
    "correction_without_average": Rule(
        "error",
        "corrects for an average that began at 0, and receives none that is not corrected yet",
        "Put it right behind the average, or remove it.",
    ),
    "correction_decay": Rule(
        "error",
        "corrects for the decay {decay}; the average upstream has {others}",
        "Give both the same decay.",
    ),
    "clip_after_learning_rate": Rule(
        "warning",
        "clips the step after the learning rate, so the bound is on how far parameters move and "
        "a schedule changes what it means",
        "Move it before the learning rate.",
    ),
    "global_clip_in_route": Rule(
        "warning",
        "claims to look at the whole tree and sees the leaves of this route alone",
        "Put it before the route.",
    ),
    "sign_before_rms": Rule(
        "error",
        "what follows squares these signs: every second moment is 1",
        "Remove one of the two, or take the sign last.",
    ),
    "moment_of_average": Rule(
        "warning",
        "squares an average: the second moment should see the gradient that the first one sees",
        "Fork: precondition(numerator, denominator) shows both the same gradient.",
    ),
    "unrooted_denominator": Rule(
        "warning",
        "the denominator grows faster with the gradient than the numerator, so that the larger "
        "the gradient, the smaller the step",
        "End the denominator with root(eps).",
    ),
    "open_fork": Rule(
        "error",
        "receives the branches of a fork, and not one tree of updates",
        "Put merge(op) or pick(name) before it, or write join or precondition.",
    ),
    "mask_in_denominator": Rule(
        "error",
        "where the mask is False the denominator is the bare gradient",
        "Mask the whole quotient, or use route.",
    ),
}


class Finding(NamedTuple):
    """One mistake: the broken rule, the slot where, what is wrong and what to do.

    Attributes:
      rule: its name, one of `adamw_jax.inspect.rules.RULES`.
      path: dotted path of the slot as `parts` lists it; "" for the whole.
      message: what is wrong.
      cure: what to do.
      severity: "error", "warning" or "note".
    """

    rule: str
    path: str
    message: str
    cure: str
    severity: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule} at {self.path!r}: {self.message}. {self.cure}"


def finding(rule: str, path: str, **details: Any) -> Finding:
    """The finding that a rule is broken at a path."""
    severity, message, cure = RULES[rule]
    return Finding(rule, path, message.format(**details), cure, severity)


def at_piece(
    traits: set[str],
    arguments: Mapping[str, Any],
    path: str,
    s: Signal,
    inside: frozenset[str],
) -> Iterator[Finding]:
    """What is wrong with a piece that receives the signal `s` in this place."""
    rates = _effective(s)
    if "correction" in traits and s.known:
        yield from _correction(facts.decay_of(arguments), path, s)
    if "clip" in traits and rates:
        yield finding("clip_after_learning_rate", path)
    if "global" in traits and "route" in inside:
        yield finding("global_clip_in_route", path)
    if "squares" in traits and s.signs is not None:
        yield finding("sign_before_rms", s.signs)
    if {"squares", "average"} <= traits and s.smooth and s.degrees.get(GRADIENT) != 0:
        yield finding("moment_of_average", path)
    if traits & {"average", "squares", "scale_invariant"}:
        yield from too_early(s)
    if "learning_rate" in traits and rates:
        yield finding("two_learning_rates", path, first=rates[0])
    yield from _decay(traits, arguments, path, s)


def _effective(s: Signal) -> list[str]:
    """The learning rates that have not been normalised away."""
    return [rate for rate in s.rates if s.degrees.get(rate)]


def _decay(traits, arguments, path, s: Signal) -> Iterator[Finding]:
    stepped = _effective(s) or (s.sign == -1 and not s.rates)
    if traits & {"decoupled_decay", "l2"} and _effective(s):
        yield finding("decay_after_learning_rate", path)
    elif "l2" in traits and not stepped and (s.averaged or s.degrees[GRADIENT] == 0):
        yield finding("l2_after_moments", path)
    if "decay_after_rate" in traits and not stepped and s.sign == 1 and s.known:
        yield finding("shrink_before_learning_rate", path)
    if "independent" in traits and _couples(arguments.get("schedule"), s.rates.values()):
        yield finding("decay_scaled_again", path)


def _couples(schedule: Any, rates: Iterable[Any]) -> bool:
    """Whether a decay's schedule is one of the learning rates, and no mere shape."""
    if schedule is None or facts.is_traced(schedule, *rates):
        return False
    peak = getattr(schedule, "peak", schedule)
    unit = not callable(peak) and facts.same(peak, 1.0)
    return not unit and any(facts.same(schedule, rate) for rate in rates)


def _correction(decay: Any, path: str, s: Signal) -> Iterator[Finding]:
    if any(facts.same(decay, other) for other in (*s.averages, *s.lent)):
        return
    if s.averages:
        others = ", ".join(map(str, s.averages))
        yield finding("correction_decay", path, decay=decay, others=others)
    else:
        yield finding("correction_without_average", path)


def too_early(s: Signal) -> Iterator[Finding]:
    """The decoupled terms of a signal that meets an average or a quotient."""
    for path in () if s.rates else s.decays:
        yield finding("decoupled_decay_too_early", path)


def at_end(s: Signal, route: str) -> Iterator[Finding]:
    """What is wrong with the step as a whole."""
    lost = [rate for rate in s.rates if s.degrees.get(rate) == 0]
    for rate in lost:
        yield finding("learning_rate_normalized_away", rate)
    for path in () if s.rates else s.grown:  # it was the step that was negated, not a loss
        yield finding("decay_after_learning_rate", path)
    if lost or len(s.rates) > 1 or s.sign != 1:
        return  # one mistake, one finding
    if s.rates:
        yield finding("ascent", s.turned or next(iter(s.rates)))
    elif s.known and s.last_scale is not None:
        yield finding("ascent", s.last_scale)
    elif s.known:
        yield finding("no_learning_rate", route)
