"""Rules: the mistakes that `lint` looks for, what it says of each, and when."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from adamw_jax.inspect.lint.signal import GRADIENT, Hyper, Number, Signal, Term, is_traced, same


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
    "masked_leaves_ascend": Rule(
        "error",
        "leaves where {mask} pass by as they are, and no learning rate turns them into a step "
        "down: added to the parameters they climb",
        "Use route(...) with optax.set_to_zero() for the others, or mask them with another "
        "optimizer.",
    ),
    "term_without_learning_rate": Rule(
        "error",
        "the learning rate multiplies some terms of the update, and not this one, which points "
        "up the gradient",
        "Put the learning rate behind the sum.",
    ),
    "signed_denominator": Rule(
        "error",
        "this denominator may be negative or pass through 0, and then the step turns around or "
        "grows without bound",
        "Divide by the root of an average of squares, such as rms(decay).",
    ),
    "root_of_signed": Rule(
        "error",
        "takes the root of what may be negative, which is NaN",
        "Square before the average: second_moment(decay).",
    ),
    "correction_beside_root": Rule(
        "error",
        "divides by (1 - decay^t)^{paid:g}; behind {there} the average owes the power {owed:g}",
        "Put bias_correction before the root, or root_bias_correction behind it.",
    ),
    "average_of_root": Rule(
        "warning",
        "averages the root of a square, which is no root mean square",
        "Take the root of the average: second_moment(decay), then root(eps).",
    ),
    "two_decays": Rule(
        "warning",
        "the weights decay here and through the gradient as well, at {first!r}",
        "Remove one of them.",
    ),
    "changed_after_last": Rule(
        "error",
        "changes the update of {last!r}, from which eval_params finds the weights to evaluate",
        "Put it inside, before the step is taken, or remove it.",
    ),
    "other_learning_rate": Rule(
        "error",
        "is given another learning rate than the step inside has at {inside!r}",
        "Give both the same.",
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


Say = Callable[..., None]  # say(rule, path, **details)


def entered(say: Say, s: Signal) -> Signal:
    """What meets an average or a quotient: decays that are meant to be decoupled come too early,
    others are inside from now on."""
    if not s.decays or s.has_rates:
        return s
    for t in s.decays:
        if t.meant == "decoupled_decay":
            say("decoupled_decay_too_early", t.decay)
    told = lambda t: t._replace(meant="told") if t.meant == "decoupled_decay" else t
    terms = tuple(map(told, s.terms))
    inside = [str(t.decay) for t in terms if t.decay is not None and t.meant != "told"]
    return s._replace(terms=terms, inside=tuple(dict.fromkeys((*s.inside, *inside))))


def squared(say: Say, s: Signal) -> None:
    """What is squared."""
    if s.signs is not None:
        say("sign_before_rms", s.signs)


def averaged(say: Say, s: Signal, path: str) -> None:
    """What is averaged, by the piece at a path."""
    if s.form == "square of an average":
        say("moment_of_average", path)
    if s.form == "root of a square":
        say("average_of_root", path)


def rooted(say: Say, s: Signal, path: str) -> None:
    """What is under a root."""
    if s.known and s.definite is False:
        say("root_of_signed", path)


def denominator(say: Say, top: Signal | Number, bottom: Signal, out: Signal, path: str) -> None:
    """The quotient of two, the second of which comes from a path."""
    if bottom.known and bottom.definite is False:
        say("signed_denominator", path)
    elif isinstance(top, Signal) and out.known and (out.degree or 0) < 0:
        say("unrooted_denominator", path)


def clipped(say: Say, s: Signal, path: str) -> None:
    """What is bounded, by the piece at a path."""
    if s.rates:
        say("clip_after_learning_rate", path)


def uncorrected(say: Say, s: Signal) -> None:
    """Corrections of averages that are not there, when no sum can bring them any more."""
    for debt in dict.fromkeys(
        d for t in s.terms for d in t.debts if not d.owed and d.path is not None
    ):
        if debt.others:
            others = ", ".join(str(d.value) for d in debt.others)
            say("correction_decay", debt.path, decay=debt.decay.value, others=others)
        else:
            say("correction_without_average", debt.path)


def settled(say: Say, s: Signal, path: str) -> Signal:
    """The signal behind a piece, its corrections held against the averages."""
    return s._replace(terms=tuple(_settled(say, t, path, s.known) for t in s.terms))


def _settled(say: Say, t: Term, path: str, known: bool) -> Term:
    left = []
    for debt in t.debts:
        if debt.path is not None or not debt.paid:
            left.append(debt)
        elif not debt.owed:
            others = tuple(d.decay for d in t.debts if d.owed and not d.paid)
            left += [debt._replace(path=path, others=others)] if known else []
        elif abs(debt.paid - debt.owed) > 1e-6:
            there = "the root" if abs(debt.owed) < 1 else "no root"
            say("correction_beside_root", path, paid=debt.paid, owed=debt.owed, there=there)
    return t if len(left) == len(t.debts) and left == list(t.debts) else t._replace(debts=(*left,))


def decayed(say: Say, before: Signal, after: Signal, path: str) -> Signal:
    """What a piece at a path returns, if it adds a multiple of θ."""
    new = [t for t in after.decays if t.decay == path and t.born is None]
    stepped = bool(before.rates) or (before.sign == -1 and not before.has_rates)
    moved = any(t.averages for t in before.gradient) or before.degree == 0
    for t in new:
        meant = t.meant or None
        if before.rates and (meant or (t.sign == 1 and before.sign == -1)):
            say("decay_after_learning_rate", path)
        elif meant == "l2" and not stepped and moved:
            say("l2_after_moments", path)
        elif t.sign == -1 and after.sign == 1 and before.known and not before.has_rates:
            say("shrink_before_learning_rate", path)
        elif before.inside and meant != "l2" and path not in before.inside:
            say("two_decays", path, first=before.inside[0])
    born = (t._replace(born=t.sign or 0) if t in new else t for t in after.terms)
    return after._replace(terms=tuple(born)) if new else after


def scaled_again(say: Say, schedule: Hyper, rates: Iterable[Hyper], path: str) -> None:
    """A decay that is independent by name, with the learning rates before it."""
    rates = list(rates)
    if schedule.value is None or is_traced(schedule.value, *(r.value for r in rates)):
        return
    peak = getattr(schedule.value, "peak", schedule.value)
    unit = not callable(peak) and same(Hyper(peak), Hyper(1.0))
    if not unit and any(same(schedule, rate) for rate in rates):
        say("decay_scaled_again", path)


def two_rates(say: Say, after: Signal, path: str) -> None:
    """A piece at a path that multiplies by its learning rate."""
    for t in after.gradient:
        others = [r for r in t.rates if r != path]
        if t.degrees.get(path) and others:
            say("two_learning_rates", path, first=others[0])
            return


def at_end(say: Say, s: Signal) -> bool:
    """What is wrong with the step as a whole; True where it is that nothing turned it around."""
    uncorrected(say, s)
    rates = list(dict.fromkeys(n for t in s.gradient for n in t.degrees if n != GRADIENT))
    lost = [r for r in rates if all(t.degrees.get(r, 0.0) == 0 for t in s.gradient)]
    for rate in lost:
        say("learning_rate_normalized_away", rate)
    for t in s.decays if s.sign == -1 else ():
        if t.sign == 1:
            early = t.born == -1
            say("shrink_before_learning_rate" if early else "decay_after_learning_rate", t.decay)
    if lost or any(len(t.rates) > 1 for t in s.gradient):
        return False  # one mistake, one finding
    rated = [t for t in s.gradient if t.rates]
    bare = [t for t in s.gradient if not t.rates]
    if rated and all(t.sign == 1 for t in rated):
        turned = rated[0].turned
        say("ascent", rated[0].rates[0] if turned is None else turned)
    elif rated and s.known:
        for t in bare:
            if t.sign == 1 and set(t.degrees) == {GRADIENT}:
                say("term_without_learning_rate", t.slot or "")
    return bool(bare) and not rated and s.known and s.sign == 1 and not rates


def not_turned(say: Say, s: Signal) -> None:
    """A step that nothing turned around."""
    if s.scaled is not None:
        say("ascent", s.scaled)
    else:
        say("no_learning_rate", s.route)
