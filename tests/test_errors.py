"""Bad input is refused in one sentence that says what is wrong and what to do.

And where input is merely hard (spikes, zeros, 16 bits), nothing breaks.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import walk

import adamw_jax as aj

PARAMS = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
GRADS = jax.tree.map(lambda p: p / 2, PARAMS)

# `<function>: <what is wrong, with the value>. <what to do>.`
FORM = re.compile(r"[a-z]\w*: .+\. [A-Z].+\.", re.DOTALL)

nan, inf = float("nan"), float("inf")


def cases(*rows):
    """Rows of (name, callable, exception, pattern), ids from the names."""
    names = [name for name, *_ in rows]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize(
        ("call", "exception", "pattern"), [row for _, *row in rows], ids=names
    )


def assert_refuses(call, exception, pattern):
    with pytest.raises(exception) as error:
        call()
    assert error.type is exception
    message = error.value.args[0]
    assert re.search(pattern, message), message
    assert FORM.fullmatch(message), message


def bad(name, call, value, pattern):
    return name, call, ValueError, rf"{re.escape(repr(value))}\. It must be {pattern}"


RATE = r"a finite number, at least 0, or a schedule\.$"
DECAY = r"in \[0, 1\)\.$"
POSITIVE = r"a number above 0\.$"
NONNEGATIVE = r"a number, at least 0\.$"
FINITE = r"a finite number\.$"
COUNT = r"a whole number, at least 1\.$"
OPEN = r"in \(0, 1\)\.$"
FROM_FOUR = r"a number, at least 4\.$"
OF_LEAF = r"a function of path and leaf\.$"
WHOLE = r"a whole number, at least 0\.$"

RATES = {
    "negative": -1e-3,
    "nan": nan,
    "infinite": inf,
    "minus infinity": -inf,
    "complex": 1j,
    "None": None,
    "text": "0.1",
    "bool": True,
    "numpy bool": np.True_,
    "list": [0.1],
    "huge int": 10**400,
    "negative array": jnp.array([0.1, -0.1]),
    "nan array": np.array(nan),
    "complex array": jnp.array(1j),
}


@cases(*(bad(name, lambda v=v: aj.adamw(v), v, RATE) for name, v in RATES.items()))
def test_learning_rate(call, exception, pattern):
    assert_refuses(call, exception, rf"^adamw: learning_rate is {pattern}")


OPTIMIZERS = [
    aj.sgd,
    aj.momentum,
    aj.heavy_ball,
    aj.nesterov,
    aj.adagrad,
    aj.rmsprop,
    aj.adam,
    aj.adam_l2,
    aj.adamw,
    aj.scale_by_learning_rate,
    aj.adabelief,
    aj.adafactor,
    aj.adam_mini,
    aj.adan,
    aj.ademamix,
    aj.adopt,
    aj.amsgrad,
    aj.cautious_adamw,
    aj.laprop,
    aj.lion,
    aj.mars,
    aj.muon,
    aj.nadamw,
    aj.prodigy,
    aj.radam,
    aj.schedule_free_adamw,
    aj.signum,
    aj.soap,
    aj.sophia_g,
    aj.sophia_h,
    aj.stable_adamw,
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("value", [-0.1, nan, inf, 1j, None, "0.1"], ids=repr)
def test_learning_rate_everywhere(make, value):
    pattern = rf"^{make.__name__}: learning_rate is {re.escape(repr(value))}\. It must be {RATE}"
    assert_refuses(lambda: make(value), ValueError, pattern)


# What Sophia needs beside a gradient, and all others ignore.
FUNCTIONS = {
    "obj_fn": lambda p: jnp.sum(jnp.real(p * jnp.conj(p))),
    "logits_fn": lambda p: jnp.stack([jnp.real(p), -jnp.real(p)], axis=-1),
}

# (function, argument, bad values, what it must be)
HYPERPARAMETERS = [
    (lambda v: aj.adamw(0.1, b1=v), "adamw: b1", [1.0, 1.5, -0.1, nan, "x", None, 1j], DECAY),
    (lambda v: aj.adamw(0.1, b2=v), "adamw: b2", [1.0, 1, inf, True], DECAY),
    (lambda v: aj.adamw(0.1, eps=v), "adamw: eps", [-1e-8, nan, inf, "1e-8"], NONNEGATIVE),
    (
        lambda v: aj.adamw(0.1, weight_decay=v),
        "adamw: weight_decay",
        [-0.1, nan, inf, None, lambda t: 0.1],
        NONNEGATIVE,
    ),
    (lambda v: aj.momentum(0.1, v), "momentum: decay", [1.0, -0.5, nan], DECAY),
    (lambda v: aj.heavy_ball(0.1, v), "heavy_ball: momentum", [1.0, -0.5], DECAY),
    (lambda v: aj.nesterov(0.1, v), "nesterov: momentum", [1.0, -0.5], DECAY),
    (lambda v: aj.rmsprop(0.1, v), "rmsprop: decay", [1.0, -0.5], DECAY),
    (lambda v: aj.adagrad(0.1, v), "adagrad: eps", [-1.0, nan], NONNEGATIVE),
    (
        lambda v: aj.adagrad(0.1, initial_accumulator=v),
        "adagrad: initial_accumulator",
        [-1.0, inf],
        NONNEGATIVE,
    ),
    (lambda v: aj.scale_by_momentum(v), "scale_by_momentum: decay", [1.0, -0.1], DECAY),
    (
        lambda v: aj.scale_by_momentum(0.9, gain=v),
        "scale_by_momentum: gain",
        [nan, "x"],
        r"a finite number\.$",
    ),
    (
        lambda v: aj.scale_by_momentum(0.9, read=v),
        "scale_by_momentum: read",
        ["now", None],
        '"after" or "before"',
    ),
    (
        lambda v: aj.second_moment(0.9, dtype=v),
        "second_moment: dtype",
        ["int32", "float33", bool],
        r"a floating-point dtype\.$",
    ),
    (
        lambda v: aj.bias_correction(0.9, ahead=v),
        "bias_correction: ahead",
        [-1, 0.5, "1", True],
        r"a whole number, at least 0\.$",
    ),
    (lambda v: aj.scale(v), "scale: factor", [nan, "2", None], r"a finite number\.$"),
    (lambda v: aj.clip(v), "clip: max_abs", [0.0, -1.0, inf], POSITIVE),
    (lambda v: aj.clip_by_global_norm(v), "clip_by_global_norm: max_norm", [0, -1, nan], POSITIVE),
    (lambda v: aj.root(v), "root: eps", [-1.0], NONNEGATIVE),
    (lambda v: aj.root(eps_root=v), "root: eps_root", [-1.0], NONNEGATIVE),
    (lambda v: aj.floor(v), "floor: eps", [-1.0, nan], NONNEGATIVE),
    (
        lambda v: aj.interpolate(v, aj.sign()),
        "interpolate: weight",
        [1.1, -0.1, nan],
        r"in \[0, 1\]\.$",
    ),
    (lambda v: aj.shrink(0.1, v), "shrink: schedule", [-1.0, nan, "cosine"], RATE),
    (lambda v: aj.cosine(v, 10), "cosine: peak", [-1.0, nan, None], NONNEGATIVE),
    (
        lambda v: aj.cosine(1.0, v),
        "cosine: total_steps",
        [-1, nan, "10", 0.05],
        "a number of steps",
    ),
    (lambda v: aj.adamw(0.1, coupling=v), "adamw: coupling", ["l2", None], '"lr" or "independent"'),
    # the optimizers beyond Adam
    (lambda v: aj.lion(0.1, b2=v), "lion: b2", [1.0, nan], DECAY),
    (lambda v: aj.signum(0.1, weight_decay=v), "signum: weight_decay", [-1.0, None], NONNEGATIVE),
    (lambda v: aj.sophia_h(0.1, gamma=v), "sophia_h: gamma", [-1.0, inf], NONNEGATIVE),
    (lambda v: aj.sophia_g(0.1, every=v), "sophia_g: every", [0, 2.5, True], COUNT),
    (lambda v: aj.muon(0.1, v), "muon: momentum", [1.0, -0.5], DECAY),
    (lambda v: aj.adan(0.1, b3=v), "adan: b3", [1.0, "x"], DECAY),
    (lambda v: aj.ademamix(0.1, alpha=v), "ademamix: alpha", [nan, None], FINITE),
    (lambda v: aj.mars(0.1, gamma=v), "mars: gamma", [inf, "x"], FINITE),
    (lambda v: aj.adafactor(0.1, power=v), "adafactor: power", [0.0, -0.8], POSITIVE),
    (lambda v: aj.adafactor(0.1, threshold=v), "adafactor: threshold", [0.0, nan], POSITIVE),
    (lambda v: aj.prodigy(1.0, d0=v), "prodigy: d0", [0.0, -1e-6, None], POSITIVE),
    (lambda v: aj.prodigy(1.0, b3=v), "prodigy: b3", [1.0, -0.1], DECAY),
    (lambda v: aj.soap(0.1, max_dim=v), "soap: max_dim", [0, 1.5], COUNT),
    (lambda v: aj.schedule_free_adamw(0.1, v), "schedule_free_adamw: b1", [0, 1.0, nan], OPEN),
    # and their pieces
    (lambda v: aj.accumulate(aj.sign(), v), "accumulate: every", [0, -1, 0.5, None], COUNT),
    (lambda v: aj.delay(aj.sign(), v), "delay: steps", [0, -1, 0.5, None], COUNT),
    (lambda v: aj.curvature(aj.sign(), v), "curvature: decay", [1.0, -0.1], DECAY),
    (lambda v: aj.curvature(aj.sign(), 0.9, every=v), "curvature: every", [0, 1.5, "2"], COUNT),
    (
        lambda v: aj.curvature(aj.sign(), 0.9, refresh=v),
        "curvature: refresh",
        ["never", None],
        '"before" or "after"',
    ),
    (lambda v: aj.hutchinson(seed=v), "hutchinson: seed", [-1, 0.5, None], WHOLE),
    (
        lambda v: aj.hutchinson(distribution=v),
        "hutchinson: distribution",
        ["normal", None],
        "one of: gaussian, rademacher",
    ),
    (
        lambda v: aj.gauss_newton_bartlett(seed=v),
        "gauss_newton_bartlett: seed",
        [-1, "x"],
        WHOLE,
    ),
    (lambda v: aj.average(v), "average: decay", [1.0, nan], DECAY),
    (lambda v: aj.rms(0.9, v), "rms: eps", [-1.0, inf], NONNEGATIVE),
    (lambda v: aj.nesterov_trace(v), "nesterov_trace: decay", [1.0, None], DECAY),
    (lambda v: aj.nesterov_average(v), "nesterov_average: decay", [1.0, -0.1], DECAY),
    (lambda v: aj.warming_nesterov(0.9, v), "warming_nesterov: psi", [-1.0, nan], NONNEGATIVE),
    (lambda v: aj.previous_second_moment(v), "previous_second_moment: decay", [1.0], DECAY),
    (lambda v: aj.variance_reduction(v), "variance_reduction: decay", [1.0, "x"], DECAY),
    (lambda v: aj.variance_reduction(0.9, v), "variance_reduction: gamma", [nan], FINITE),
    (lambda v: aj.update_rms(v), "update_rms: eps", [-1.0, None], NONNEGATIVE),
    (lambda v: aj.clip_by_rms(v), "clip_by_rms: threshold", [0.0, inf], POSITIVE),
    (lambda v: aj.clip_by_leaf_norm(v), "clip_by_leaf_norm: max_norm", [0.0, -1], POSITIVE),
    (lambda v: aj.clip_by_age(v), "clip_by_age: power", [0.0, nan], POSITIVE),
    (lambda v: aj.rectify(v), "rectify: decay", [1.0, -0.5], DECAY),
    (lambda v: aj.rectify(0.9, threshold=v), "rectify: threshold", [0.0, 3.9, "5"], FROM_FOUR),
    (lambda v: aj.root_bias_correction(v), "root_bias_correction: decay", [1.0], DECAY),
    (
        lambda v: aj.scale_by_parameter_rms(v),
        "scale_by_parameter_rms: minimum",
        [-1.0, nan],
        NONNEGATIVE,
    ),
    (
        lambda v: aj.factored_second_moment(v),
        "factored_second_moment: power",
        [0.0, -0.8],
        POSITIVE,
    ),
    (lambda v: aj.block_second_moment(v), "block_second_moment: decay", [1.0, None], DECAY),
    (lambda v: aj.shrink_after(v), "shrink_after: weight_decay", [-0.1, nan], NONNEGATIVE),
    (lambda v: aj.proximal_decay(0.1, v), "proximal_decay: schedule", [-1.0, "lr"], RATE),
    (lambda v: aj.schedule_free(aj.sgd(0.1), v), "schedule_free: learning_rate", [-1, None], RATE),
    (lambda v: aj.schedule_free(aj.sgd(0.1), 0.1, v), "schedule_free: b1", [0, 1.0], OPEN),
    (lambda v: aj.by_distance(aj.sgd(0.1), v, 0.9), "by_distance: learning_rate", [nan], RATE),
    (lambda v: aj.by_distance(aj.sgd(1), 1.0, 0.9, d0=v), "by_distance: d0", [0.0], POSITIVE),
    (lambda v: aj.distance_root(v), "distance_root: eps", [-1.0, None], NONNEGATIVE),
    (lambda v: aj.eigenbasis(v), "eigenbasis: decay", [1.0, -0.1], DECAY),
    (lambda v: aj.eigenbasis(0.9, every=v), "eigenbasis: every", [0, 0.5], COUNT),
    (lambda v: aj.orthogonalize(steps=v), "orthogonalize: steps", [0, 1.5, None], COUNT),
    (
        lambda v: aj.orthogonalize(dtype=v),
        "orthogonalize: dtype",
        ["int32", "brain"],
        r"a floating-point dtype\.$",
    ),
    (
        lambda v: aj.scale_by_shape(v),
        "scale_by_shape: scale",
        ["torch", None, 2.0],
        "one of: keller, moonshot, spectral",
    ),
    (lambda v: aj.ahead(v), "ahead: schedule", [-1.0, 0.1, None], r"a schedule\.$"),
    (lambda v: aj.ahead(aj.constant(0.1), v), "ahead: steps", [-1, "1"], "a number of steps"),
    (lambda v: aj.linear(0.1, v, 9), "linear: end", [-1.0, nan, "0"], NONNEGATIVE),
    (lambda v: aj.linear(0.1, 0.0, v), "linear: total_steps", [-1, 0.5], "a number of steps"),
    (
        lambda v: aj.polynomial(0.1, 0.0, v, 9),
        "polynomial: power",
        [0, -1.0, "2"],
        "a number above",
    ),
    (
        lambda v: aj.exponential(0.1, v, 0.9),
        "exponential: every",
        [0, -1, 0.5],
        "a number of steps",
    ),
    (lambda v: aj.exponential(0.1, 9, v), "exponential: decay", [0, -1.0], "a number above 0"),
    (
        lambda v: aj.piecewise(0.1, v),
        "piecewise: factors",
        [0.1, {5: -1.0}, {0.5: 1.0}, [(9, 0.1), (5, 0.1)], [5, 9]],
        r"\{step: factor\}",
    ),
    (
        lambda v: aj.one_cycle(0.1, 9, div_factor=v),
        "one_cycle: div_factor",
        [0],
        "a number above 0",
    ),
    (
        lambda v: aj.cosine_restarts(0.1, v),
        "cosine_restarts: cycle_steps",
        [0, (), (5, 0), "9"],
        "a number of steps",
    ),
    (
        lambda v: aj.join_schedules(v, ()),
        "join_schedules: schedules",
        [(), 0.1, [-1.0], ["cosine"]],
        "a tuple of schedules",
    ),
    (
        lambda v: aj.join_schedules((0.1, 0.2, 0.3), v),
        "join_schedules: boundaries",
        [5, (9, 5), (-1, 5)],
        "a tuple of steps, in order",
    ),
    (lambda v: aj.shift(v, 3), "shift: schedule", [0.1, None], r"a schedule\.$"),
    (lambda v: aj.shift(aj.constant(0.1), v), "shift: steps", [-1, 0.5], "a number of steps"),
    (
        lambda v: v * aj.constant(0.1),
        "times: a",
        ["2", None, nan],
        "a finite number, or a schedule",
    ),
    (
        lambda v: aj.constant(0.1) - v,
        "minus: b",
        ["2", None, nan],
        "a finite number, or a schedule",
    ),
    (lambda v: aj.constant(0.1) / v, "over: b", [0, 0.0, nan], "a number other than 0"),
    (lambda v: aj.muon(0.1, nesterov=v), "muon: nesterov", ["no", None], r"True or False\.$"),
    (lambda v: aj.muon(0.1, matrices=v), "muon: matrices", [True, "w"], OF_LEAF),
    (lambda v: aj.orthogonalize(views=v), "orthogonalize: views", [True], OF_LEAF),
    (lambda v: aj.adam_mini(0.1, blocks=v), "adam_mini: blocks", [(0,), "w"], OF_LEAF),
    (lambda v: aj.capped_inverse_sqrt(v), "capped_inverse_sqrt: peak", [-1, nan], NONNEGATIVE),
]


@cases(
    *(
        (f"{what} {number}", lambda call=call, v=v: call(v), ValueError, (what, v, domain))
        for call, what, values, domain in HYPERPARAMETERS
        for number, v in enumerate(values)
    )
)
def test_hyperparameters(call, exception, pattern):
    what, value, domain = pattern
    says = rf"^{what} is {re.escape(repr(value))}\. It must be {domain}"
    assert_refuses(call, exception, says)


@pytest.mark.parametrize("value", [0, 0.0, 1, np.float32(0.5), np.array(0.5), 1e30])
def test_good_learning_rates_pass(value):
    aj.adamw(value)
    jax.jit(lambda lr: aj.adamw(lr).init(PARAMS))(value)


def test_tracers_are_not_judged():
    # under jit a value cannot be known, and must not be asked for
    out = jax.jit(lambda b1: aj.adamw(0.1, b1=b1).update(GRADS, aj.adamw(0.1).init(PARAMS), PARAMS))
    assert np.isnan(out(1.0)[0]["b"]).all()


# --- calls, wiring, schedules -------------------------------------------------


def run(tx, grads=GRADS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)


def three():
    return 3


@aj.transformation(leafwise=True)
def asking():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda u: value * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


INNER = aj.scheduled(aj.adamw(0.1), b1=aj.constant(0.8))
SIGN = aj.sign()
FORK = aj.fork(a=aj.identity(), b=aj.sign())


@cases(
    ("nothing", lambda: aj.adamw(), TypeError, r"^adamw: .*'learning_rate'.*adamw\(learning_rate"),
    ("unknown", lambda: aj.adamw(0.1, beta1=0.9), TypeError, "^adamw: .*'beta1'.*b1=0.9"),
    ("too many", lambda: aj.sgd(0.1, 0.9), TypeError, r"^sgd: too many.*sgd\(learning_rate\)"),
    ("twice", lambda: aj.sgd(0.1, learning_rate=1), TypeError, "^sgd: multiple values"),
    ("chain 3", lambda: aj.chain(aj.sign(), 3), TypeError, "^chain: '1' is 3, not"),
    ("chain factory", lambda: aj.chain(aj.sign), TypeError, "^chain: '0' is <function sign"),
    ("chain list", lambda: aj.chain([aj.sign()]), TypeError, r"^chain: '0' is \[sign\(\)\], not"),
    ("chain mixed", lambda: aj.chain(aj.sign(), a=aj.sign()), TypeError, "^chain: some .* named"),
    ("chain dot", lambda: aj.chain(**{"a.b": aj.sign()}), TypeError, "^chain: the name 'a.b'"),
    ("fork 3", lambda: aj.fork(a=3), TypeError, "^fork: 'a' is 3, not"),
    ("fork dot", lambda: aj.fork(**{".": aj.sign()}), TypeError, "^fork: the name '.'"),
    ("join 3", lambda: aj.join(aj.add, a=3), TypeError, "^join: 'a' is 3, not"),
    ("join op", lambda: aj.join(3, a=aj.sign()), TypeError, "^join: op is 3.*of a .arrays"),
    ("join nothing", lambda: aj.join(aj.add), TypeError, "^join: got no branches"),
    (
        "join arity",
        lambda: aj.join(lambda x: x, a=aj.sign(), b=aj.sign()),
        TypeError,
        "^join: op is <function.*of a, b .arrays",
    ),
    (
        "precondition",
        lambda: aj.precondition(aj.sign(), None),
        TypeError,
        "^precondition: 'denominator' is None, not",
    ),
    ("interpolate", lambda: aj.interpolate(0.5, "m"), TypeError, "^interpolate: 'tx' is 'm', not"),
    ("masked", lambda: aj.masked(None, True), TypeError, "^masked: 'tx' is None, not"),
    ("merge a tree", lambda: run(aj.merge(lambda g: g), 1.0, 1.0), TypeError, "^merge: got"),
    (
        "merge names",
        lambda: run(aj.chain(FORK, aj.merge(lambda x, y: x + y))),
        TypeError,
        "^merge: .* not the branches a, b",
    ),
    (
        "open fork",
        lambda: run(aj.chain(FORK, aj.clip(1.0))),
        ValueError,
        r"^clip: got \d arrays of updates for \d parameters",
    ),
    ("pick", lambda: run(aj.chain(FORK, aj.pick("c"))), KeyError, "^pick: .*'c'; there are: a, b"),
    ("pick alone", lambda: run(aj.pick("c"), 1.0, 1.0), KeyError, "^pick: .*'c'; there are: none"),
    ("no fork", lambda: run(aj.chain(aj.sign(), aj.cautious())), KeyError, "^cautious: .*'update'"),
    ("no update", lambda: run(aj.chain(FORK, aj.cautious())), KeyError, "^cautious: .*: a, b"),
    ("no gradient", lambda: run(aj.update_rms()), KeyError, "^update_rms: .*'gradient'; .*: b, w"),
    (
        "not a piece",
        lambda: aj.transformation(three)(),
        TypeError,
        "^three: returned 3.*must return an optax",
    ),
    (
        "shape of piecewise",
        lambda: aj.piecewise(0.1, {}, shape="cubic"),
        ValueError,
        "^piecewise: shape is 'cubic'. It must be one of: constant, linear, cosine",
    ),
    (
        "shape of one_cycle",
        lambda: aj.one_cycle(0.1, 9, shape="cos"),
        ValueError,
        "^one_cycle: shape is 'cos'",
    ),
    (
        "phases of one_cycle",
        lambda: aj.one_cycle(0.1, 9, cooldown_steps=8),
        ValueError,
        "^one_cycle: warmup_steps [+] cooldown_steps is 10, and total_steps 9. Make",
    ),
    (
        "warmup of a cycle",
        lambda: aj.cosine_restarts(0.1, (9, 3), warmup_steps=4),
        ValueError,
        "^cosine_restarts: warmup_steps is 4, and a cycle has 3 steps. Make",
    ),
    (
        "boundaries",
        lambda: aj.join_schedules((0.1, 0.2), (3, 5)),
        ValueError,
        r"^join_schedules: boundaries is \(3, 5\) for 2 schedules. Give one step",
    ),
    (
        "a schedule, not what makes one",
        lambda: aj.schedule(optax.cosine_decay_schedule(0.1, 100)),
        TypeError,
        "^schedule: got what cosine_decay_schedule returned. Pass that function itself, as in "
        r"schedule\(optax.cosine_decay_schedule\)",
    ),
    ("not a schedule", lambda: aj.schedule(three)(), TypeError, "^three: returned 3"),
    ("swap 3", lambda: aj.swap(aj.sgd(1), "direction", 3), TypeError, "^swap: 3 is not"),
    ("expand 3", lambda: aj.expand(3), TypeError, "^expand: 3 is not"),
    ("parts 3", lambda: aj.parts(3), TypeError, "^parts: 3 is not"),
    ("part 3", lambda: aj.part(3, ""), TypeError, "^part: 3 is not"),
    ("lint 3", lambda: aj.lint(3), TypeError, "^lint: 3 is not"),
    ("equations 3", lambda: aj.equations(3), TypeError, "^equations: 3 is not"),
    ("diff 3", lambda: aj.diff(aj.sgd(0.1), 3), TypeError, "^diff: 3 is not"),
    ("describe 3", lambda: aj.describe(3, 1.0), TypeError, "^describe: 3 is not"),
    ("check 3", lambda: aj.check(3, 1.0), TypeError, "^check: 3 is not"),
    ("check nothing", lambda: aj.check(aj.sgd(0.1), None), ValueError, "holds no arrays: None"),
    ("observe 3", lambda: aj.observe(3), TypeError, "^observe: 'tx' is 3, not"),
    ("skip 3", lambda: aj.skip_nonfinite(3), TypeError, "^skip_nonfinite: 'tx' is 3, not"),
    ("no probe", lambda: aj.probe(""), ValueError, "^probe: name is ''"),
    ("never", lambda: aj.observe(aj.sgd(0.1), every=0), ValueError, "^observe: every is 0"),
    (
        "part",
        lambda: aj.part(aj.sgd(0.1), "rate"),
        KeyError,
        "^part: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "swap",
        lambda: aj.swap(aj.sgd(0.1), "rate", aj.sign()),
        KeyError,
        "^swap: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "replace",
        lambda: aj.replace(aj.sgd(0.1), "rate", learning_rate=1),
        KeyError,
        "^replace: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    (
        "replace name",
        lambda: aj.replace(aj.sgd(0.1), "learning_rate", lr=1),
        TypeError,
        r"^scale_by_learning_rate: .*'lr'.*scale_by_learning_rate\(learning_rate\)",
    ),
    (
        "replace value",
        lambda: aj.replace(aj.sgd(0.1), "learning_rate", learning_rate=-1),
        ValueError,
        "^scale_by_learning_rate: learning_rate is -1",
    ),
    (
        "cosine warmup",
        lambda: aj.cosine(1.0, 10, warmup_steps=11),
        ValueError,
        "^cosine: warmup_steps is 11, and total_steps 10",
    ),
    (
        "wsd phases",
        lambda: aj.warmup_stable_decay(1.0, 10, warmup_steps=6, decay_steps=5),
        ValueError,
        r"^warmup_stable_decay: warmup_steps \+ decay_steps is 11, and total_steps 10",
    ),
    (
        "peak unknown",
        lambda: aj.adamw(lambda t: 0.1, coupling="independent"),
        ValueError,
        "^relative: <function.*does not know its peak.*cosine",
    ),
    ("accumulate", lambda: aj.accumulate(3, 2), TypeError, "^accumulate: 'tx' is 3, not"),
    ("delay", lambda: aj.delay(3), TypeError, "^delay: 'tx' is 3, not"),
    ("curvature", lambda: aj.curvature(None, 0.9), TypeError, "^curvature: 'estimator' is None"),
    ("schedule_free", lambda: aj.schedule_free(0.1, 0.1), TypeError, "^schedule_free: 'tx' is 0.1"),
    ("by_distance", lambda: aj.by_distance(0.1, 1.0, 0.9), TypeError, "^by_distance: 'tx' is 0.1"),
    ("basis", lambda: aj.precondition(SIGN, SIGN, basis=3), TypeError, "^precond.*'basis' is 3"),
    ("sophia", lambda: aj.sophia_h(0.1, estimator=3), TypeError, "^curvature: 'estimator' is 3"),
    ("muon", lambda: aj.muon(0.1, orthogonalizer=3), TypeError, "^chain: 'orthogonalize' is 3"),
    ("muon others", lambda: aj.muon(0.1, others=3), TypeError, "^routed: 'adamw' is 3, not"),
    ("muon scale", lambda: aj.muon(0.1, scale="torch"), ValueError, "^scale_by_shape: scale is 't"),
    ("route 3", lambda: aj.route([("a", 3)], SIGN), TypeError, "^routed: 'rule0' is 3, not"),
    ("route bare", lambda: aj.route([SIGN], SIGN), TypeError, "^route: rule 0 is sign"),
    ("route 4", lambda: aj.route([(1, 2, 3, 4)], SIGN), TypeError, "^route: rule 0 is .1, 2, 3, 4"),
    ("route dict", lambda: aj.route({"a": SIGN}, SIGN), TypeError, "^route: rules is {'a': sign"),
    ("route one", lambda: aj.route(SIGN, SIGN), TypeError, "^route: rules is sign"),
    ("route (", lambda: aj.route([("(", SIGN)], SIGN), ValueError, r"^route: '\(' is no regular"),
    (
        "route by 3",
        lambda: aj.route([(3, SIGN)], SIGN),
        TypeError,
        "^route: the matcher of 'rule0'",
    ),
    ("route None", lambda: aj.route([("a", SIGN)], None), TypeError, "^route: default is None"),
    ("kind", lambda: aj.transformation(consumes="frok"), ValueError, "consumes is 'frok'"),
    ("route dot", lambda: aj.route([("a.b", "a", SIGN)], SIGN), TypeError, "^routed: .*'a.b'.*dot"),
    (
        "route twice",
        lambda: aj.route([("a", "x", SIGN), ("a", "y", SIGN)], SIGN),
        ValueError,
        r"^route: two routes share a name among \['a', 'a', 'default'\]",
    ),
    (
        "route nothing",
        lambda: run(aj.route([("z$", SIGN)], SIGN)),
        ValueError,
        r"^route: the rule 'rule0' \('z\$'\) matches no parameter.* the paths are b, w\.$",
    ),
    (
        "muon nothing",
        lambda: aj.muon(0.1, matrices=lambda path, leaf: False).init(PARAMS),
        ValueError,
        "^route: the rule 'muon' .* matches no parameter.* the paths are b, w",
    ),
    (
        "muon ambiguous",
        lambda: aj.muon(0.1).init({"w": jnp.ones((2, 3, 4))}),
        ValueError,
        r"^muon: 'w' has shape \(2, 3, 4\), which may be.*Decide with matrices=",
    ),
    (
        "view",
        lambda: run(aj.orthogonalize()),
        ValueError,
        r"^orthogonalize: 'b' of shape \(3,\) has no matrix view.*Route it elsewhere",
    ),
    (
        "view of scales",
        lambda: run(aj.scale_by_shape()),
        ValueError,
        r"^scale_by_shape: 'b' of shape \(3,\) has no matrix view",
    ),
    (
        "coefficients",
        lambda: aj.orthogonalize("quintic"),
        ValueError,
        "^orthogonalize: coefficients is 'quintic'.*keller, polar_express, speedrun, dion",
    ),
    (
        "pairs",
        lambda: aj.orthogonalize(((1.5, -0.5),)),
        ValueError,
        r"^orthogonalize: coefficients are \(\(1.5, -0.5\),\).*triple",
    ),
    (
        "too few rows",
        lambda: aj.orthogonalize(((1.5, -0.5, 0.0),) * 2),
        ValueError,
        "^orthogonalize: steps is 5, but the table has 2 rows",
    ),
    (
        "scheduled name",
        lambda: aj.scheduled(aj.scale(1.0), rate=aj.constant(1.0)),
        TypeError,
        "^scheduled: scale has no 'rate'.*one of: factor",
    ),
    (
        "scheduled number",
        lambda: aj.scheduled(aj.scale(1.0), factor=2.0),
        TypeError,
        "^scheduled: scale has no 'factor' that 2.0 could set",
    ),
    (
        "scheduled path",
        lambda: aj.scheduled(aj.sgd(0.1), "rate", factor=aj.constant(1.0)),
        KeyError,
        "^part: .*'rate' in sgd.*one of: direction, learning_rate",
    ),
    ("scheduled 3", lambda: aj.scheduled(3, factor=three), TypeError, "^scheduled: 'tx' is 3, not"),
    (
        "scheduled slot",
        lambda: aj.scheduled(aj.muon(0.1), "muon", learning_rate=aj.constant(1.0)),
        TypeError,
        "^scheduled: chain has no 'learning_rate'.*one of: the parts inside it",
    ),
    (
        "scheduled inside",  # to reach into adamw is to open it, and b1 is gone
        lambda: aj.scheduled(INNER, "tx.direction.denominator.root", eps=aj.constant(0.1)),
        TypeError,
        r"^scheduled: chain has no 'b1' that constant\(0.8\) could set",
    ),
    (
        "swap under scheduled",
        lambda: aj.swap(INNER, "tx.direction", aj.sign()),
        TypeError,
        "^scheduled: chain has no 'b1'",
    ),
    (
        "no rows",
        lambda: aj.orthogonalize(3.0),
        ValueError,
        r"^orthogonalize: coefficients are 3.0\. Every row must be a triple",
    ),
    (
        "no row",
        lambda: aj.orthogonalize([1.0, 2.0, 3.0]),
        ValueError,
        r"^orthogonalize: coefficients are \[1.0, 2.0, 3.0\]\. Every row must be a triple",
    ),
    (
        "no peak",
        lambda: aj.adamw(aj.ahead(lambda t: 0.1), coupling="independent"),
        ValueError,
        "^relative: .* does not know its peak",
    ),
    (
        "leafwise extra",
        asking,
        TypeError,
        "^asking: its update takes 'value', and it is declared leafwise",
    ),
    (
        "array for a number",
        lambda: run(aj.sgd(jnp.array([0.1, 0.2])), {"w": jnp.ones(())}, {"w": jnp.ones(())}),
        ValueError,
        r"^sgd: the update of 'w' has shape \(2,\), its gradient \(\).*jax.vmap",
    ),
    (
        "distance",
        lambda: run(aj.distance_root()),
        ValueError,
        r"^distance_root: got no distance\. Put it inside by_distance",
    ),
)
def test_calls_and_wiring(call, exception, pattern):
    assert_refuses(call, exception, pattern)


# --- trees --------------------------------------------------------------------

ADAMW, ADAM = aj.adamw(0.1), aj.adam(0.1)
CHAIN = aj.chain(aj.clip(1.0), aj.adamw(0.1))


def step(tx, grads, params=PARAMS, made_for=PARAMS):
    return lambda: tx.update(grads, tx.init(made_for), params)


def without(name):
    return {key: value for key, value in GRADS.items() if key != name}


FLOATS = "Optimize floating-point"
EQUAL = "They must be equal; nothing is broadcast"


@pytest.mark.parametrize("how", ["eager", "jit"])
@cases(
    # gradients that do not match
    ("missing", step(ADAMW, without("b")), ValueError, "^adamw: .* differ first at 'b'"),
    ("missing last", step(CHAIN, without("w")), ValueError, "^chain: .* differ first at 'w'"),
    ("extra", step(ADAMW, GRADS | {"z": 1.0}), ValueError, "^adamw: .* differ first at 'z'"),
    (
        "nested",
        step(ADAM, {"l": {"a": 1.0}}, {"l": {"a": 1.0, "c": 2.0}}, {"l": {"a": 1.0, "c": 2.0}}),
        ValueError,
        "^adam: .* differ first at 'l/c'",
    ),
    ("list", step(ADAMW, list(GRADS.values())), ValueError, "^adamw: .* differ first at 'b'"),
    ("tuple or list", step(ADAM, [1.0], (1.0,), (1.0,)), ValueError, r"^adam: .* are PyTreeDef"),
    ("None", step(ADAMW, GRADS | {"b": None}), ValueError, "^adamw: .* differ first at 'b'"),
    ("all None", step(ADAMW, None), ValueError, "^adamw: .* differ first at 'b'"),
    # shapes that NumPy would broadcast
    (
        "column",
        step(ADAMW, GRADS | {"b": jnp.ones((3, 1))}),
        ValueError,
        rf"'b' .*\(3, 1\).*{EQUAL}",
    ),
    ("scalar", step(ADAMW, GRADS | {"b": jnp.ones(())}), ValueError, rf"'b' .*shape \(\).*{EQUAL}"),
    ("row", step(aj.sgd(1), GRADS | {"w": jnp.ones(3)}), ValueError, rf"'w' .*\(3,\).*{EQUAL}"),
    (
        "column, no params",
        step(ADAM, GRADS | {"b": jnp.ones((3, 1))}, None),
        ValueError,
        rf"^scale_by_momentum: .*\(3, 1\).*{EQUAL}",
    ),
    # a state that was made for other parameters
    ("missing, no params", step(ADAM, without("b"), None), ValueError, "state was made for"),
    ("extra, no params", step(ADAM, GRADS | {"z": 1.0}, None), ValueError, "state was made for"),
    ("old state", step(ADAM, without("b"), without("b")), ValueError, "state was made for"),
    ("old shape", step(ADAM, {"a": 1.0}, {"a": 1.0}, {"a": jnp.ones(2)}), ValueError, EQUAL),
    # leaves that are no floating-point arrays
    (
        "int gradient",
        step(ADAMW, GRADS | {"b": jnp.arange(3)}),
        ValueError,
        f"^adamw: the gradient of 'b' has dtype int32.*{FLOATS}",
    ),
    (
        "int gradient, no params",
        step(ADAM, GRADS | {"b": jnp.arange(3)}, None),
        ValueError,
        f"^adam: the gradient of 'b' has dtype int32.*{FLOATS}",
    ),
    (
        "int",
        lambda: ADAMW.init({"n": jnp.arange(3)}),
        ValueError,
        f"^adamw: .*'n'.*int32.*{FLOATS}",
    ),
    ("bool", lambda: ADAMW.init({"n": jnp.ones(3, bool)}), ValueError, f"'n' .*bool.*{FLOATS}"),
    ("python int", lambda: aj.sgd(1).init({"n": 3}), ValueError, f"^sgd: .*'n'.*int.*{FLOATS}"),
    ("text", lambda: CHAIN.init({"n": "x"}), ValueError, "^chain: parameter 'n' is 'x'.*arrays"),
    ("key", lambda: ADAM.init([jax.random.key(0)]), ValueError, r"^adam: parameter '0' .*key"),
    # decay without parameters
    ("adamw", step(ADAMW, GRADS, None), ValueError, "^add_decoupled_weight_decay: got no"),
    ("adam_l2", step(aj.adam_l2(0.1), GRADS, None), ValueError, "^add_l2_gradient: got no"),
    ("shrink", step(aj.shrink(0.1), GRADS, None), ValueError, "^shrink: got no .*Call update"),
    ("adan", step(aj.adan(0.1), GRADS, None), ValueError, "^proximal_decay: got no .*Call"),
    ("soap", step(aj.soap(0.1), GRADS, None), ValueError, "^shrink_after: got no .*Call update"),
    (
        "adafactor",
        step(aj.adafactor(0.1), GRADS, None),
        ValueError,
        "^scale_by_parameter_rms: got no .*Call update",
    ),
    ("prodigy", step(aj.prodigy(1.0), GRADS, None), ValueError, "^by_distance: got no .*Call"),
    (
        "schedule free",
        step(aj.schedule_free_adamw(0.1), GRADS, None),
        ValueError,
        "^schedule_free: got no .*Call update",
    ),
    ("sophia", step(aj.sophia_h(0.1), GRADS), ValueError, "^hutchinson: got no obj_fn.*obj_fn=l"),
    (
        "sophia g",
        step(aj.sophia_g(0.1), GRADS),
        ValueError,
        "^gauss_newton_bartlett: got no logits_fn.*logits_fn=lambda",
    ),
    (
        "state of others, mars",
        step(aj.mars(0.1), {"a": 1.0}, None, {"a": jnp.ones(2)}),
        ValueError,
        "^variance_reduction: an update has shape",
    ),
    (
        "masked decay",
        step(aj.adamw(0.1, mask={"b": True, "w": False}), GRADS, None),
        ValueError,
        "^add_decoupled_weight_decay: got no",
    ),
)
def test_trees(how, call, exception, pattern):
    assert_refuses(call if how == "eager" else jax.jit(call), exception, pattern)


def masked(mask):
    return lambda: aj.adamw(0.1, mask=mask).init(PARAMS)


@pytest.mark.parametrize("how", ["eager", "jit"])
@cases(
    ("missing", masked({"b": True}), ValueError, "the mask says nothing of 'w'"),
    ("extra", masked({"b": True, "w": True, "z": True}), ValueError, "the mask names 'z'"),
    ("deeper", masked({"b": True, "w": [True, True]}), ValueError, "nothing of 'w'"),
    ("list", masked([True, False]), ValueError, "the mask says nothing of 'b'"),
    ("text", masked("b"), ValueError, r"mask is 'b'"),
    ("ints", masked({"b": 1, "w": 0}), ValueError, "mask leaf 'b' is 1.*True or False"),
    ("floats", masked({"b": True, "w": 0.5}), ValueError, "mask leaf 'w' is 0.5"),
    ("function: missing", masked(lambda p: {"b": True}), ValueError, "says nothing of 'w'"),
    ("function: number", masked(lambda p: 3), ValueError, r"mask is 3"),
    (
        "function: arrays",
        masked(lambda p: jax.tree.map(lambda x: x > 0, p)),
        ValueError,
        "mask leaf 'b' is .*True or False",
    ),
)
def test_masks(how, call, exception, pattern):
    assert_refuses(call if how == "eager" else jax.jit(call), exception, f"^masked: .*{pattern}")


def test_masks_of_bad_leaves_are_refused_by_the_factory():
    assert_refuses(lambda: aj.adamw(0.1, mask={"b": "yes"}), ValueError, "^masked: mask leaf 'b'")


# --- what field.md tells of others --------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
def test_a_refused_step_cannot_ascend(make):
    # Optax: `learning_rate=None` silently ascends.  Every optimizer here goes down.
    tx = make(0.1)
    first, state = tx.update(1.0, tx.init(0.0), 0.0, **FUNCTIONS)
    second, _ = tx.update(1.0, state, 0.0, **FUNCTIONS)
    assert first <= 0 > second
    assert first < 0 or make in (aj.adopt, aj.soap)  # whose first update only takes measure


@pytest.mark.parametrize(
    "tx",
    [
        aj.adamw(0.1, b2=0.9, weight_decay=0.0),
        aj.adam(0.1, b2=0.9),
        aj.adam_l2(0.1, b2=0.9),
        aj.rmsprop(0.1),
    ],
    ids=repr,
)
def test_a_spike_does_not_freeze(tx):
    # Optax: g*g overflows, v is infinite and every later step 0.
    path = walk(tx, jnp.zeros(()), [jnp.array(1.0), jnp.array(1e20)] + [jnp.array(1.0)] * 1500)
    before, after = path[-2:]
    assert float(before - after) == pytest.approx(0.1, rel=1e-3)


def test_a_spike_leaves_adagrad_a_step():
    # its sum never forgets, but stays finite: the step is 0.1/√max instead of 0
    tx = aj.adagrad(0.1)
    _, state = tx.update(1e20, tx.init(0.0))
    update, _ = tx.update(1e10, state)
    assert update == pytest.approx(-0.1 * 1e10 / np.sqrt(np.finfo("float32").max), rel=1e-6)


@pytest.mark.parametrize("make", [aj.adamw, aj.adam, aj.rmsprop, aj.adagrad, aj.nesterov])
@pytest.mark.parametrize("gradient", [0.0, 1e-4, 1e3, -1e3, 6e4])
def test_float16(make, gradient):
    # Optax: a zero gradient gives NaN, 1e-4 gives inf and 1e3 gives 0.
    half, single = (
        make(0.1).update(x, make(0.1).init(x * 0), x * 0)[0]
        for x in (jnp.float16(gradient), jnp.float32(np.float16(gradient)))
    )
    assert half.dtype == "float16"
    assert half == single.astype("float16")
    assert (half == 0) == (gradient == 0)


def test_bfloat16_follows_float32():
    # Optax: v stays bfloat16 and never decays, 34 % off after 1,500 steps.
    rng = np.random.default_rng(0)
    size = np.where(np.arange(1500) < 300, 10.0, 1.0)  # v has something to forget
    grads = jnp.asarray(size * (1 + 0.1 * rng.normal(size=1500)), "bfloat16")

    def last(dtype):
        tx = aj.adam(0.1)
        one = lambda state, g: tx.update(g.astype(dtype), state)[::-1]
        state, updates = jax.lax.scan(one, tx.init(jnp.zeros((), dtype)), grads)
        assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
        assert updates.dtype == dtype
        return float(updates[-1])

    assert last("bfloat16") == pytest.approx(last("float32"), rel=2**-8)


@pytest.mark.parametrize("make", [aj.adamw, aj.adam_l2, aj.rmsprop, aj.adagrad, aj.momentum])
def test_derivatives_at_a_zero_gradient_are_finite(make):
    # Optax: the derivative of a root at 0 is infinite, times 0 is NaN.
    tx = make(0.1)
    step = lambda g, p: tx.update(g, tx.init(p), p)[0]
    assert np.isfinite(jax.grad(step, argnums=(0, 1))(0.0, 1.0)).all()


def test_strict_promotion_holds():
    assert jax.config.jax_numpy_dtype_promotion == "strict"  # from conftest: all tests run so
    for dtype in ("bfloat16", "complex64"):
        params = jnp.ones(2, dtype)
        for make in OPTIMIZERS:
            tx = make(jnp.float32(0.1))
            tx.update(params, tx.init(params), params, **FUNCTIONS)


# --- what others do well, and must not be lost --------------------------------


def test_counts_saturate():
    largest = jnp.iinfo("int32").max
    tx = aj.adamw(aj.cosine(0.1, 10))
    state = jax.tree.map(
        lambda x: jnp.full_like(x, largest) if x.dtype == "int32" else x, tx.init(PARAMS)
    )
    updates, state = tx.update(GRADS, state, PARAMS)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == "int32"]
    assert len(counts) == 3
    assert all(count == largest for count in counts)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_init_may_be_abstract():
    shapes = jax.eval_shape(ADAMW.init, PARAMS)
    for abstract in (shapes, ADAMW.init(PARAMS)):
        assert jax.tree.structure(abstract) == jax.tree.structure(shapes)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert jax.eval_shape(ADAMW.init, like) == shapes


def test_foreign_pieces_keep_their_own_errors():
    clip = aj.transformation(optax.clip)
    with pytest.raises(TypeError, match=r"^clip: missing a required argument"):
        clip()


FLAT, NAMED = aj.chain(SIGN, SIGN), aj.adamw(0.1)
MASKED, ROUTED = aj.masked(SIGN, True), aj.route([("all", "", SIGN)], ("rest", SIGN))


@pytest.mark.parametrize("how", ["eager", "jit"])
@pytest.mark.parametrize(
    ("tx", "state", "said"),
    [
        (NAMED, aj.sgd(0.1).init(PARAMS), "a dict of direction, learning_rate, not the states of"),
        (NAMED, FLAT.init(PARAMS), "a tuple of 2, not the states of direction, weight_decay"),
        (NAMED, None, "NoneType, not"),
        (NAMED, optax.EmptyState(), r"EmptyState\(\), not"),
        (FLAT, NAMED.init(PARAMS), "a dict of .*, not 2 states in order"),
        (FLAT, (), "a tuple of 0, not 2 states"),
        (MASKED, NAMED.init(PARAMS), "a dict of .*, not the states of tx: it belongs"),
        (MASKED, optax.EmptyState(), r"EmptyState\(\), not the states of tx"),
        (ROUTED, NAMED.init(PARAMS), "a dict of .*, not the states of all, rest: it belongs"),
        (aj.delay(FLAT), NAMED.init(PARAMS), "a dict of .*, not a TimedState: it belongs"),
        (aj.scheduled(FLAT), FLAT.init(PARAMS), "a tuple of 2, not a TimedState"),
        (aj.prodigy(1.0), NAMED.init(PARAMS), "a dict of .*, not a ByDistanceState"),
        (aj.schedule_free_adamw(0.1), None, "NoneType, not a ScheduleFreeState"),
    ],
    ids=lambda x: repr(x)[:30],
)
def test_the_state_of_another_optimizer(how, tx, state, said):
    step = lambda: tx.update(PARAMS, state, PARAMS)
    assert_refuses(step if how == "eager" else jax.jit(step), ValueError, f"the state is {said}")


MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
TAKE_AN_OPTIMIZER = {
    "cost": lambda tx: aj.cost(tx, PARAMS, platform="cpu"),
    "reset": lambda tx: aj.reset({}, tx=tx, params=PARAMS),
    "routes": lambda tx: aj.routes(tx, PARAMS),
    "sharding_report": lambda tx: aj.sharding_report(tx, PARAMS, MESH),
    "state_sharding": lambda tx: aj.state_sharding(tx, PARAMS, MESH),
    "transplant": lambda tx: aj.transplant({}, aj.identity(), tx, PARAMS),
}


@pytest.mark.parametrize("name", TAKE_AN_OPTIMIZER)
def test_what_is_no_optimizer(name):
    call = TAKE_AN_OPTIMIZER[name]
    assert_refuses(lambda: call("adamw"), TypeError, rf"^{name}: 'adamw' is not a gradient")
