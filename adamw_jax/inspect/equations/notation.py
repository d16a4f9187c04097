"""Notation: Python expressions as LaTeX.

A small printer for the expressions that `equations` makes.  It knows
arithmetic, comparisons, `x if c else y`, transposes and calls; anything else
is set as code.
"""

import ast
import re
from collections.abc import Callable

GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda"),
    *("mu", "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"),
)


# What hyperparameters are called in papers.
HYPERPARAMETERS = {
    "learning_rate": r"\eta",
    "peak": r"\eta",
    "b1": r"\beta_1",
    "b2": r"\beta_2",
    "b3": r"\beta_3",
    "decay": r"\beta",
    "momentum": r"\mu",
    "eps": r"\epsilon",
    "eps_root": r"\epsilon_{\mathrm{root}}",
    "weight_decay": r"\lambda",
    "factor": "c",
    "max_abs": "c",
    "max_norm": "c",
    "threshold": r"\tau",
    "power": "p",
    "growth": r"\kappa",
    "mask": "M",
    "d0": "d_0",
    "minimum": r"\epsilon_\theta",
    "minimum_scale": r"\epsilon_\theta",
    "fan_in": r"n_{\mathrm{in}}",
    "fan_out": r"n_{\mathrm{out}}",
}


_ACCENTS = ("hat", "tilde", "bar")


_ENDINGS = {"max": r"\max", "inf": r"\infty"}


_SUM, _PRODUCT, _POWER, _ATOM = range(4)  # how tightly the outermost operation binds


def name_to_latex(name: str, index: str = "", *, hyperparameter: bool = False) -> str:
    r"""A Python name as a letter with accents and subscripts.

    Example:
      >>> name_to_latex("m_hat", "t")
      '\\hat{m}_t'
      >>> name_to_latex("v_max", "t-1")
      'v_{\\max,t-1}'
    """
    if hyperparameter and name in HYPERPARAMETERS:
        return HYPERPARAMETERS[name]
    head, *rest = name.split("_")
    letter = rf"\{head}" if head in GREEK else head if len(head) == 1 else _roman(head)
    stem, _, number = name.rpartition("_")
    if hyperparameter and stem in HYPERPARAMETERS:  # one of several
        letter, _, below = HYPERPARAMETERS[stem].partition("_")
        return _subscripted(letter, ",".join(filter(None, [below.strip("{}"), _roman(number)])))
    elif hyperparameter and len(head) > 1 and head not in GREEK:
        return _roman(name)
    elif match := re.fullmatch(r"([A-Za-z])(\d+)", head):
        letter, rest = match[1], [match[2], *rest]
    for accent in (x for x in rest if x in _ACCENTS):
        letter = rf"\{accent}{{{letter}}}"
    subscripts = [_ENDINGS.get(x, x if len(x) < 2 else _roman(x)) for x in rest]
    subscripts = [s for s, x in zip(subscripts, rest, strict=True) if x and x not in _ACCENTS]
    return _subscripted(letter, ",".join(filter(None, [*subscripts, index])))


def _subscripted(letter: str, below: str) -> str:
    if not below:
        return letter
    return f"{letter}_{below}" if len(below) == 1 else f"{letter}_{{{below}}}"


def _roman(word: str) -> str:
    return word if word.isdigit() else rf"\mathrm{{{escaped(word)}}}"


def escaped(text: str) -> str:
    """Words for `\\text{...}`, what LaTeX reads as a command written out."""
    return re.sub(r"([_%&#${}])", r"\\\1", text)


def number_to_latex(value: float) -> str:
    r"""A number; small and large ones with a power of ten.

    Example:
      >>> number_to_latex(3e-4), number_to_latex(0.9)
      ('3 \\cdot 10^{-4}', '0.9')
    """
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return repr(value)
    mantissa, _, exponent = f"{value:.11e}".partition("e")
    mantissa = repr(float(mantissa)).removesuffix(".0")
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def to_latex(node: ast.expr, name: Callable[[str], str]) -> str:
    """An expression as LaTeX.

    Args:
      node: the expression.
      name: how a name is written.
    """
    return _Printer(name).expression(node)


def condition_to_latex(node: ast.expr, name: Callable[[str], str]) -> str:
    """A test as LaTeX, without the brackets that make it 1 or 0."""
    return _Printer(name).test(node)


_SIGNS = {
    ast.Eq: "=",
    ast.NotEq: r"\ne",
    ast.Lt: "<",
    ast.LtE: r"\le",
    ast.Gt: ">",
    ast.GtE: r"\ge",
}


_CALLS: dict[str, Callable[..., str]] = {
    "sqrt": lambda x: rf"\sqrt{{{x}}}",
    "abs": lambda x: rf"\left| {x} \right|",
    "norm": lambda x: rf"\left\| {x} \right\|",
    "global_norm": lambda x: rf"\left\| {x} \right\|_{{\mathrm{{global}}}}",
    "norm_1": lambda x: rf"\left\| {x} \right\|_1",
    "dot": lambda x, y: rf"\left\langle {x}, {y} \right\rangle",
    "maximum": lambda *xs: _applied(r"\max", xs),
    "minimum": lambda *xs: _applied(r"\min", xs),
    "exp": lambda x: _applied(r"\exp", (x,)),
    "log": lambda x: _applied(r"\log", (x,)),
    "eye": lambda x: "I",
}


def _enclosed(text: str) -> str:
    tall = any(part in text for part in (r"\frac", r"\begin", r"\left", r"\sqrt"))
    return rf"\left( {text} \right)" if tall else f"({text})"


def _applied(function: str, arguments) -> str:
    return function + _enclosed(", ".join(arguments))


class _Printer:
    def __init__(self, name: Callable[[str], str]):
        self.name = name

    def expression(self, node: ast.expr, least: int = _SUM) -> str:
        """LaTeX in parentheses where it binds less than `least`."""
        method = getattr(self, f"_{type(node).__name__.lower()}", self._code)
        text, binds = method(node)
        return _enclosed(text) if binds < least else text

    def test(self, node: ast.expr) -> str:
        """A condition, without the brackets that make a number of it."""
        if isinstance(node, ast.Compare):
            text = self.expression(node.left)
            for sign, side in zip(node.ops, node.comparators, strict=True):
                text += f" {_SIGNS[type(sign)]} {self.expression(side)}"
            return text
        if isinstance(node, ast.BoolOp):
            word = r"\land" if isinstance(node.op, ast.And) else r"\lor"
            return f" {word} ".join(map(self.test, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return rf"\lnot {_enclosed(self.test(node.operand))}"
        return self.expression(node)

    def _name(self, node):
        return self.name(node.id), _ATOM

    def _constant(self, node):
        if type(node.value) not in (int, float):
            return self._code(node)
        text = number_to_latex(node.value)
        return text, _PRODUCT if "cdot" in text else _ATOM

    def _binop(self, node):
        left, right = node.left, node.right
        operator = type(node.op)
        if operator in (ast.Add, ast.Sub):
            sign = "+" if operator is ast.Add else "-"
            # the right side of a sum needs parentheses after a minus only
            least = _SUM if operator is ast.Add else _PRODUCT
            return f"{self.expression(left)} {sign} {self._unsigned(right, least)}", _SUM
        if operator is ast.Div:
            return rf"\frac{{{self.expression(left)}}}{{{self.expression(right)}}}", _POWER - 1
        if operator is ast.Pow:
            return self._power(left, right)
        if operator is ast.Mod:
            over = self.expression(left, _PRODUCT)
            return rf"{over} \bmod {self.expression(right, _PRODUCT)}", _PRODUCT
        if operator not in (ast.Mult, ast.MatMult):
            return self._code(node)
        first, second = self.expression(left, _PRODUCT), self._unsigned(right, _PRODUCT)
        sign = r" \cdot " if second[0].isdigit() else " "
        return first + sign + second, _PRODUCT

    def _unsigned(self, node, least):
        signed = isinstance(node, ast.UnaryOp)
        return self.expression(node, _POWER if signed else least)

    def _power(self, base, exponent):
        if isinstance(exponent, ast.Constant) and exponent.value == 0.5:
            return rf"\sqrt{{{self.expression(base)}}}", _ATOM
        raised = self.expression(exponent)
        raised = raised if len(raised) == 1 else f"{{{raised}}}"
        return f"{self.expression(base, _ATOM)}^{raised}", _POWER

    def _unaryop(self, node):
        if not isinstance(node.op, ast.USub):
            return f"[{self.test(node)}]", _ATOM
        return f"-{self.expression(node.operand, _PRODUCT)}", _SUM

    def _compare(self, node):
        return f"[{self.test(node)}]", _ATOM  # Iverson's brackets

    _boolop = _compare

    def _ifexp(self, node):
        rows = []
        while isinstance(node, ast.IfExp):
            rows.append(rf"{self.expression(node.body)} & \text{{if }} {self.test(node.test)}")
            node = node.orelse
        rows.append(rf"{self.expression(node)} & \text{{otherwise}}")
        inside = r" \\ ".join(rows)
        return rf"\begin{{cases}} {inside} \end{{cases}}", _ATOM

    def _attribute(self, node):
        if node.attr != "T":
            return self._code(node)
        return rf"{self.expression(node.value, _ATOM)}^{{\top}}", _POWER

    def _call(self, node):
        arguments = [self.expression(x) for x in node.args]
        arguments += [f"{_roman(k.arg)}={self.expression(k.value)}" for k in node.keywords]
        known = isinstance(node.func, ast.Name) and node.func.id in _CALLS
        if known:
            try:
                return _CALLS[node.func.id](*arguments), _ATOM
            except TypeError:  # another number of arguments
                pass
        return _applied(self._function(node.func), arguments), _ATOM

    def _function(self, node):
        if not isinstance(node, ast.Name):
            return self.expression(node)
        written = self.name(node.id)
        word = written.startswith(r"\mathrm")
        return rf"\operatorname{{{escaped(node.id)}}}" if word else written

    def _code(self, node):
        return rf"\texttt{{{escaped(ast.unparse(node))}}}", _ATOM
