"""Identities between optimizers: what is the same algorithm in other words, and what is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from support import stream, walk

import adamw_jax as aj

RATE = 0.05
STEPS = 40


@pytest.fixture(autouse=True)
def everything_in_float64(x64):
    pass


@pytest.fixture
def problem():
    return stream(STEPS, (5,), seed=3)


def run(tx, problem):
    theta, grads = problem
    return np.asarray(walk(tx, jnp.asarray(theta), grads, jitted=True))


def assert_same(a, b):
    chex.assert_trees_all_close(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


def assert_differ(a, b):
    """By far more than the tolerance of `assert_same`."""
    assert np.max(np.abs(np.asarray(a) - np.asarray(b))) > 1e-3


# --- momentum ----------------------------------------------------------------


def test_averaged_momentum_is_heavy_ball_at_a_smaller_rate(problem):
    """alpha = lr (1 - decay), beta = decay."""
    averaged = run(aj.momentum(RATE, decay=0.8), problem)
    assert_same(averaged, run(aj.heavy_ball(RATE * (1 - 0.8), momentum=0.8), problem))
    assert_differ(averaged, run(aj.heavy_ball(RATE, momentum=0.8), problem))
    assert_same(averaged, references.polyak(*problem, [RATE * (1 - 0.8)] * STEPS, [0.8] * STEPS))


def test_averaged_momentum_under_a_schedule_is_polyak_with_varying_beta(problem):
    """alpha[t] = lr[t] (1 - decay), beta[t] = decay lr[t] / lr[t-1]."""
    rates = RATE * (1 + np.cos(np.pi * np.arange(STEPS) / 50)) / 2  # aj.cosine(RATE, 50)
    ratio = np.append(0, rates[1:] / rates[:-1])  # the first difference is zero anyway
    polyak = references.polyak(*problem, rates * (1 - 0.8), 0.8 * ratio)
    assert_same(run(aj.momentum(aj.cosine(RATE, 50), decay=0.8), problem), polyak)


def test_nesterov_stores_lookahead_points():
    """On f(x) = x' A x / 2, against the form whose gradient is taken at the look-ahead point."""
    curvature = np.array([0.1, 1.0, 3.0])
    theta = np.array([1.0, -2.0, 0.5])
    gradient = lambda x: curvature * x
    iterates, points = references.nesterov_lookahead(
        theta, gradient, STEPS, learning_rate=RATE, momentum=0.9
    )
    tx = aj.nesterov(RATE, momentum=0.9)
    params, state = jnp.asarray(theta), tx.init(jnp.asarray(theta))
    for iterate, point in zip(iterates, points, strict=True):
        updates, state = tx.update(gradient(params), state, params)
        params = params + updates
        assert_same(params, point)
        assert_same(aj.lookahead_point(params, state), point)
        assert_same(aj.lookahead_params(params, state), iterate)
    assert np.max(np.abs(iterates[0] - points[0])) > 1e-3  # they are not the same points


def test_nesterov_is_the_gradient_plus_the_decayed_velocity(problem):
    other = aj.chain(
        aj.join(lambda g, b: g + 0.9 * b, g=aj.identity(), b=aj.scale_by_momentum(0.9, gain=1.0)),
        aj.scale_by_learning_rate(RATE),
    )
    assert_same(run(aj.nesterov(RATE), problem), run(other, problem))


# --- Adam and its neighbours -------------------------------------------------


def test_adamw_without_its_decay_is_adam(problem):
    for coupling in ("lr", "independent"):
        adamw = aj.adamw(RATE, weight_decay=0.3, coupling=coupling)
        assert_differ(run(adamw, problem), run(aj.adam(RATE), problem))
        bare = aj.swap(adamw, "weight_decay", aj.identity())
        assert_same(run(bare, problem), run(aj.adam(RATE), problem))


def test_adam_without_memory_of_the_gradient_is_corrected_rmsprop(problem):
    rms = aj.chain(
        aj.scale_by_rms(0.99, correction=aj.bias_correction(0.99)),
        aj.scale_by_learning_rate(RATE),
    )
    assert_same(run(aj.adam(RATE, b1=0.0, b2=0.99), problem), run(rms, problem))
    uncorrected = aj.chain(aj.scale_by_rms(0.99), aj.scale_by_learning_rate(RATE))
    assert_differ(run(rms, problem), run(uncorrected, problem))


def test_adam_without_memory_is_the_sign_of_the_gradient(problem):
    adam = aj.adam(RATE, b1=0.0, b2=0.0, eps=0.0)
    assert_same(run(adam, problem), run(aj.chain(aj.sign(), aj.scale(-RATE)), problem))


def test_adam_as_one_sentence_over_the_pieces(problem):
    pieces = aj.chain(
        aj.precondition(
            aj.chain(aj.scale_by_momentum(0.9), aj.bias_correction(0.9)),
            aj.chain(aj.second_moment(0.999), aj.bias_correction(0.999), aj.root(1e-8)),
        ),
        aj.scale_by_learning_rate(RATE),
    )
    assert_same(run(aj.adam(RATE), problem), run(pieces, problem))


def test_adam_in_another_order_is_laprop(problem):
    """Divide first, average after: Ziyin et al. 2020, algorithm 1."""
    swapped = aj.chain(
        direction=aj.chain(
            aj.scale_by_rms(0.999, correction=aj.bias_correction(0.999)),
            aj.chain(aj.scale_by_momentum(0.9), aj.bias_correction(0.9)),
        ),
        learning_rate=aj.scale_by_learning_rate(RATE),
    )

    @references.path
    def laprop(theta, g, t, past, lr):
        past.v = references.ema(past.v, g**2, 0.999)
        ratio = g / (np.sqrt(references.hat(past.v, 0.999, t)) + 1e-8)
        past.m = references.ema(past.m, ratio, 0.9)
        return theta - lr * references.hat(past.m, 0.9, t)

    assert_same(run(swapped, problem), laprop(*problem, learning_rate=RATE))
    assert_same(run(swapped, problem), run(aj.laprop(RATE, eps=1e-8), problem))
    assert_differ(run(swapped, problem), run(aj.adam(RATE), problem))


def test_adam_without_corrections_is_reached_by_swapping_them(problem):
    adam, bare = aj.adam(RATE), aj.adam(RATE)
    for slot in ("direction.numerator.1", "direction.denominator.correction"):
        bare = aj.swap(bare, slot, aj.identity())

    @references.path
    def uncorrected(theta, g, t, past, lr):
        past.m = references.ema(past.m, g, 0.9)
        past.v = references.ema(past.v, g**2, 0.999)
        return theta - lr * past.m / (np.sqrt(past.v) + 1e-8)

    assert_same(run(bare, problem), uncorrected(*problem, learning_rate=RATE))
    assert_differ(run(bare, problem), run(adam, problem))


# --- the zoo ------------------------------------------------------------------


def assert_special_case(tx, other, problem, usual=None):
    """The same on this problem, though not (`usual` in place of `tx`, or elsewhere) in general."""
    assert_same(run(tx, problem), run(other, problem))
    elsewhere = problem if usual else stream(STEPS, problem[0].shape, seed=4)
    assert_differ(run(usual or tx, elsewhere), run(other, elsewhere))


def test_lion_with_one_decay_is_signum(problem):
    usual = aj.lion(RATE, weight_decay=0.3)
    lion = aj.lion(RATE, b1=0.9, b2=0.9, weight_decay=0.3)
    assert_special_case(lion, aj.signum(RATE, weight_decay=0.3), problem, usual)


def test_ademamix_without_its_slow_average_is_adam(problem):
    assert_special_case(
        aj.ademamix(RATE, alpha=0.0), aj.adam(RATE), problem, aj.ademamix(RATE, b3=0.99)
    )


def test_nadam_without_looking_ahead_is_adam(problem):
    nadam = aj.nadamw(RATE)
    still = aj.swap(nadam, "direction.numerator", aj.average(0.9))
    assert_special_case(still, aj.adam(RATE), problem, nadam)


def test_amsgrad_under_growing_gradients_is_adam(problem):
    """v never falls by itself, so that its maximum is v."""
    theta, grads = problem
    growing = theta, [grads[0] * 1.1**t for t in range(STEPS)]
    assert_special_case(aj.amsgrad(RATE, b2=0.9), aj.adam(RATE, b2=0.9), growing)


def test_stable_adamw_below_its_threshold_is_adamw(problem):
    """Gradients that shrink are never larger than their history says."""
    theta, grads = problem
    shrinking = theta, [grads[0] * 0.9**t for t in range(STEPS)]
    stable = aj.stable_adamw(RATE, weight_decay=0.3)
    assert_special_case(stable, aj.adamw(RATE, b2=0.99, weight_decay=0.3), shrinking)


def test_cautious_adamw_is_adamw_where_the_signs_agree(problem):
    theta, grads = problem
    agreeing = theta, [np.abs(g) + 1e-3 for g in grads]
    cautious = aj.cautious_adamw(RATE, weight_decay=0.3)
    assert_special_case(cautious, aj.adamw(RATE, weight_decay=0.3), agreeing)


def test_mars_without_its_correction_is_adamw_of_short_gradients(problem):
    theta, grads = problem
    short = theta, [g / max(1, np.linalg.norm(g)) for g in grads]
    adamw = aj.adamw(RATE, b1=0.95, b2=0.99, weight_decay=0.3)
    mars = lambda gamma: aj.mars(RATE, weight_decay=0.3, gamma=gamma)
    assert_special_case(mars(0.0), adamw, short)
    assert_special_case(mars(0.0), adamw, short, usual=mars(0.025))


def test_adam_mini_with_a_block_for_every_element_is_adamw():
    problem = stream(STEPS, (3, 4), seed=3)
    mini = lambda **blocks: aj.adam_mini(RATE, weight_decay=0.3, **blocks)
    single = mini(blocks=lambda path, leaf: ())
    assert_special_case(single, aj.adamw(RATE, weight_decay=0.3), problem, usual=mini())


def test_soap_in_the_identity_basis_is_adam_a_step_late():
    """Without eps, which SOAP adds before its corrections; its first step finds the basis."""
    theta, grads = stream(STEPS, (3, 4), seed=3)
    soap = aj.soap(RATE, eps=0.0)
    still = optax.stateless(lambda u, _: jax.tree.map(lambda x: (None,) * x.ndim, u))
    unturned = run(aj.swap(soap, "direction.basis", still), (theta, grads))
    adam = aj.adam(RATE, b1=0.95, b2=0.95, eps=0.0)
    assert_same(unturned[0], theta)
    assert_same(unturned[1:], run(adam, (theta, grads[1:])))
    assert_differ(unturned, run(soap, (theta, grads)))


def test_prodigy_whose_distance_stays_is_adam_without_corrections(problem):
    """At the rate d0, with which its eps shrinks, too."""
    adam = aj.adam(0.01)
    for slot in ("direction.numerator.1", "direction.denominator.correction"):
        adam = aj.swap(adam, slot, aj.identity())
    still = aj.prodigy(1.0, d0=0.01, growth=1e-300)
    assert_special_case(still, adam, problem, usual=aj.prodigy(1.0, d0=0.01))


def test_schedule_free_is_evaluated_at_the_mean_of_its_iterates(problem):
    theta, grads = problem
    tx, params, iterates = aj.schedule_free_adamw(RATE), jnp.asarray(theta), []
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = params + updates
        iterates.append(state.z)
        assert_same(aj.eval_params(tx, state, params), np.mean(iterates, 0))
    assert_differ(params, state.z)


def test_muon_of_an_orthogonal_gradient_steps_along_it():
    """All singular values are alike, so that the polynomials only scale; to 1, when exact."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    exact = aj.orthogonalize("polar_express", steps=8)
    for size in (1e-3, 1e3):
        update = lambda tx, size=size: run(tx, (0 * q, [size * q]))[0]
        assert_same(update(aj.muon(RATE, orthogonalizer=exact)), -RATE * q)
        keller = -update(aj.muon(RATE)) / RATE
        factor = keller[0, 0] / q[0, 0]
        assert_same(keller, factor * q)
        assert 0.68 < factor < 1.13  # the range of Keller's polynomial, specification 4.12


# --- weight decay ------------------------------------------------------------


def test_l2_and_decoupled_decay_coincide_for_sgd(problem):
    decoupled = aj.chain(aj.identity(), aj.add_decoupled_weight_decay(0.3))
    a = run(aj.chain(decoupled, aj.scale_by_learning_rate(RATE)), problem)
    b = run(aj.chain(aj.add_l2_gradient(0.3), aj.sgd(RATE)), problem)
    c = run(aj.chain(aj.sgd(RATE), aj.shrink(RATE * 0.3)), problem)
    assert_same(a, b)
    assert_same(a, c)
    assert_differ(a, run(aj.sgd(RATE), problem))


def test_l2_and_decoupled_decay_part_with_the_first_buffer(problem):
    """The penalty enters the velocity, the decay does not."""
    l2 = aj.chain(aj.add_l2_gradient(0.3), aj.heavy_ball(RATE))
    decoupled = aj.chain(
        aj.scale_by_momentum(0.9, gain=1.0),
        aj.add_decoupled_weight_decay(0.3),
        aj.scale_by_learning_rate(RATE),
    )
    assert_differ(run(l2, problem), run(decoupled, problem))


def test_l2_and_decoupled_decay_differ_for_adam(problem):
    l2, decoupled = aj.adam_l2(RATE, weight_decay=0.3), aj.adamw(RATE, weight_decay=0.3)
    assert_differ(run(l2, problem), run(decoupled, problem))


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(RATE, id="constant"),
        pytest.param(aj.cosine(RATE, STEPS, warmup_steps=5), id="cosine"),
        pytest.param(aj.linear_warmup(RATE, 10), id="warm-up"),
    ],
)
def test_the_two_decoupled_decays_convert_by_the_peak_rate(schedule, problem):
    """lambda(lr) = lambda(independent) / peak, exact under any schedule."""
    independent = aj.adamw(schedule, weight_decay=0.02, coupling="independent")
    assert_same(
        run(independent, problem), run(aj.adamw(schedule, weight_decay=0.02 / RATE), problem)
    )
    assert_differ(run(independent, problem), run(aj.adamw(schedule, weight_decay=0.02), problem))


def test_only_the_independent_decay_is_unmoved_by_the_peak_rate(problem):
    """With no gradient left, what a run loses does not depend on the learning rate."""
    theta, grads = problem
    quiet = theta, [np.zeros_like(g) for g in grads]
    for coupling, compare in (("independent", assert_same), ("lr", assert_differ)):
        slow, fast = (
            run(aj.adamw(aj.cosine(rate, STEPS), weight_decay=0.02, coupling=coupling), quiet)
            for rate in (RATE, 10 * RATE)
        )
        compare(slow, fast)


def test_decay_reads_the_parameters_before_the_update(problem):
    """Shrinking after the step instead differs by lr^2 lambda u, which this would show."""
    theta, _ = problem
    first = run(aj.adamw(RATE, weight_decay=0.3), problem)[0]
    u = -(run(aj.adam(RATE), problem)[0] - theta) / RATE
    assert_same(first, (1 - RATE * 0.3) * theta - RATE * u)
    late = (1 - RATE * 0.3) * (theta - RATE * u)
    assert np.max(np.abs(first - late)) > 1e-4
