"""Lint: every rule on a wrong expression and on its mended one, and silence elsewhere."""

import jax
import optax
import pytest
import zoo
from strangers import mean, then

import adamw_jax as aj
from adamw_jax.core.flow import Flow, Owners
from adamw_jax.core.numerics import maximum
from adamw_jax.core.saying import saying
from adamw_jax.inspect.lint.facts import WORDS
from adamw_jax.inspect.lint.rules import RULES
from adamw_jax.inspect.periodic import factories

CHAIN, QUOTIENT, IDENTITY, LR = (
    aj.chain,
    aj.precondition,
    aj.identity(),
    aj.scale_by_learning_rate(1e-3),
)
ADAM, SIGN, AVERAGE, RMS = aj.scale_by_adam(), aj.sign(), aj.average(0.9), aj.rms(0.999)
MOMENTUM, HEAVY = aj.scale_by_momentum(0.9), aj.scale_by_momentum(0.9, gain=1.0)
SECOND, ROOT = aj.second_moment(0.999), aj.root(1e-8)
CORRECT, CORRECT_SECOND = aj.bias_correction(0.9), aj.bias_correction(0.999)
CORRECT_ROOT = aj.root_bias_correction(0.999)
DECAY, L2, SHRINK = aj.add_decoupled_weight_decay(0.1), aj.add_l2_gradient(0.1), aj.shrink(0.1)
CLIP, GLOBAL = aj.clip(1.0), aj.clip_by_global_norm(1.0)
COSINE = aj.cosine(1e-3, 100)
MASK, OTHERS = {"w": True, "b": False}, {"w": False, "b": True}
FOREIGN = optax.scale(-0.5)


def masked_denominator(part):
    return CHAIN(d=aj.precondition(MOMENTUM, part), lr=LR)


def routed(branch):
    return CHAIN(aj.route([("x", "bias$", branch)], ("rest", aj.adamw(1e-3))))


def rms_of(*before):
    return CHAIN(*before, aj.scale_by_rms(0.999), LR)


@aj.transformation(leafwise=True, traits=("learning_rate",))
def forgot_to_negate(learning_rate):
    return optax.scale(learning_rate)


def by_shape(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


# (rule, path, wrong, mended)
CASES = [
    ("learning_rate_normalized_away", "0", CHAIN(LR, ADAM), CHAIN(ADAM, LR)),
    (
        "learning_rate_normalized_away",
        "0",
        CHAIN(aj.scale_by_learning_rate(COSINE), aj.orthogonalize()),
        CHAIN(aj.orthogonalize(), aj.scale_by_learning_rate(COSINE)),
    ),
    ("learning_rate_normalized_away", "lr", CHAIN(lr=LR, s=aj.sign()), CHAIN(s=aj.sign(), lr=LR)),
    ("learning_rate_normalized_away", "0", CHAIN(LR, aj.adamw(1.0)), aj.adamw(1.0)),
    ("two_learning_rates", "1", CHAIN(aj.sgd(0.1), LR), aj.sgd(0.1)),
    ("two_learning_rates", "1", CHAIN(aj.adamw(1e-3), LR), CHAIN(aj.adamw(1e-3), aj.scale(0.1))),
    ("two_learning_rates", "1", CHAIN(routed(aj.sgd(0.1)), LR), routed(aj.sgd(0.1))),
    ("no_learning_rate", "", ADAM, CHAIN(ADAM, LR)),
    ("no_learning_rate", "rest", aj.route([("a", "x", aj.sgd(0.1))], ("rest", ADAM)), aj.sgd(0.1)),
    (
        "moment_of_average",
        "2.denominator.moment",
        CHAIN(aj.scale_by_momentum(0.9), aj.bias_correction(0.9), aj.scale_by_rms(0.999), LR),
        CHAIN(aj.scale_by_rms(0.999), aj.scale_by_momentum(0.9), aj.bias_correction(0.9), LR),
    ),
    (
        "moment_of_average",
        "1.denominator.moment",
        rms_of(MOMENTUM),
        rms_of(MOMENTUM, aj.orthogonalize()),
    ),
    (
        "unrooted_denominator",
        "0.denominator",
        CHAIN(aj.precondition(MOMENTUM, aj.second_moment(0.999)), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(aj.second_moment(0.999), aj.root(1e-8))), LR),
    ),
    (
        "unrooted_denominator",
        "0.denominator",
        CHAIN(aj.join(aj.divide, denominator=SECOND, numerator=MOMENTUM), LR),
        CHAIN(aj.join(aj.divide, denominator=aj.rms(0.999), numerator=MOMENTUM), LR),
    ),
    (
        "open_fork",
        "1",
        CHAIN(aj.fork(a=MOMENTUM, b=aj.identity()), LR),
        CHAIN(aj.fork(a=MOMENTUM, b=aj.identity()), aj.pick("a"), LR),
    ),
    ("ascent", "1", CHAIN(ADAM, aj.scale(1e-3)), CHAIN(ADAM, aj.scale(-1e-3))),
    ("ascent", "0", CHAIN(aj.scale(-1.0), LR), CHAIN(aj.scale(1.0), LR)),
    # to climb may be meant; the decay still shrinks the weights
    ("ascent", "0", CHAIN(aj.scale(-1.0), aj.adamw(1e-3)), aj.adamw(1e-3)),
    ("ascent", "0", CHAIN(aj.scale(-1.0), L2, aj.adam(1e-3)), CHAIN(L2, aj.adam(1e-3))),
    ("ascent", "2", CHAIN(ADAM, LR, aj.scale(-1.0)), CHAIN(ADAM, LR, aj.scale(0.5))),
    (
        "ascent",
        "1",
        CHAIN(ADAM, forgot_to_negate(0.1)),
        CHAIN(ADAM, aj.scale(-1.0), forgot_to_negate(0.1)),
    ),
    ("decoupled_decay_too_early", "0", CHAIN(DECAY, ADAM, LR), CHAIN(ADAM, DECAY, LR)),
    ("decoupled_decay_too_early", "0", CHAIN(DECAY, aj.adamw(1e-3)), CHAIN(L2, aj.adam(1e-3))),
    ("decoupled_decay_too_early", "0", CHAIN(DECAY, MOMENTUM, LR), CHAIN(MOMENTUM, DECAY, LR)),
    ("decoupled_decay_too_early", "0", CHAIN(DECAY, aj.sign(), LR), CHAIN(aj.sign(), DECAY, LR)),
    (
        "decoupled_decay_too_early",
        "0.numerator.1",
        CHAIN(aj.precondition(CHAIN(MOMENTUM, DECAY), aj.rms(0.999)), LR),
        CHAIN(aj.precondition(MOMENTUM, aj.rms(0.999)), DECAY, LR),
    ),
    (
        "l2_after_moments",
        "weight_decay",
        aj.swap(aj.adamw(1e-3), "weight_decay", L2),
        aj.adamw(1.0),
    ),
    ("l2_after_moments", "1", CHAIN(MOMENTUM, L2, LR), CHAIN(L2, MOMENTUM, LR)),
    (
        "l2_after_moments",
        "1",
        CHAIN(aj.sign(), aj.add_l2_gradient(0.1, MASK), LR),
        CHAIN(aj.add_l2_gradient(0.1, MASK), aj.sign(), LR),
    ),
    ("decay_after_learning_rate", "2", CHAIN(ADAM, LR, DECAY), CHAIN(ADAM, LR, SHRINK)),
    ("decay_after_learning_rate", "1", CHAIN(aj.adam(1e-3), L2), CHAIN(L2, aj.adam(1e-3))),
    (
        "decay_after_learning_rate",
        "2",
        CHAIN(ADAM, aj.scale(-1e-3), DECAY),
        CHAIN(ADAM, DECAY, aj.scale(-1e-3)),
    ),
    (
        "decay_after_learning_rate",
        "2.tx",
        CHAIN(ADAM, aj.scale(-1.0), aj.masked(L2, MASK), aj.scale(1e-3)),
        CHAIN(aj.masked(L2, MASK), ADAM, aj.scale(-1.0), aj.scale(1e-3)),
    ),
    ("shrink_before_learning_rate", "1", CHAIN(ADAM, SHRINK, LR), CHAIN(ADAM, LR, SHRINK)),
    (
        "decay_scaled_again",
        "2",
        CHAIN(ADAM, aj.scale_by_learning_rate(COSINE), aj.shrink(0.1, COSINE)),
        CHAIN(ADAM, aj.scale_by_learning_rate(COSINE), aj.shrink(0.1, aj.relative(COSINE))),
    ),
    (
        "decay_scaled_again",
        "2",
        CHAIN(ADAM, LR, aj.shrink(0.1, 1e-3)),
        CHAIN(ADAM, LR, aj.shrink_after(0.1, 1e-3)),
    ),
    ("correction_without_average", "0", CHAIN(CORRECT, LR), CHAIN(MOMENTUM, CORRECT, LR)),
    (
        "correction_without_average",
        "2",
        CHAIN(MOMENTUM, CORRECT, CORRECT, LR),
        CHAIN(MOMENTUM, CORRECT, LR),
    ),
    (
        "correction_without_average",
        "direction.numerator.1",
        aj.swap(aj.adamw(1e-3), "direction.numerator.0", aj.identity()),
        aj.swap(aj.adamw(1e-3), "direction.numerator", aj.identity()),
    ),
    (
        "correction_decay",
        "1",
        CHAIN(aj.scale_by_momentum(0.99), CORRECT, LR),
        CHAIN(MOMENTUM, CORRECT, LR),
    ),
    (
        "correction_decay",
        "direction.denominator.correction",
        aj.swap(aj.adamw(1e-3), "direction.denominator.correction", CORRECT),
        aj.adamw(1e-3),
    ),
    ("clip_after_learning_rate", "1", CHAIN(aj.sgd(0.1), CLIP), CHAIN(CLIP, aj.sgd(0.1))),
    ("clip_after_learning_rate", "2", CHAIN(ADAM, LR, GLOBAL), CHAIN(ADAM, GLOBAL, LR)),
    (
        "global_clip_in_route",
        "0.x.0",
        routed(CHAIN(GLOBAL, aj.sgd(0.1))),
        CHAIN(GLOBAL, routed(aj.sgd(0.1))),
    ),
    (
        "global_clip_in_route",
        "adamw.0",
        aj.muon(0.02, others=CHAIN(GLOBAL, aj.adamw(1e-3))),
        CHAIN(GLOBAL, aj.muon(0.02)),
    ),
    ("sign_before_rms", "0", rms_of(aj.sign()), rms_of()),
    ("sign_before_rms", "1", rms_of(CLIP, aj.sign(), aj.scale(2.0)), rms_of(aj.sign(), MOMENTUM)),
    (
        "mask_in_denominator",
        "d.denominator",
        masked_denominator(aj.masked(aj.rms(0.999), MASK)),
        CHAIN(aj.masked(aj.precondition(MOMENTUM, aj.rms(0.999)), MASK), LR),
    ),
    (
        "mask_in_denominator",
        "0.d",
        CHAIN(aj.join(aj.divide, n=MOMENTUM, d=aj.masked(aj.rms(0.999), MASK)), LR),
        CHAIN(aj.masked(aj.join(aj.divide, n=MOMENTUM, d=aj.rms(0.999)), MASK), LR),
    ),
    (
        "mask_in_denominator",
        "d.denominator.1",
        masked_denominator(CHAIN(SECOND, aj.masked(aj.root(), MASK))),
        masked_denominator(CHAIN(SECOND, aj.masked(aj.bias_correction(0.999), MASK), aj.root())),
    ),
    (
        "masked_leaves_ascend",
        "",
        aj.masked(aj.adamw(1e-3), MASK),
        CHAIN(aj.masked(aj.adamw(1e-3), MASK), aj.masked(aj.sgd(1e-3), OTHERS)),
    ),
    (
        "masked_leaves_ascend",
        "1",
        CHAIN(GLOBAL, aj.masked(aj.adamw(1e-3), by_shape)),
        CHAIN(GLOBAL, aj.masked(aj.adamw(1e-3), by_shape), aj.masked(aj.sgd(1.0), lambda p: p)),
    ),
    (
        "term_without_learning_rate",
        "b",
        aj.join(aj.add, a=CHAIN(ADAM, LR), b=MOMENTUM),
        CHAIN(aj.join(aj.add, a=ADAM, b=MOMENTUM), LR),
    ),
    (
        "signed_denominator",
        "0.denominator",
        CHAIN(aj.precondition(aj.identity(), MOMENTUM), LR),
        CHAIN(aj.precondition(aj.identity(), CHAIN(aj.square(), aj.root())), LR),
    ),
    (
        "root_of_signed",
        "0.denominator.1",
        CHAIN(aj.precondition(MOMENTUM, CHAIN(MOMENTUM, aj.root())), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, aj.root())), LR),
    ),
    (
        "correction_beside_root",
        "0.denominator.2",
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, aj.root(), CORRECT_SECOND)), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, aj.root(), CORRECT_ROOT)), LR),
    ),
    (
        "correction_beside_root",
        "0.denominator.1",
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, CORRECT_ROOT, aj.root())), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, CORRECT_SECOND, aj.root())), LR),
    ),
    (
        "average_of_root",
        "0.denominator.2",
        CHAIN(aj.precondition(MOMENTUM, CHAIN(aj.square(), aj.root(), MOMENTUM)), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(aj.square(), MOMENTUM, aj.root())), LR),
    ),
    ("two_decays", "2", CHAIN(L2, ADAM, DECAY, LR), CHAIN(ADAM, DECAY, LR)),
    ("two_decays", "1.weight_decay", CHAIN(L2, aj.adamw(1e-3)), CHAIN(L2, aj.adam(1e-3))),
    (
        "changed_after_last",
        "1",
        CHAIN(aj.schedule_free_adamw(0.1), aj.scale(0.5)),
        CHAIN(GLOBAL, aj.schedule_free_adamw(0.1)),
    ),
    (
        "other_learning_rate",
        "",
        aj.schedule_free(aj.sgd(0.1), 0.7),
        aj.schedule_free(aj.sgd(0.1), 0.1),
    ),
]


@pytest.mark.parametrize(("rule", "path", "wrong", "mended"), CASES)
def test_a_wrong_expression_and_its_mended_version(rule, path, wrong, mended):
    (found,) = aj.lint(wrong)
    assert (found.rule, found.path) == (rule, path)
    assert found.severity == RULES[rule].severity
    assert path in aj.parts(wrong) or not path
    assert rule in str(found)
    assert found.cure in str(found)
    assert "{" not in found.message
    assert aj.lint(mended) == []


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)
    assert {rule.severity for rule in RULES.values()} == {"error", "warning", "note"}


@pytest.mark.parametrize("factory", factories().values(), ids=factories())
def test_what_we_ship_is_clean(factory):
    names = factory.signature.parameters
    settings = [{}]
    settings += [{"weight_decay": 0.1, "mask": MASK}] if "mask" in names else []
    settings += [{"b2": 0.9}, {"b1": 0.5}] if {"b1", "b2"} <= set(names) else []
    settings += [{"coupling": "independent"}] if "coupling" in names else []
    for rate in (1.0, COSINE):
        for more in settings:
            tx = factory(rate, **more)
            for whole in (tx, aj.expand(tx), CHAIN(GLOBAL, tx), CHAIN(optax.identity(), tx)):
                assert aj.lint(whole) == []
    assert aj.lint(factory(lambda t: 0.1 / (t + 1))) == []


@zoo.rows()
def test_the_table_of_tests_is_clean(row):
    assert aj.lint(row.tx()) == []


# --- what strangers write -----------------------------------------------------------------


@aj.combinator
def over(above, below, eps=1e-8):
    quotient = lambda a, b: a / (b**0.5 + eps)
    return lambda run, u: aj.each(quotient, run("above", u), run("below", u))


@aj.combinator
def where(tx, mask):
    def of(tree):
        return ["tx" if flag else None for flag in jax.tree.leaves(mask)]

    return lambda run, u: run.split(u, Owners(of, passes=True, by=mask))


@aj.elementwise(m=0.0, v=0.0)
def whole_adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    def formula(u, t, theta, m, v):
        m = b1 * m + (1 - b1) * u
        v = b2 * v + (1 - b2) * u**2
        direction = m / (1 - b1**t) / ((v / (1 - b2**t)) ** 0.5 + eps)
        return -learning_rate * (direction + weight_decay * theta), {"m": m, "v": v}

    return formula


@aj.elementwise(m=0.0, v=0.0)
def efficient_adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    def formula(u, t, m, v):
        m = b1 * m + (1 - b1) * u
        v = b2 * v + (1 - b2) * u * u
        rate = learning_rate * (1 - b2**t) ** 0.5 / (1 - b1**t)
        return -rate * m / (v**0.5 + eps), {"m": m, "v": v}

    return formula


@aj.elementwise(v=0.0, average=0.0)
def centred(decay, eps=1e-6):
    def formula(u, v, average):
        v = decay * v + (1 - decay) * u**2
        average = decay * average + (1 - decay) * u
        return u / (v - average**2 + eps) ** 0.5, {"v": v, "average": average}

    return formula


@aj.elementwise(m=0.0)
def lion_by_hand(b1=0.9, b2=0.99):
    def formula(u, m):
        c = b1 * m + (1 - b1) * u
        return c / abs(c), {"m": b2 * m + (1 - b2) * u}

    return formula


@aj.elementwise(velocity=0.0)
def torch_sgd(learning_rate, momentum=0.9, weight_decay=1e-4):
    def formula(u, theta, velocity):
        velocity = momentum * velocity + (u + weight_decay * theta)
        return -learning_rate * velocity, {"velocity": velocity}

    return formula


@aj.elementwise(velocity=0.0)
def rate_in_the_buffer(learning_rate, momentum=0.9):
    def formula(u, velocity):
        velocity = momentum * velocity - learning_rate * u
        return momentum * velocity - learning_rate * u, {"velocity": velocity}

    return formula


@aj.elementwise
def plain_decay(weight_decay):
    return lambda u, theta: u + weight_decay * theta


@aj.elementwise
def step(learning_rate):
    return lambda u: -learning_rate * u


@aj.elementwise(largest=0.0)
def adamax_norm(decay):
    def formula(u, largest):
        largest = maximum(decay * largest, abs(u))
        return largest, {"largest": largest}

    return formula


@aj.elementwise
def clip_softly(bound):
    return lambda u: u / (1 + abs(u) / bound)


@aj.transformation(leafwise=True, equation="u * (norm(theta) / norm(u) if norm(u) > 0 else 1)")
def trust_ratio():
    return optax.scale_by_trust_ratio()


@aj.transformation(leafwise=True, equation="u * minimum(10, norm(theta)) / norm(u)")
def clipped_trust_ratio():
    return optax.scale_by_trust_ratio()


def not_bias(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


AMS = CHAIN(SECOND, aj.running_max(), CORRECT_SECOND, ROOT)
OPTAX_AMS = CHAIN(SECOND, CORRECT_SECOND, aj.running_max(), ROOT)
RIGHT = {
    "sgd": CHAIN(LR),
    "sgd with momentum": CHAIN(MOMENTUM, LR),
    "corrected momentum": CHAIN(MOMENTUM, CORRECT, LR),
    "correction behind the rate": CHAIN(MOMENTUM, LR, CORRECT),
    "heavy ball": CHAIN(HEAVY, LR),
    "heavy ball, rate first": CHAIN(LR, HEAVY),
    "nesterov": CHAIN(aj.nesterov_trace(0.9), LR),
    "nadam": CHAIN(QUOTIENT(aj.nesterov_average(0.9), RMS), LR),
    "warming nesterov": CHAIN(QUOTIENT(aj.warming_nesterov(0.9), RMS), LR),
    "l2 in sgd": CHAIN(L2, HEAVY, LR),
    "rmsprop, eps outside": CHAIN(QUOTIENT(IDENTITY, CHAIN(SECOND, ROOT)), LR),
    "rmsprop, eps inside": CHAIN(QUOTIENT(IDENTITY, CHAIN(SECOND, aj.root(eps_root=1e-8))), LR),
    "rmsprop, corrected": CHAIN(QUOTIENT(IDENTITY, RMS), LR),
    "rmsprop, then momentum": CHAIN(QUOTIENT(IDENTITY, CHAIN(SECOND, ROOT)), HEAVY, LR),
    "rmsprop, momentum behind the rate": CHAIN(QUOTIENT(IDENTITY, CHAIN(SECOND, ROOT)), LR, HEAVY),
    "centred rmsprop": CHAIN(centred(0.9), LR),
    "adagrad": CHAIN(QUOTIENT(IDENTITY, CHAIN(aj.sum_of_squares(), ROOT)), LR),
    "adam, uncorrected": CHAIN(QUOTIENT(MOMENTUM, CHAIN(SECOND, ROOT)), LR),
    "adam, eps inside": CHAIN(
        QUOTIENT(AVERAGE, CHAIN(SECOND, CORRECT_SECOND, aj.root(eps_root=1e-8))), LR
    ),
    "adam, corrected behind the root": CHAIN(
        QUOTIENT(AVERAGE, CHAIN(SECOND, ROOT, CORRECT_ROOT)), LR
    ),
    "adam, corrected behind the quotient": CHAIN(QUOTIENT(MOMENTUM, RMS), CORRECT, LR),
    "adam with a floor": CHAIN(
        QUOTIENT(AVERAGE, CHAIN(SECOND, CORRECT_SECOND, aj.root(), aj.floor(1e-8))), LR
    ),
    "adam in a join": CHAIN(aj.join(aj.divide, above=AVERAGE, below=RMS), LR),
    "adam in a fork": CHAIN(
        aj.fork(m=AVERAGE, v=CHAIN(SECOND, CORRECT_SECOND)),
        aj.merge(lambda m, v: m / (v**0.5 + 1e-8)),
        LR,
    ),
    "adam in one piece": whole_adam(1e-3, weight_decay=0.1),
    "adam in one piece, corrected together": efficient_adam(1e-3),
    "adam on clipped gradients": CHAIN(aj.clip_by_global_norm(1.0), aj.adamw(1e-3)),
    "adam, clipped": CHAIN(ADAM, aj.clip(1.0), LR),
    "adamw, decay of the schedule": CHAIN(ADAM, LR, SHRINK),
    "adamw, masked decay": CHAIN(ADAM, aj.masked(DECAY, not_bias), LR),
    "adamw with a weight for the rate": CHAIN(aj.adamw(1e-3), aj.masked(aj.scale(0.1), MASK)),
    "adam of l2": CHAIN(L2, ADAM, LR),
    "amsgrad": CHAIN(QUOTIENT(AVERAGE, AMS), DECAY, LR),
    "amsgrad, correction first": CHAIN(QUOTIENT(AVERAGE, OPTAX_AMS), DECAY, LR),
    "adamax": CHAIN(QUOTIENT(AVERAGE, adamax_norm(0.999)), LR),
    "laprop": CHAIN(QUOTIENT(IDENTITY, RMS), AVERAGE, DECAY, LR),
    "average of magnitudes": CHAIN(
        QUOTIENT(IDENTITY, CHAIN(adamax_norm(0.0), aj.average(0.99), aj.floor(1e-8))), LR
    ),
    "sign": CHAIN(SIGN, LR),
    "sign of momentum": CHAIN(MOMENTUM, SIGN, DECAY, LR),
    "momentum of signs": CHAIN(SIGN, MOMENTUM, DECAY, LR),
    "lion": CHAIN(aj.interpolate(0.9, aj.scale_by_momentum(0.99, read="before")), SIGN, DECAY, LR),
    "lion by hand": CHAIN(lion_by_hand(), DECAY, LR),
    "lamb": CHAIN(ADAM, DECAY, trust_ratio(), LR),
    "lamb, clipped": CHAIN(ADAM, DECAY, clipped_trust_ratio(), LR),
    "lamb with a foreign ratio": CHAIN(ADAM, DECAY, optax.scale_by_trust_ratio(), LR),
    "lars": CHAIN(L2, trust_ratio(), LR, HEAVY),
    "lars, decay by its other name": CHAIN(DECAY, trust_ratio(), LR, HEAVY),
    "muon": CHAIN(aj.nesterov_trace(0.95), aj.orthogonalize(), aj.scale_by_shape(), DECAY, LR),
    "muon, then a second moment": CHAIN(MOMENTUM, aj.orthogonalize(), aj.scale_by_rms(0.99), LR),
    "soap": CHAIN(QUOTIENT(AVERAGE, RMS, basis=aj.eigenbasis(0.95)), DECAY, LR),
    "routes": aj.route([("vectors", "bias$", aj.sgd(0.1))], default=("rest", aj.adamw(1e-3))),
    "frozen routes": aj.route([("vectors", "bias$", aj.sgd(0.1))], optax.set_to_zero()),
    "masks that cover all": CHAIN(aj.masked(aj.adamw(1e-3), MASK), aj.masked(aj.sgd(1e-3), OTHERS)),
    "masks with one rate": CHAIN(aj.masked(ADAM, MASK), aj.masked(SIGN, OTHERS), LR),
    "mask of all": aj.masked(aj.adamw(1e-3), True),
    "mask of frozen leaves": CHAIN(
        aj.masked(aj.adamw(1e-3), MASK), aj.masked(optax.set_to_zero(), OTHERS)
    ),
    "schedule-free": aj.schedule_free(aj.adamw(0.1), 0.1),
    "schedule-free with warm-up": aj.schedule_free_adamw(aj.linear_warmup(0.1, 10)),
    "schedule-free, guarded": CHAIN(
        aj.clip_by_global_norm(1.0), aj.skip_nonfinite(aj.observe(aj.schedule_free_adamw(0.1)))
    ),
    "prodigy": aj.prodigy(1.0, weight_decay=0.1),
    "scheduled": aj.scheduled(aj.adamw(1e-3), "direction.numerator.0", decay=aj.cosine(0.9, 9)),
    "sgd in one piece": torch_sgd(0.1),
    "the rate in the buffer": rate_in_the_buffer(0.1),
    "then": then(ADAM, step(1e-3)),
    "then, with a decay": then(ADAM, then(plain_decay(0.1), step(1e-3))),
    "then, with l2": then(plain_decay(0.1), then(ADAM, step(1e-3))),
    "a pair of averages": then(mean(AVERAGE, aj.average(0.99)), step(1e-3)),
    "a pair of optimizers": mean(aj.sgd(0.1), aj.adamw(1e-3)),
    "a stranger's quotient": then(over(AVERAGE, CHAIN(SECOND, CORRECT_SECOND)), step(1e-3)),
    "soft clip first": CHAIN(clip_softly(1.0), aj.adamw(1e-3)),
    "a stranger's mask": CHAIN(where(aj.adamw(1e-3), MASK), where(aj.sgd(1e-3), OTHERS)),
    "a stranger's decay mask": CHAIN(ADAM, where(plain_decay(0.1), MASK), LR),
    "descent by a factor": CHAIN(ADAM, aj.scale(-1e-3)),
    "ademamix": aj.ademamix(1e-3),
    "momentum, delayed": CHAIN(aj.delay(MOMENTUM), LR),
}

WRONG = {
    "then, rate first": (then(step(1e-3), ADAM), "learning_rate_normalized_away", "first"),
    "then, two rates": (then(aj.sgd(0.1), step(1e-3)), "two_learning_rates", "second"),
    "then, no rate": (then(MOMENTUM, CORRECT), "no_learning_rate", ""),
    "then, decay behind": (
        then(aj.adam(1e-3), plain_decay(0.1)),
        "decay_after_learning_rate",
        "second",
    ),
    "then, decay too early": (then(DECAY, then(ADAM, LR)), "decoupled_decay_too_early", "first"),
    "then, l2 behind": (then(ADAM, then(L2, LR)), "l2_after_moments", "second.first"),
    "then, correction of nothing": (then(CORRECT, LR), "correction_without_average", "first"),
    "then, other correction": (
        then(MOMENTUM, then(CORRECT_SECOND, LR)),
        "correction_decay",
        "second.first",
    ),
    "then, clip last": (then(aj.sgd(0.1), aj.clip(1.0)), "clip_after_learning_rate", "second"),
    "then, after schedule-free": (
        then(aj.schedule_free_adamw(0.1), aj.scale(0.5)),
        "changed_after_last",
        "second",
    ),
    "pair, rate in one": (mean(aj.sgd(0.1), ADAM), "term_without_learning_rate", "second"),
    "pair, rate in both and again": (
        then(mean(aj.sgd(0.1), aj.adam(0.1)), LR),
        "two_learning_rates",
        "second",
    ),
    "pair, one first and one normalised": (
        then(step(0.1), mean(SIGN, SIGN)),
        "learning_rate_normalized_away",
        "first",
    ),
    "pair, two decays": (
        then(L2, then(ADAM, then(plain_decay(0.1), LR))),
        "two_decays",
        "second.second.first",
    ),
    "over a momentum": (then(over(AVERAGE, MOMENTUM), LR), "root_of_signed", "first"),
    "over a masked moment": (
        then(over(AVERAGE, aj.masked(SECOND, MASK)), LR),
        "mask_in_denominator",
        "first.below",
    ),
    "over, correction behind its root": (
        then(over(AVERAGE, CHAIN(SECOND, CORRECT_ROOT)), LR),
        "correction_beside_root",
        "first.below.1",
    ),
    "where, ascends": (where(aj.adamw(1e-3), MASK), "masked_leaves_ascend", ""),
    "where, inside": (
        then(aj.clip(1.0), where(then(ADAM, LR), MASK)),
        "masked_leaves_ascend",
        "second",
    ),
    "where, the rate": (then(ADAM, where(LR, MASK)), "masked_leaves_ascend", "second"),
    "where, function": (where(aj.adamw(1e-3), not_bias), "masked_leaves_ascend", ""),
    "routes in then": (
        then(aj.route([("x", "b", aj.sgd(0.1))], ("rest", ADAM)), IDENTITY),
        "no_learning_rate",
        "first.rest",
    ),
    "moment of an average": (
        then(MOMENTUM, then(aj.scale_by_rms(0.9), LR)),
        "moment_of_average",
        "second.first.denominator.moment",
    ),
}


@pytest.mark.parametrize("tx", RIGHT.values(), ids=RIGHT)
def test_right_expressions_are_silent(tx):
    assert aj.lint(tx) == []


@pytest.mark.parametrize(("tx", "rule", "path"), WRONG.values(), ids=WRONG)
def test_mistakes_are_found_in_what_strangers_write(tx, rule, path):
    assert [(f.rule, f.path) for f in aj.lint(tx)] == [(rule, path)]


IN_ONE_FORMULA = {
    "correction_beside_root": lambda m, v, u, b1, b2: (m / (1 - b1), v**0.5 / (1 - b2)),
    "correction_decay": lambda m, v, u, b1, b2: (m / (1 - b2), (v / (1 - b2)) ** 0.5),
    "unrooted_denominator": lambda m, v, u, b1, b2: (m, v),
    "signed_denominator": lambda m, v, u, b1, b2: (u, m),
    "root_of_signed": lambda m, v, u, b1, b2: (u, m**0.5),
}


@pytest.mark.parametrize("rule", IN_ONE_FORMULA)
def test_mistakes_are_found_in_one_formula(rule):
    @aj.elementwise(m=0.0, v=0.0)
    def adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        def formula(u, t, m, v):
            m, v = b1 * m + (1 - b1) * u, b2 * v + (1 - b2) * u**2
            above, below = IN_ONE_FORMULA[rule](m, v, u, b1**t, b2**t)
            return -learning_rate * above / (below + eps), {"m": m, "v": v}

        return formula

    assert [f.rule for f in aj.lint(adam(1e-3))] == [rule]


def test_a_rate_may_be_normalised_away_in_one_formula():
    @aj.elementwise(v=0.0)
    def scaled(learning_rate, decay=0.9):
        def formula(u, v):
            v = decay * v + (1 - decay) * (learning_rate * u) ** 2
            return -learning_rate * u / (v**0.5 + 1e-8), {"v": v}

        return formula

    assert [f.rule for f in aj.lint(scaled(0.1))] == ["learning_rate_normalized_away"]


# --- masks --------------------------------------------------------------------------------

not_vectors, vectors = (lambda p: p), (lambda p: p)


@pytest.mark.parametrize(
    ("tx", "found"),
    [
        # functions may be each other's complement
        (CHAIN(aj.masked(aj.sgd(0.1), not_vectors), aj.masked(aj.sgd(1.0), vectors)), []),
        (
            CHAIN(aj.masked(aj.sgd(0.1), vectors), aj.masked(aj.sgd(1.0), vectors)),
            ["two_learning_rates", "masked_leaves_ascend"],
        ),
        (CHAIN(aj.masked(L2, MASK), ADAM, aj.masked(DECAY, OTHERS), LR), []),
        (CHAIN(aj.masked(L2, MASK), ADAM, aj.masked(DECAY, MASK), LR), ["two_decays"]),
        (CHAIN(aj.masked(L2, vectors), ADAM, aj.masked(DECAY, not_vectors), LR), []),
        (CHAIN(aj.masked(aj.sgd(0.1), vectors), FOREIGN), []),
        (aj.masked(optax.adamw(0.1), MASK), ["masked_leaves_ascend"]),
        (aj.masked(GLOBAL, True), ["no_learning_rate"]),
        (CHAIN(aj.masked(GLOBAL, MASK), aj.sgd(0.1)), ["global_clip_in_route"]),
        (CHAIN(aj.masked(GLOBAL, True), aj.sgd(0.1)), []),
        (
            CHAIN(  # prefixes of one another
                aj.masked(aj.sgd(0.1), {"a": True, "b": {"x": True, "y": False}}),
                aj.masked(aj.sgd(0.1), {"a": {"z": False}, "b": {"x": False, "y": True}}),
            ),
            [],
        ),
        (aj.schedule_free(aj.muon(0.02), 0.02), []),
        (CHAIN(aj.fork(a=MOMENTUM, b=IDENTITY), FOREIGN, LR), []),
    ],
)
def test_every_class_of_leaves_is_followed(tx, found):
    assert [f.rule for f in aj.lint(tx)] == found


CORRECTED = CHAIN(optax.trace(0.9), CORRECT)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(1e-3),
        CHAIN(optax.clip_by_global_norm(1.0), aj.adamw(1e-3)),
        CHAIN(LR, FOREIGN, ADAM),  # what it does to the rate is not known
        CHAIN(ADAM, FOREIGN),  # it may be the learning rate
        CHAIN(FOREIGN, LR),
        CHAIN(LR, FOREIGN),
        CHAIN(CORRECTED, LR),  # it may be the average
        CHAIN(FOREIGN, CORRECT, SHRINK),
        CHAIN(DECAY, FOREIGN, LR),
        CHAIN(aj.sign(), FOREIGN, aj.scale_by_rms(0.9), LR),
        CHAIN(aj.precondition(CHAIN(DECAY, FOREIGN), FOREIGN), LR),
        CHAIN(aj.masked(aj.adamw(1e-3), MASK), aj.masked(aj.sgd(1e-3), OTHERS)),
        CHAIN(aj.adamw(1e-3), aj.masked(optax.set_to_zero(), MASK)),
        aj.route([("x", aj.sgd(0.1))], optax.set_to_zero()),
        CHAIN(aj.join(lambda g, m: -g - m, g=aj.identity(), m=MOMENTUM), aj.scale(1e-3)),
        CHAIN(aj.fork(a=aj.identity(), b=FOREIGN), aj.merge(lambda a, b: a / b), LR),
        CHAIN(aj.fork(a=aj.identity(), b=MOMENTUM), aj.pick("b"), CORRECT, LR),
    ],
)
def test_nothing_is_concluded_from_what_is_unknown(tx):
    assert aj.lint(tx) == []


def test_what_follows_a_foreign_piece_is_still_judged():
    (found,) = aj.lint(CHAIN(FOREIGN, LR, CLIP))
    assert (found.rule, found.path) == ("clip_after_learning_rate", "2")


def test_a_user_piece_without_traits_is_unknown():
    @aj.transformation
    def mine():
        return optax.scale(-1.0)

    assert aj.lint(CHAIN(ADAM, mine())) == []

    @aj.transformation(traits=("averge",))
    def misspelt():
        return optax.identity()

    with pytest.raises(ValueError, match="misspelt has the traits averge"):
        aj.lint(CHAIN(misspelt()))


def test_a_composite_may_speak_for_its_parts():
    @aj.transformation(traits=("linear",))
    def debiased():
        return CHAIN(CORRECT)

    assert aj.lint(CHAIN(debiased(), LR)) == []


def test_a_scheduled_hyperparameter_is_equal_to_any():
    warm = aj.linear_warmup(0.9, 10)
    tx = aj.scheduled(aj.adamw(1e-3), "direction.numerator.0", decay=warm)
    assert aj.lint(tx) == []
    wrong = aj.scheduled(CHAIN(ADAM, LR, DECAY), "0", b1=warm)
    assert [(f.rule, f.path) for f in aj.lint(wrong)] == [("decay_after_learning_rate", "tx.2")]


def test_hyperparameters_may_be_traced():
    def findings(b1):
        return aj.lint(CHAIN(aj.scale_by_momentum(b1), CORRECT, aj.scale(b1)))

    seen = []
    jax.eval_shape(lambda b1: seen.append(findings(b1)), 0.9)
    assert seen == [[]]


def test_waiving():
    tx = CHAIN(aj.sgd(0.1), CLIP, DECAY)
    assert [f.rule for f in aj.lint(tx)] == [
        "clip_after_learning_rate",
        "decay_after_learning_rate",
    ]
    assert [f.path for f in aj.lint(tx, waive="clip_after_learning_rate")] == ["2"]
    assert [f.path for f in aj.lint(tx, waive=["decay_after_learning_rate@2"])] == ["1"]
    assert len(aj.lint(tx, waive=["decay_after_learning_rate@1"])) == 2
    with pytest.raises(ValueError, match="no rule 'clip'"):
        aj.lint(tx, waive="clip")


def test_assert_clean():
    assert aj.assert_clean(aj.adamw(1e-3)) == aj.adamw(1e-3)
    with pytest.raises(ValueError, match="decay_after_learning_rate at '2'"):
        aj.assert_clean(CHAIN(ADAM, LR, DECAY))
    assert aj.assert_clean(ADAM, waive="no_learning_rate") is ADAM
    with pytest.raises(TypeError, match="not a gradient transformation"):
        aj.lint(3)


def test_every_piece_of_ours_says_what_it_does():
    for name in aj.__all__:
        declared = getattr(getattr(aj, name), "declared", {})
        assert set(declared.get("traits", ())) <= set(WORDS), name
    for make in factories().values():
        for path, piece in aj.parts(aj.expand(make(1.0))).items():
            says = piece.factory.declared["traits"] or saying(piece) is not None
            assert says or isinstance(piece.body, Flow), path
