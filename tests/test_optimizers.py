"""Each optimizer against the worked example, its paper in NumPy, and Optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import zoo
from support import GRADIENTS, THETA, stream, walk

import adamw_jax as aj

modes = pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])


def numbers(text):
    return [float(word) for word in text.split()]


# --- the worked example ------------------------------------------------------
# Copied from the specification, section 3: theta0 = 0.5, lr = 0.1, b1 = 0.9,
# b2 = 0.999, lambda = 0.01, eps = 1e-8.  Digits are exact as far as printed.

#     m              v                  m_hat          v_hat          sqrt(v_hat)    lr*u
INTERMEDIATES = """
1     0.020000000000 4.000000000000e-05 0.200000000000 0.040000000000 0.200000000000 0.099999995000
2     0.033000000000 6.246000000000e-05 0.173684210526 0.031245622811 0.176764314304 0.098257502587
3     0.054700000000 1.248975400000e-04 0.201845018450 0.041674173616 0.204142532598 0.098874549068
4     0.054230000000 1.272726424600e-04 0.157691189299 0.031865927649 0.178510301239 0.088337300072
"""

# parameters after each step, by the way weight decay enters
THETAS = {
    "independent": "0.395000005000 0.292792502363 0.190990028271 0.100742827916",
    "lr": "0.399500005000 0.300843002408 0.201667610337 0.113128642655",
}
THETAS_SMALL_EPS = {  # the same with eps = 1e-10
    "independent": "0.395000000050 0.292792491959 0.190990013176 0.100742808073",
    "lr": "0.399500000050 0.300842991960 0.201667595105 0.113128622538",
}
AS_PRINTED = 5.1e-13  # half a unit of the twelfth decimal, plus float64 rounding

couplings = pytest.mark.parametrize("coupling", ["independent", "lr"])


def intermediates(tx):
    """The columns of the table, read from the state and the pieces of an AdamW."""
    numerator = aj.part(tx, "direction.numerator")
    moment = aj.part(tx, "direction.denominator.moment")
    correction = aj.part(tx, "direction.denominator.correction")
    pieces = {
        "m_hat": numerator,
        "v_hat": aj.chain(moment, correction),
        "root": aj.chain(moment, correction, aj.root()),
        "lr*u": aj.adam(0.1),
    }
    states = {name: piece.init(THETA) for name, piece in pieces.items()}
    state, theta, rows = tx.init(THETA), jnp.asarray(THETA), []
    for g in GRADIENTS:
        update, state = tx.update(g, state, theta)
        theta = theta + update
        out = {}
        for name, piece in pieces.items():
            out[name], states[name] = piece.update(g, states[name])
        m = state["direction"]["numerator"][0].momentum
        v = state["direction"]["denominator"]["moment"].second_moment
        rows.append([m, v, out["m_hat"], out["v_hat"], out["root"], -out["lr*u"]])
    return np.asarray(rows)


def worked_example(tx, jitted=False):
    return np.asarray(walk(tx, jnp.asarray(THETA), GRADIENTS, jitted=jitted))


@modes
@couplings
def test_worked_example_to_the_last_printed_digit(coupling, jitted, x64):
    for eps, table in ((1e-8, THETAS), (1e-10, THETAS_SMALL_EPS)):
        tx = aj.adamw(0.1, eps=eps, weight_decay=0.01, coupling=coupling)
        thetas = worked_example(tx, jitted)
        np.testing.assert_allclose(thetas, numbers(table[coupling]), rtol=0, atol=AS_PRINTED)
        exact = references.adamw(
            THETA, GRADIENTS, learning_rate=0.1, eps=eps, weight_decay=0.01, coupling=coupling
        )
        np.testing.assert_allclose(thetas, exact, rtol=0, atol=1e-12)


def test_every_intermediate_number_of_the_worked_example(x64):
    table = np.asarray([numbers(line)[1:] for line in INTERMEDIATES.split("\n") if line])
    found = intermediates(aj.adamw(0.1, weight_decay=0.01))
    np.testing.assert_allclose(np.delete(found, 1, 1), np.delete(table, 1, 1), 0, AS_PRINTED)
    np.testing.assert_allclose(
        found[:, 1], table[:, 1], rtol=AS_PRINTED
    )  # v: twelve decimals of e-05


@modes
@couplings
def test_worked_example_in_float32(coupling, jitted):
    thetas = worked_example(aj.adamw(0.1, weight_decay=0.01, coupling=coupling), jitted)
    assert thetas.dtype == np.float32
    np.testing.assert_allclose(thetas, numbers(THETAS[coupling]), rtol=0, atol=3e-7)


def test_the_two_decays_of_the_worked_example_are_told_apart():
    """lambda alone is ten times lr * lambda here; no tolerance above may hide that."""
    independent, coupled = (np.asarray(numbers(THETAS[c])) for c in ("independent", "lr"))
    assert np.all(coupled - independent > 4e-3)


# --- goldens -----------------------------------------------------------------


@zoo.rows()
def test_golden(row, x64):
    if row.golden is None:
        pytest.skip("the specification prints no golden for it")
    settings, printed = row.golden
    settings = {"learning_rate": 0.1, **settings}
    thetas = walk(row.tx(**settings), jnp.asarray(THETA), row.golden_gradients, row.extra)
    np.testing.assert_allclose(thetas, numbers(printed), rtol=0, atol=AS_PRINTED)
    reference = row.path(THETA, row.golden_gradients, **settings)
    np.testing.assert_allclose(reference, numbers(printed), rtol=0, atol=AS_PRINTED)


def test_heavy_ball_at_the_mapped_rate_has_the_golden_of_averaged_momentum(x64):
    averaged = next(row for row in zoo.ROWS if row.name == "momentum")
    thetas = walk(aj.heavy_ball(0.01, momentum=0.9), jnp.asarray(THETA), GRADIENTS)
    np.testing.assert_allclose(thetas, numbers(averaged.golden[1]), rtol=0, atol=AS_PRINTED)


def test_l2_adds_the_parameter_to_the_gradient(x64):
    """One of the seed notes prints the term with a minus, which makes weights grow."""
    # The specification's golden for the printed sign, which must not match.
    minus = numbers("0.400000005128 0.301758386849 0.202953938885 0.114816303722")
    ours = aj.adam_l2(0.1, weight_decay=0.01)
    wrong = aj.swap(ours, "weight_decay", optax.add_decayed_weights(-0.01))
    np.testing.assert_allclose(worked_example(wrong), minus, rtol=0, atol=AS_PRINTED)
    assert np.all(np.abs(worked_example(ours) - minus) > 1e-10)


# --- the papers, and Optax ---------------------------------------------------


@modes
@zoo.rows()
def test_reference_over_a_random_stream(row, jitted, x64):
    for seed, hyperparameters in enumerate(({}, row.others)):
        theta, grads = stream(30 if jitted else 12, row.shape, seed)
        thetas = walk(row.tx(**hyperparameters), jnp.asarray(theta), grads, row.extra, jitted)
        expected = row.path(theta, grads, **hyperparameters)
        chex.assert_trees_all_close(
            thetas,
            expected,
            rtol=row.tolerance,
            atol=row.tolerance,
            custom_message=f"{hyperparameters}",
        )


@zoo.rows("complex")
def test_reference_over_a_complex_stream(row, x64):
    theta, grads = stream(10, row.shape, dtype=np.complex128)
    thetas = walk(row.tx(), jnp.asarray(theta), grads, row.extra)
    tolerance = row.tolerance
    chex.assert_trees_all_close(thetas, row.path(theta, grads), rtol=tolerance, atol=tolerance)


@zoo.rows()
def test_every_hyperparameter_matters(row, x64):
    """Else the comparisons above could pass with an argument that is ignored."""
    theta, grads = stream(30, row.shape)  # as long as there, since some begin late
    default = row.path(theta, grads)
    for name, value in row.others.items():
        other = row.path(theta, grads, **{name: value})
        assert np.any(np.abs(np.subtract(other, default)) > 1e-9), name


@zoo.rows()
def test_optax_over_a_random_stream(row, x64):
    if isinstance(row.optax, str):
        pytest.skip(row.optax)
    theta, grads = stream(30, row.shape, seed=2)
    theta, grads = jnp.asarray(theta), [jnp.asarray(g) for g in grads]
    for hyperparameters in ({}, row.others):
        ours = walk(row.tx(**hyperparameters), theta, grads, row.extra, jitted=True)
        with jax.numpy_dtype_promotion("standard"):
            tx = row.optax(row.learning_rate, **hyperparameters)
            theirs = walk(tx, theta, grads, row.extra, jitted=True)
        chex.assert_trees_all_close(
            ours, theirs, rtol=1e-12, atol=1e-12, custom_message=f"{hyperparameters}"
        )


# --- learning rates ----------------------------------------------------------


@zoo.rows()
def test_a_learning_rate_may_be_an_array(row, x64):
    theta, grads = stream(3, row.shape)
    expected = walk(row.tx(), jnp.asarray(theta), grads, row.extra)
    for array in (np.asarray(row.learning_rate), jnp.asarray(row.learning_rate)):
        thetas = walk(row.tx(array), jnp.asarray(theta), grads, row.extra)
        chex.assert_trees_all_close(thetas, expected, rtol=1e-15, atol=0)


def half_cosine(peak, steps, length):
    """peak (1 + cos(pi t / length)) / 2 for t = 0, 1, ..."""
    return peak * (1 + np.cos(np.pi * np.arange(steps) / length)) / 2


@modes
@zoo.rows()
def test_a_learning_rate_may_be_our_schedule(row, jitted, x64):
    theta, grads = stream(8, row.shape)
    tx = row.tx(aj.cosine(row.learning_rate, 10))
    thetas = walk(tx, jnp.asarray(theta), grads, row.extra, jitted)
    expected = row.path(theta, grads, half_cosine(row.learning_rate, 8, 10))
    chex.assert_trees_all_close(thetas, expected, rtol=row.tolerance, atol=row.tolerance)


@zoo.rows("foreign schedule")
def test_a_learning_rate_may_be_anyones_schedule(row, x64):
    theta, grads = stream(8, row.shape)
    expected = row.path(theta, grads, half_cosine(row.learning_rate, 8, 10))
    with jax.numpy_dtype_promotion("standard"):  # Optax divides an int by a float
        tx = row.tx(optax.cosine_decay_schedule(row.learning_rate, 10))
        thetas = walk(tx, jnp.asarray(theta), grads, row.extra)
    chex.assert_trees_all_close(thetas, expected, rtol=row.tolerance, atol=row.tolerance)


@zoo.rows("foreign schedule")
def test_a_schedule_sees_the_number_of_earlier_updates(row):
    """0 at the first: a rate of `count` leaves the first step out."""
    tx = row.tx(lambda count: count.astype(jnp.float32))
    theta = jnp.ones(row.shape)
    first, second = walk(tx, theta, [jnp.ones(row.shape)] * 2, row.extra)
    assert jnp.all(first == theta)
    assert jnp.all(second != theta)
