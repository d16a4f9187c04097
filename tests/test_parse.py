"""`parse` is the inverse of `repr`, and refuses everything else with a pointer."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adamw_jax as aj
from adamw_jax.inspect import parse as parsing
from adamw_jax.inspect.parse import ParseError
from adamw_jax.inspect.periodic import factories

EXPRESSIONS = [
    *(factory(0.01) for factory in factories().values()),
    aj.swap(aj.adamw(3e-3), "weight_decay", aj.identity()),
    aj.adamw(aj.cosine(1e-3, 1000, warmup_steps=10), mask={"kernel": True, "bias": False}),
    aj.chain(aj.clip_by_global_norm(1.0), aj.lion(1e-4)),
    aj.muon(0.02, orthogonalizer=aj.orthogonalize(((2.0, -1.5, 0.5),), dtype="bfloat16")),
    aj.route([("bias$", aj.sgd(0.1))], default=("rest", aj.adamw(1e-3))),
    aj.scheduled(aj.scale(1.0), factor=aj.linear_warmup(1.0, 10)),
]


@pytest.mark.parametrize("tx", EXPRESSIONS, ids=lambda tx: tx.factory.__name__)
def test_it_undoes_repr(tx):
    assert aj.parse(repr(tx)) == tx
    assert aj.parse(repr(aj.expand(tx))) == aj.expand(tx)


def outcome(text):
    """What a text gives: a transformation or the one error there is."""
    try:
        return aj.parse(text)
    except ParseError as error:
        return error


def test_it_edits():
    text = (
        'replace(swap(adamw(3e-3), "weight_decay", identity()), "learning_rate", learning_rate=-0)'
    )
    edited = aj.swap(aj.adamw(3e-3), "weight_decay", aj.identity())
    assert aj.parse(text) == aj.replace(edited, "learning_rate", learning_rate=0.0)
    assert aj.parse("part(adam(1e-3), 'direction')") == aj.scale_by_adam()


REFUSED = {  # text: (what the message says, the character it points at)
    "adamw(1e-3).init": ("an attribute", 0),
    "adamw(1e-3, mask={**{}})": ("unpack", 17),
    "__import__('os').system('true')": ("only a name may be called", 0),
    "__import__('os')": ("'__import__' is not a public name", 0),
    "sgd(exec('1'))": ("'exec' is not a public name", 4),
    "sgd(0.1 + 0.1)": ("arithmetic", 4),
    "sgd(cosine(0.1, 9) ** 2)": ("arithmetic", 4),
    "sgd(0.1 * sgd(0.1))": ("arithmetic", 4),
    "sgd(cosine(0.1, 9) / 0)": ("over: b is 0. It must be a number other than 0", 4),
    "sgd(lambda t: t)": ("a lambda", 4),
    "chain(*[sgd(0.1)])": ("an unpacked argument", 6),
    "chain(**{})": ("unpack", 0),
    "chain(**sgd(0.1))": ("unpack", 0),
    "chain(**{1: sgd(0.1)})": ("unpack", 0),
    "chain(a=clip(1.0), **{'a': sgd(0.1)})": ("'a' is given twice", 19),
    "sgd(f'{1}')": ("a formatted string", 4),
    "sgd(b'1')": ("not a number, string", 4),
    "sgd(1j)": ("not a number, string", 4),
    "sgd(-'1')": ("only a number may have a sign", 4),
    "sgd(not 1)": ("only a number may have a sign", 4),
    "sgd(é)": ("'é' is not a public name", 4),
    "chain(é, sgd(0.1))": ("'é' is not a public name", 6),
    "masked(sgd(0.1), {0.5: True})": ("keys of a dict", 17),
    "sgd(-1.0)": ("learning_rate is -1.0", 0),
    "chain(sgd(0.1), adamw(1e-3, b1=1.0))": ("b1 is 1.0", 16),
    "sgd()": ("missing a required argument", 0),
    "swap(sgd(0.1), 'nothing', identity())": ("there is no 'nothing'", 0),
    "transformation(add)": ("does not make an expression", 0),
    "Transformation(add, {})": ("does not make an expression", 0),
    "orthogonalize(steps=1000000000)": ("steps is 1000000000", 0),
    "sgd(0.1, learning_rate=0.2)": ("multiple values", 0),
    "adamw(1e-3, b1=0.9, b1=0.8)": ("'b1' is given twice", 20),
    "chain(a=clip(1.0), a=sgd(0.1))": ("'a' is given twice", 19),
    "sgd(0.1": ("was never closed", 3),
    "sgd(0.1))": ("unmatched", 8),
    "": ("invalid syntax", 0),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_points_at_the_character(text):
    what, column = REFUSED[text]
    with pytest.raises(ParseError, match=f"^parse: .*{re.escape(what)}") as caught:
        aj.parse(text)
    *_, shown, caret = str(caught.value).split("\n")
    assert shown == f"  {text}"
    assert caret == " " * (column + 2) + "^"


@aj.transformation
def mine(rate):
    return aj.chain(aj.sign(), aj.scale(rate))


def halved(x, y):
    return (x + y) / 2


@aj.transformation
def sgd(rate):
    return aj.scale(rate)


def test_names_of_a_stranger():
    tx = aj.chain(mine(0.1), aj.join(halved, a=aj.sign(), b=aj.identity()))
    assert aj.parse(repr(tx), names={"mine": mine, "halved": halved}) == tx
    assert aj.parse("sgd(0.5)", {"sgd": sgd}) == sgd(0.5)  # a name of ours, and yours
    with pytest.raises(ParseError, match="'mine' is not a public name of adamw_jax"):
        aj.parse(repr(tx))
    with pytest.raises(ParseError, match=r"'halved' is not .* or among the names given"):
        aj.parse(repr(tx), names={"mine": mine})
    with pytest.raises(TypeError, match=r"parse: names holds 'mine': mine\(0.1\)\. Give"):
        aj.parse("mine(0.1)", names={"mine": mine(0.1)})


ODD = ["no-decay", "two words", "class", "None", "é", "'", "a/b", "{}"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_slots(name):
    for tx in (
        aj.chain(**{"first": aj.sign(), name: aj.scale(2.0), "last": aj.sgd(0.1)}),
        aj.route([(name, "bias$", aj.sgd(0.1))], aj.adamw(1e-3)),
        aj.expand(aj.route([(name, "bias$", aj.sgd(0.1))], aj.adamw(1e-3))),
    ):
        again = aj.parse(repr(tx))
        assert again == tx
        assert list(again.arguments) == list(tx.arguments)
        assert list(aj.parts(again)) == list(aj.parts(tx))


@pytest.mark.parametrize(
    "mask",
    [
        {"w": np.True_, "b": np.False_},
        {("a", 1): True, ("b", 0): False},
        [True, {"x": (np.False_,)}],
    ],
)
def test_masks(mask):
    tx = aj.adamw(1e-3, mask=mask)
    assert "np." not in repr(tx)
    assert aj.parse(repr(tx)) == tx
    assert hash(aj.parse(repr(tx))) == hash(tx)


def test_the_line_is_shown():
    with pytest.raises(ParseError) as caught:
        aj.parse("chain(\n    sgd(0.1),\n    sdg(0.1),\n)")
    assert str(caught.value).endswith("\n      sdg(0.1),\n      ^")


@pytest.mark.parametrize("text", ["  sgd(0.1)", "\n    sgd(\n        0.1)\n  ", "\tsgd(0.1)\t"])
def test_blanks_around_an_expression_are_nothing(text):
    assert aj.parse(text) == aj.sgd(0.1)


def test_a_long_line_is_cut_around_the_character():
    with pytest.raises(ParseError) as caught:
        aj.parse(f"chain({'identity(), ' * 300}sdg(0.1), {'identity(), ' * 300})")
    *_, shown, caret = str(caught.value).split("\n")
    assert len(shown) <= parsing.WINDOW + 2
    assert shown[caret.index("^") :].startswith("sdg")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("adamw", "not a transformation"),
        ("3", "not a transformation"),
        ("cosine(1e-3, 100)", "not a transformation"),
        ("9" * 5000, "4300 digits"),
        ("(" * 5000 + ")" * 5000, "parenthes"),
        ("chain(" * 150 + "sgd(0.1)" + ")" * 150, "parenthes|nested"),
        ("-" * 19_000 + "1", "nested|cannot read"),
        ("x" * (parsing.LONGEST + 1), "characters"),
        ("sgd(\0)", "null byte"),
        ("'\ud800'", "cannot read|surrogate|not a transformation"),
    ],
)
def test_hostile_texts_end_in_one_error(text, why):
    # nested calls beyond Python's own limit may be legal: then the value must be right
    value = outcome(text)
    assert re.search(why, str(value)) or repr(value) == text


def test_only_text_is_parsed():
    with pytest.raises(TypeError, match="parse: got 3"):
        aj.parse(3)


SIGNS = ["(", ")", "[", "]", "{", "}", ",", "=", ".", ":", "*", "**", "-", " ", "\n", "#", "\\"]
WORDS = st.sampled_from(
    [
        *aj.__all__,
        *SIGNS,
        "import",
        "lambda",
        "__class__",
        "1e-3",
        "'a'",
        "None",
        "0.1",
        "10",
        "True",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(WORDS, max_size=12).map("".join)))
@example("sgd(0.1)#comment")
@example("\x0c1")
@example("\r")
@example("(\r1+")
def test_any_text_is_an_expression_or_a_parse_error(text):
    value = outcome(text)
    assert isinstance(value, aj.Transformation) or str(value).startswith("parse: ")
