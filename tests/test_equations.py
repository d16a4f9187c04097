"""The printed update rules are what the optimizers do: they are run, not looked at.

If the LaTeX changes on purpose, write its golden file again:
`PYTHONPATH=tests python tests/test_equations.py`.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.inspect.periodic import factories

GOLDEN = pathlib.Path(__file__).parent / "golden" / "equations.tex"
STEPS = 12  # past RAdam's warm-up and the second curvature estimate of every tenth
SHAPE = (5, 4)


# --- running a text -------------------------------------------------------------


class Memory(dict):
    """Names and their values; state that was never assigned is 0."""

    def __missing__(self, name):
        return 0.0


def norm(x):
    return np.sqrt(np.sum(np.square(x)))


def orthogonal_iteration(gram, vectors):
    product = gram @ vectors
    order = np.argsort(-np.sum(vectors * product, axis=0))
    return np.linalg.qr(product[:, order])[0][:, np.argsort(order)]


def orthogonalize(x):
    tx = aj.orthogonalize()
    return np.asarray(tx.update(jnp.asarray(x), tx.init(jnp.asarray(x)))[0])


def estimator(tx, **extra):
    """A curvature estimator as a function of θ, which draws what the piece draws."""
    state = None

    def estimate(theta):
        nonlocal state
        params = {"kernel": jnp.asarray(theta)}
        state = tx.init(params) if state is None else state
        estimate, state = tx.update(params, state, params, **extra)
        return np.asarray(estimate["kernel"])

    return estimate


def loss(params):
    return jnp.sum(jnp.sin(params["kernel"]) ** 2 * jnp.arange(1.0, 1 + SHAPE[1]))


def logits(params):
    return jnp.stack([params["kernel"][0], jnp.sin(params["kernel"][1])])


ESTIMATORS = (aj.hutchinson, aj.gauss_newton_bartlett)
EXTRA = {"obj_fn": loss, "logits_fn": logits}


def functions():
    """NumPy for the names in a text."""
    plain = ("sqrt", "sign", "clip", "maximum", "minimum", "mean", "abs", "outer")
    return {name: getattr(np, name) for name in plain} | {
        "norm": norm,
        "global_norm": norm,  # there is one leaf
        "norm_1": lambda x: np.sum(np.abs(x)),
        "dot": lambda x, y: np.sum(x * y),
        "rms": lambda x: np.sqrt(np.mean(np.square(x))),
        "row_means": lambda x: x.mean(-1),
        "column_means": lambda x: x.mean(-2),
        "block_means": lambda x: x.mean(0, keepdims=True),
        "eye": lambda x: np.eye(len(x)),
        "eigenvectors": lambda x: np.linalg.eigh(x)[1][:, ::-1],
        "orthogonal_iteration": orthogonal_iteration,
        "orthogonalize": orthogonalize,
        "fan_in": SHAPE[0],
        "fan_out": SHAPE[1],
        "hutchinson": estimator(aj.hutchinson(), obj_fn=loss),
        "gauss_newton_bartlett": estimator(aj.gauss_newton_bartlett(), logits_fn=logits),
    }


def problem(shape=SHAPE):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=(STEPS, *shape))


def run(text, theta, grads, **names):
    """The parameters after each gradient, by the printed lines alone."""
    program = compile(text, "equations", "exec")
    memory, path = Memory(functions() | names, theta=theta), []
    for t, g in enumerate(grads, 1):
        memory.update(g=g, t=t)
        exec(program, {"__builtins__": {}}, memory)
        path.append(np.asarray(memory["theta"]))
    return path


def update(tx, theta, grads, leaf="kernel"):
    """The parameters after each gradient, by the transformation."""
    params, path = {leaf: jnp.asarray(theta)}, []
    state, step = tx.init(params), tx.update
    if any(piece.factory in ESTIMATORS for piece in aj.parts(tx).values()):
        step = jax.jit(lambda g, state, params: tx.update(g, state, params, **EXTRA))
    for g in grads:
        updates, state = step({leaf: jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params[leaf]))
    return path


def assert_describes(text, tx, theta=None, grads=None, leaf="kernel", **names):
    if theta is None:
        theta, grads = problem()
    theirs = update(tx, theta, grads, leaf)
    for each in (text,) if isinstance(text, str) else text:
        ours = run(each, theta, grads, **names)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


# --- every optimizer ------------------------------------------------------------

# Values at which every number in the text matters to more digits than are compared.
SETTINGS = {
    "weight_decay": 0.1,
    "eps": 0.02,
    "eps_root": 0.01,
    "d0": 0.1,
    "growth": 50.0,
    "gamma": 3.0,
}


def made(name):
    """The optimizer with every term in it."""
    factory = factories()[name]
    known = factory.signature.parameters
    return factory(0.05, **{key: value for key, value in SETTINGS.items() if key in known})


every_optimizer = pytest.mark.parametrize("name", factories())


@every_optimizer
def test_the_text_is_the_optimizer(name, x64):
    tx = made(name)
    values, symbols = aj.equations(tx, "text"), aj.equations(tx, "text", symbols=True)
    assert "learning_rate" not in values
    assert "learning_rate" in symbols
    assert_describes([values, symbols], tx, route="muon", **tx.arguments)


@every_optimizer
def test_the_text_is_true_where_all_begins_at_zero(name, x64):
    tx = factories()[name](aj.linear_warmup(0.05, 4))
    theta, grads = problem()
    grads[0] = 0  # and so is the first rate
    rate = lambda *args: lambda count: np.asarray(aj.linear_warmup(*args)(count))
    with np.errstate(divide="ignore"):  # a bound over a norm of 0 is no bound
        text = aj.equations(tx, "text")
        assert_describes(text, tx, theta, grads, route="muon", linear_warmup=rate)


@every_optimizer
def test_every_optimizer_is_written_out(name):
    # no piece of the package is left as a function of its input
    known = {*functions(), "capped_inverse_sqrt"}
    called = set(re.findall(r"([a-z_A-Z]+)\(", aj.equations(made(name), "text")))
    assert called <= known


def test_the_other_route_of_muon_is_adamw(x64):
    tx = aj.muon(0.02, weight_decay=0.1)
    text = aj.equations(tx, "text")
    theta, grads = problem((7,))
    assert_describes(text, tx, theta, grads, leaf="bias", route="adamw")
    assert text.startswith('if route == "muon":\n    b = ')
    assert '\nif route == "adamw":\n    m = ' in text


# --- other compositions ---------------------------------------------------------

COMPOSITIONS = [
    "adamw(0.05, weight_decay=0.1, coupling='independent')",
    "adamw(cosine(0.1, 20, warmup_steps=3), weight_decay=0.1, coupling='independent')",
    "adafactor(constant(0.05), weight_decay=0.1)",
    "adam(ahead(inverse_sqrt(0.1, 4)))",
    "chain(clip_by_global_norm(0.5), adamw(0.05, weight_decay=0.1))",
    "chain(clip_by_leaf_norm(0.5), clip(0.1), adam_l2(0.05), scale(-2.0))",
    "chain(adamw(0.05), adamw(0.01, b1=0.5))",
    "swap(adamw(0.05), 'direction.denominator.correction', identity())",
    "swap(adamw(0.05), 'direction.denominator.moment', chain(square(), running_max()))",
    "swap(adamw(0.05), 'direction.denominator', chain(square(), scale(3.0), floor(0.1)))",
    "swap(amsgrad(0.05), 'direction.denominator.maximum', identity())",
    "swap(nadamw(0.05), 'direction.numerator', warming_nesterov(0.9))",
    "swap(muon(0.05), 'muon.orthogonalize', sign())",
    "swap(soap(0.05), 'direction.basis', eigenbasis(0.9, every=1))",
    "adagrad(0.05, initial_accumulator=0.3)",
    "sophia_h(0.05, every=1)",
    "sophia_h(0.05, estimator=identity(), every=4)",
    "swap(sophia_h(0.05), 'direction.denominator.moment', "
    "curvature(hutchinson(), 0.9, every=3, refresh='after'))",
    "schedule_free_adamw(ahead(linear_warmup(0.1, 5)), weight_decay=0.1, power=1.0)",
    "prodigy(1.0, weight_decay=0.1, d0=0.01, growth=2.0)",
    "scheduled(ademamix(0.05), 'direction.numerator.slow.weight', factor=linear_warmup(5.0, 9))",
    "scheduled(adamw(0.05), b1=linear_warmup(0.9, 9))",
    "adamw(0.05, mask={'kernel': True}, weight_decay=0.1)",
    "adan(0.05, mask={'kernel': True}, weight_decay=0.1)",
    "masked(lion(0.05), {'kernel': True})",
    "delay(adamw(0.05), 3)",
    "accumulate(adamw(linear_warmup(0.05, 3)), 2)",
    "chain(clip_by_global_norm(0.5), accumulate(schedule_free_adamw(0.05), 3))",
    "chain(delay(scale_by_adam()), scale_by_learning_rate(0.05))",
    "chain(fork(a=identity(), b=scale(2.0)), pick('b'), scale_by_learning_rate(0.1))",
    "chain(fork(a=identity(), b=square()), probe('both'), pick('b'))",
    "scale_by_momentum(0.9, gain=0.5, read='before')",
    "interpolate(1.0, scale_by_momentum(0.9))",
    "route([('kernel', adamw(0.05))], default=('rest', sgd(0.1)))",
]


@pytest.mark.parametrize("expression", COMPOSITIONS)
def test_the_text_of_a_composition_is_what_it_does(expression, x64):
    tx = eval(expression, dict(vars(aj)))
    names = {name: getattr(aj, name) for name in ("cosine", "relative", "ahead", "inverse_sqrt")}
    route = "muon" if "muon" in expression else "rule0"
    text = aj.equations(tx, "text")
    assert_describes(text, tx, route=route, mask=True, linear_warmup=aj.linear_warmup, **names)


def test_a_masked_leaf_does_not_decay(x64):
    tx = aj.adamw(0.05, mask=lambda params: {"kernel": False}, weight_decay=0.1)
    text = aj.equations(tx, "text")
    assert "mask*0.1*theta" in text
    assert_describes(text, tx, mask=False)
    assert r"M \lambda \theta_{t-1}" in aj.equations(tx)


def test_operations_of_a_join(x64):
    def mix(g, m):
        return 0.5 * m * m - abs(g) / 2 + m**2

    tx = aj.chain(aj.join(mix, g=aj.identity(), m=aj.scale_by_momentum(0.9)), aj.scale(-0.1))
    text = aj.equations(tx, "text")
    assert "theta = theta - 0.1*(0.5*m*m - abs(g)/2 + m**2)" in text
    assert_describes(text, tx)


def test_branches_are_matched_by_name(x64):
    # in the order of the parameters, whatever the order of the branches
    parts = {"denominator": aj.rms(0.99), "numerator": aj.scale_by_momentum(0.9)}
    tx = aj.chain(aj.join(aj.divide, **parts), aj.scale(-0.1))
    text = aj.equations(tx, "text")
    assert "theta = theta - 0.1*m/(sqrt(v_hat) + 1e-08)" in text
    assert_describes(text, tx)

    def first(numerator, denominator):
        return jnp.where(denominator > 0, numerator, 0)

    tx = aj.join(first, **parts)
    text = aj.equations(tx, "text")
    assert_describes(text, tx, first=lambda m, v: np.where(v > 0, m, 0))


def test_an_operation_that_is_no_arithmetic_is_a_function(x64):
    def agree(g, m):
        return jnp.where(g * m > 0, m, 0)

    tx = aj.join(agree, g=aj.identity(), m=aj.scale_by_momentum(0.9))
    text = aj.equations(tx, "text")
    assert text.splitlines()[-1] == "theta = theta + agree(g, m)"
    assert_describes(text, tx, agree=lambda g, m: np.where(g * m > 0, m, 0))
    anonymous = aj.join(lambda m: jnp.sin(m), m=aj.identity())
    assert "op(g)" in aj.equations(anonymous, "text")


# --- what one reads -------------------------------------------------------------


def test_adamw_reads_as_in_a_paper():
    assert aj.equations(aj.adamw(1e-3), "text").splitlines() == [
        "m = 0.9*m + (1 - 0.9)*g",
        "m_hat = m/(1 - 0.9**t)",
        "v = 0.999*v + (1 - 0.999)*g**2",
        "v_hat = v/(1 - 0.999**t)",
        "theta = theta - 0.001*(m_hat/(sqrt(v_hat) + 1e-08) + 0.0001*theta)",
    ]
    symbols = aj.equations(aj.adamw(1e-3), "text", symbols=True)
    assert symbols.splitlines()[-1] == (
        "theta = theta - learning_rate*(m_hat/(sqrt(v_hat) + eps) + weight_decay*theta)"
    )


def test_what_has_no_effect_vanishes():
    last = lambda tx: aj.equations(tx, "text").splitlines()[-1]
    assert last(aj.adamw(1e-3, weight_decay=0.0)) == last(aj.adam(1e-3))
    assert last(aj.chain(aj.identity(), aj.scale(1.0), aj.sgd(0.1))) == "theta = theta - 0.1*g"
    assert aj.equations(aj.heavy_ball(0.1, momentum=0.0), "text", symbols=True) == (
        "m = g\ntheta = theta - learning_rate*m"
    )
    assert aj.equations(aj.mars(0.1, gamma=0.0), "text").count("g_prev") == 0
    assert r"\lambda" not in aj.equations(aj.lion(1e-3, weight_decay=0.0))
    # a learning rate is always there
    assert r"\eta" in aj.equations(aj.sgd(1.0))
    assert r"\eta" in aj.equations(aj.sgd(0.0))


def test_state_that_has_no_effect_is_there_and_says_so(x64):
    tx = aj.ademamix(0.05, alpha=0.0)
    lines = aj.equations(tx, "text").splitlines()
    assert [line for line in lines if line.endswith("  # has no effect")] == [
        "m_slow = 0.9999*m_slow + (1 - 0.9999)*g  # has no effect"
    ]
    assert_describes("\n".join(lines), tx)
    assert aj.equations(tx).count(r"\qquad \text{(has no effect)}") == 1
    assert "no effect" not in aj.equations(aj.ademamix(0.05), "text")
    unused = aj.fork(a=aj.chain(aj.square(), aj.running_max()), b=aj.identity())
    text = aj.equations(aj.chain(unused, aj.pick("b")), "text")
    assert text == "u_max = maximum(u_max, g**2)  # has no effect\ntheta = theta + g"


STAGES = {
    "masked": lambda: aj.masked(aj.scale(0.9), {"kernel": True}),
    "masked state": lambda: aj.masked(aj.scale_by_adam(), {"kernel": True}),
    "interpolate": lambda: aj.interpolate(0.5, aj.sign()),
    "precondition": lambda: aj.precondition(aj.identity(), aj.chain(aj.square(), aj.root(0.1))),
    "join": lambda: aj.join(lambda a, b: abs(a) * a + b, a=aj.identity(), b=aj.sign()),
    "delay": lambda: aj.delay(aj.scale_by_momentum(0.9), 2),
    "clip": lambda: aj.clip_by_global_norm(0.5),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_equations_grow_with_the_expression(stage):
    length = lambda n: len(aj.equations(aj.chain(*(stage() for _ in range(n))), "text"))
    assert length(16) - length(8) < 2.5 * (length(8) - length(4))


def test_names_that_are_wanted_twice():
    lines = aj.equations(aj.ademamix(1e-3), "text")
    assert "m_fast = 0.9*m_fast" in lines
    assert "m_slow = 0.9999*m_slow" in lines
    assert "m_fast_hat = m_fast/(1 - 0.9**t)" in lines
    numbered = aj.equations(aj.chain(aj.momentum(0.1), aj.momentum(0.1)), "text")
    assert numbered.splitlines()[-1] == "theta = theta - 0.1*m_2"
    twice = aj.equations(aj.chain(aj.adamw(0.1), aj.adamw(0.2)), "text", symbols=True)
    assert "learning_rate_1" in twice
    assert "b1_1" not in twice  # the same number


def test_schedules():
    rate = aj.cosine(0.1, 100, warmup_steps=10)
    assert "- cosine(0.1, 100, warmup_steps=10)(t - 1)*g" in aj.equations(aj.sgd(rate), "text")
    assert "- learning_rate(t - 1)*g" in aj.equations(aj.sgd(rate), "text", symbols=True)
    assert r"\eta(t - 1) g_t" in aj.equations(aj.sgd(rate))
    assert "minimum(0.05, 1/sqrt(t))" in aj.equations(aj.adafactor(0.05), "text")
    assert "learning_rate(t - 1)" in aj.equations(aj.sgd(lambda count: 0.1), "text")
    decay = aj.adamw(rate, coupling="independent")
    assert r"\operatorname{relative}(\eta)(t - 1) \lambda" in aj.equations(decay)


WRITTEN = {  # schedule: how it is written where it is used
    aj.piecewise(0.1, {10: 0.5}): "piecewise(0.1, ((10, 0.5),))(t - 1)*g",
    aj.join_schedules((aj.linear_warmup(0.1, 4), 0.1), (4,)): (
        "join_schedules((linear_warmup(0.1, 4), 0.1), (4,))(t - 1)*g"
    ),
    0.7 * aj.cosine(0.1, 100): "0.7*cosine(0.1, 100)(t - 1)*g",
    aj.constant(0.1) + aj.capped_inverse_sqrt(0.1): "(0.1 + minimum(0.1, 1/sqrt(t)))*g",
    aj.shift(2 * aj.constant(0.1), 3): "shift(2*constant(0.1), 3)(t - 1)*g",
}


@pytest.mark.parametrize("schedule", WRITTEN, ids=repr)
def test_schedules_of_schedules(schedule):
    assert aj.equations(aj.sgd(schedule), "text") == f"theta = theta - {WRITTEN[schedule]}"
    assert r"\eta(t - 1) g_t" in aj.equations(aj.sgd(schedule))
    assert aj.equations(aj.sgd(schedule), symbols=False)


def test_old_state_has_the_old_index():
    lion = aj.equations(aj.lion(1e-3))
    assert r"\operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t)" in lion
    assert r"g_t - g_{t-1}" in aj.equations(aj.mars(1e-3))
    adopt = aj.equations(aj.adopt(1e-3))
    assert r"\sqrt{v_{t-1}}" in adopt
    assert r"d_{t-1}" in aj.equations(aj.prodigy(1.0))


def test_arrays_and_tracers_are_names():
    rates = jnp.array([0.1, 0.2])
    assert "theta - learning_rate*g" in aj.equations(aj.sgd(rates), "text")
    swept = aj.sgd(aj.cosine(rates, 100, end=rates / 2))
    assert "cosine(peak, 100, end=end)(t - 1)*g" in aj.equations(swept, "text")
    seen = []
    jax.jit(lambda rate: seen.append(aj.equations(aj.sgd(rate), "text")) or rate)(0.1)
    assert seen == ["theta = theta - learning_rate*g"]


# --- pieces from elsewhere ------------------------------------------------------


@aj.transformation(
    leafwise=True, equation="if t == 1: a = theta\na = rate * a + (1 - rate) * theta; u + theta - a"
)
def pull(rate: float):
    """u + θ - a, a the average of θ."""

    def init(params):
        return jax.tree.map(jnp.array, params)

    def step(u, state, params=None):
        new = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, state, params)
        return jax.tree.map(lambda u, p, a: u + p - a, u, params, new), new

    return optax.GradientTransformation(init, step)


@aj.transformation(equation=lambda arguments: f"{arguments['times']} * tx(tx(u))")
def twice(tx, times=1.5):
    """The same stateless part twice."""

    def step(u, state, params=None):
        u, state = tx.update(u, state, params)
        u, state = tx.update(u, state, params)
        return jax.tree.map(lambda x: times * x, u), state

    return optax.GradientTransformation(tx.init, step)


def test_a_users_piece_joins_in(x64):
    tx = aj.chain(pull(0.9), aj.adam(0.1))
    text = aj.equations(tx, "text")
    assert text.startswith("if t == 1: a = theta\na = 0.9*a + (1 - 0.9)*theta\n")
    assert_describes(text, tx)
    assert "a_0 &= \\theta_0 \\\\\na_t &= \\mathrm{rate} a_{t-1}" in aj.equations(tx)


def test_a_users_combinator_joins_in():
    text = aj.equations(twice(aj.scale(0.5)), "text")
    assert text == "theta = theta + 1.5*0.5*0.5*g"


def test_foreign_pieces_are_functions_of_their_input(x64):
    lifted = aj.transformation(optax.clip_by_global_norm)(0.5)
    with jax.numpy_dtype_promotion("standard"):
        tx = aj.chain(lifted, aj.sgd(0.1))
        text = aj.equations(tx, "text")
        assert text == "theta = theta - 0.1*clip_by_global_norm(g)"
        limit = lambda x: x * min(1, 0.5 / norm(x))
        assert_describes(text, tx, clip_by_global_norm=limit)
    bare = aj.equations(aj.chain(optax.scale_by_adam(), aj.scale(-0.1)), "text")
    assert bare == "theta = theta - 0.1*scale_by_adam(g)"
    assert aj.equations(optax.scale_by_adam(), "text") == "theta = theta + scale_by_adam(g)"
    assert r"\operatorname{clip\_by\_global\_norm}(g_t)" in aj.equations(tx)


def test_a_part_of_a_silent_piece_is_walked():
    @aj.transformation
    def wrapped(tx):
        return optax.GradientTransformation(tx.init, tx.update)

    text = aj.equations(wrapped(aj.scale_by_momentum(0.9)), "text")
    assert text == "m = 0.9*m + (1 - 0.9)*g\ntheta = theta + wrapped(m)"


@pytest.mark.parametrize(
    "text",
    [
        "m = ",
        "m = u",
        "",
        "for i in u: pass\nu",
        "del u; u",
        "a, b = u, u; a",
        "a = b = u; a",
        "a[0] = u; a",
        "u = 2 * u; u",
        "theta = 2 * theta; u",
        "if t == 1: m = u\nelse: m = 2 * u\nm",
        "if t > 1:\n if t > 2: m = u\nm",
    ],
)
def test_what_is_no_equation_is_an_error(text):
    @aj.transformation(equation=text)
    def broken():
        return optax.identity()

    with pytest.raises(ValueError, match="equation of broken"):
        aj.equations(broken())


def test_an_open_fork_has_no_equation():
    tx = aj.chain(aj.fork(a=aj.identity(), b=aj.square()), aj.clip_by_global_norm(1.0))
    with pytest.raises(ValueError, match="clip_by_global_norm receives the branches a, b of a f"):
        aj.equations(tx)


def test_a_branch_of_a_piece_without_an_equation_is_a_function_of_it():
    @aj.transformation(produces="fork")
    def halves():
        return optax.stateless(lambda u, params: {"low": u, "high": u})

    text = aj.equations(aj.chain(aj.square(), halves(), aj.pick("low"), aj.scale(-0.1)), "text")
    assert text == "theta = theta - 0.1*low(halves(g**2))"


@pytest.mark.parametrize("name", ['say "so"', "back\\slash", "two\nlines", "été"])
def test_a_route_may_be_called_anything(name, x64):
    tx = aj.route([(name, "kernel", aj.sgd(0.1))], default=("rest", aj.adam(0.1)))
    assert_describes(aj.equations(tx, "text"), tx, route=name)


def test_a_route_may_be_called_anything_in_latex():
    tx = aj.route([("50%_of_a&b#$", "kernel", aj.sgd(0.1))], default=("rest", aj.adam(0.1)))
    assert r"\text{50\%\_of\_a\&b\#\$:}" in aj.equations(tx)


def test_another_format_is_an_error():
    with pytest.raises(ValueError, match="format is 'html'"):
        aj.equations(aj.sgd(0.1), "html")


# --- LaTeX ----------------------------------------------------------------------

SHOWN = {
    "adamw": aj.adamw(1e-3),
    "lion": aj.lion(1e-3),
    "sophia_h": aj.sophia_h(1e-3),
    "muon": aj.muon(0.02, weight_decay=0.1),
}


def printed():
    return "\n".join(f"% {name}\n{aj.equations(tx)}\n" for name, tx in SHOWN.items())


def test_the_printed_latex():
    assert printed() == GOLDEN.read_text(encoding="utf-8")


def test_latex_with_values():
    shown = aj.equations(aj.adamw(3e-4), symbols=False)
    assert r"m_t &= 0.9 m_{t-1} + (1 - 0.9) g_t" in shown
    assert r"3 \cdot 10^{-4} \left(" in shown
    assert r"+ 10^{-8}" in shown
    for exponent in range(-12, -3):  # 1e-6 is a bit below 10^-6
        shown = aj.equations(aj.adamw(3e-4, eps=float(f"1e{exponent}")), symbols=False)
        assert f"+ 10^{{{exponent}}}" in shown


def test_notebooks_show_it():
    tx = aj.adamw(1e-3)
    assert tx._repr_latex_() == f"$${aj.equations(tx)}$$"


@every_optimizer
def test_latex_is_well_formed(name):
    for symbols in (True, False):
        assert_well_formed(aj.equations(made(name), symbols=symbols))


def assert_well_formed(text):
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right")
    for environment in ("aligned", "cases"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}")
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    parse = pytest.importorskip("matplotlib.mathtext").MathTextParser("path").parse
    for row in text.splitlines()[1:-1]:
        if r"\begin" not in row and r"\text" not in row:  # which mathtext does not know
            parse(f"${row.removesuffix(' ' + 2 * chr(92)).replace('&', '')}$")


if __name__ == "__main__":
    GOLDEN.write_text(printed(), encoding="utf-8")
