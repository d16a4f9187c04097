"""Lint: every rule on a wrong expression and on its mended one, and silence elsewhere."""

import jax
import optax
import pytest
import zoo

import adamw_jax as aj
from adamw_jax.core.flow import Flow
from adamw_jax.core.saying import saying
from adamw_jax.inspect.lint.facts import WORDS
from adamw_jax.inspect.lint.rules import RULES
from adamw_jax.inspect.periodic import factories

LR = aj.scale_by_learning_rate(1e-3)
ADAM = aj.scale_by_adam()
MOMENTUM, SECOND = aj.scale_by_momentum(0.9), aj.second_moment(0.999)
CORRECT = aj.bias_correction(0.9)
DECAY, L2, SHRINK = aj.add_decoupled_weight_decay(0.1), aj.add_l2_gradient(0.1), aj.shrink(0.1)
CLIP, GLOBAL = aj.clip(1.0), aj.clip_by_global_norm(1.0)
CHAIN, COSINE = aj.chain, aj.cosine(1e-3, 100)
MASK, OTHERS = {"w": True, "b": False}, {"w": False, "b": True}
CORRECT_ROOT, CORRECT_ROOT_WRONG = aj.root_bias_correction(0.999), aj.bias_correction(0.999)
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
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, aj.root(), CORRECT_ROOT_WRONG)), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, aj.root(), CORRECT_ROOT)), LR),
    ),
    (
        "correction_beside_root",
        "0.denominator.1",
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, CORRECT_ROOT, aj.root())), LR),
        CHAIN(aj.precondition(MOMENTUM, CHAIN(SECOND, CORRECT_ROOT_WRONG, aj.root())), LR),
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
