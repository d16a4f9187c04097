"""Equations: the update rule of an expression, as a paper would print it.

What is printed is what is computed: flows and formulas run on symbols, see
`adamw_jax.core.flow` and `adamw_jax.core.saying`.  A piece that is more than
elementwise declares what it does, `@transformation(equation=...)`, as Python text.
In it

* `u` is what the piece receives, or the names of the branches if that is a fork;
* hyperparameters are called as in the signature, and a schedule stands for its
  value at this update; `theta` is the parameter and `t` = 1, 2, ... the update;
* a name that is assigned is state; it begins at 0, or as `if t == 1:` says.
  `u_hat` and `m_old` are named after what `u` and `m` are called in the end;
* a part inside the piece is called like a function, `tx(u)`, with keywords for
  what it shall see in place of `t` or `theta`, or besides them;
* the last statement is the value passed on.

Any other function is printed by its name.  A piece that says nothing appears as a
function of what it receives.
"""

import ast
import copy
import json
from collections.abc import Iterator
from typing import NamedTuple

import optax

from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.inspect.equations.notation import (
    condition_to_latex,
    escaped,
    name_to_latex,
    to_latex,
)
from adamw_jax.inspect.equations.simplify import Line, flatten_products, names_in
from adamw_jax.inspect.equations.walk import Walk


def equations(
    tx: optax.GradientTransformation, format: str = "latex", *, symbols: bool | None = None
) -> str:
    r"""The update rule of any expression, as LaTeX or as Python.

    Args:
      tx: an optimizer or any transformation.
      format: "latex" for an `aligned` block, "text" for Python assignments, to
        be run in this order at every update, with all state 0 before the first.
      symbols: True for the names of hyperparameters, False for their values,
        None for names in LaTeX and values in Python.  Terms that are 0 and
        factors that are 1 vanish either way; numbers that the expression sets
        itself, and counts, stay numbers.

    In Python `g` is the gradient, `theta` the parameter, `t` = 1, 2, ... the
    number of the update and `mask` True where a leaf is not masked; functions
    are NumPy's, or named after the piece.  Where leaves are routed, every route
    has a block of its own.  State that has no effect on θ is there, and says so.

    Raises:
      ValueError: the format is another, or a piece declares what is no equation.

    Example:
      >>> from adamw_jax import equations, heavy_ball
      >>> print(equations(heavy_ball(0.1), "text"))
      m = 0.9*m + g
      theta = theta - 0.1*m
      >>> print(equations(heavy_ball(0.1)))
      \begin{aligned}
      m_t &= \mu m_{t-1} + g_t \\
      \theta_t &= \theta_{t-1} - \eta m_t
      \end{aligned}
    """
    if format not in ("latex", "text"):
        raise ValueError(f'equations: format is {format!r}. It must be "latex" or "text".')
    blocks = list(_blocks(lift(tx, "equations"), format == "latex" if symbols is None else symbols))
    if format == "text":
        return "\n".join(map(_text, blocks))
    rows = [row for block in blocks for row in _rows(block)]
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def _repr_latex_(self: Transformation) -> str:
    return f"$${equations(self)}$$"


# For notebooks.  Given from here, since expressions know nothing of what looks at them.
setattr(Transformation, "_repr_latex_", _repr_latex_)  # noqa: B010


class _Block(NamedTuple):
    """The lines of one route, and the names in them that do not change with time."""

    route: str
    lines: list[Line]
    fixed: set[str]


def _blocks(tx: Transformation, symbols: bool) -> Iterator[_Block]:
    """Every route is walked as if it were alone."""
    queue: list[tuple[str, ...]] = [()]
    while queue:
        walk = Walk(symbols, queue.pop(0))
        lines = walk.run(tx)
        queue = walk.untaken + queue
        used = {n for line in lines for n in (line.name, *names_in(line.value, line.condition))}
        names = walk.variables.resolve(used)
        renamed = [
            line._replace(
                name=names.get(line.name, line.name),
                value=_renamed(line.value, names),
                condition=line.condition and _renamed(line.condition, names),
            )
            for line in lines
        ]
        fixed = {names[uid] for uid in walk.fixed if uid in names}
        yield _Block(".".join(walk.route), renamed, fixed)


def _renamed(node: ast.expr, names: dict[str, str]) -> ast.expr:
    node = copy.deepcopy(node)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            inner.id = names.get(inner.id, inner.id)
    return node


def _text(block: _Block) -> str:
    lines = []
    for name, value, condition, *_, idle in block.lines:
        test = f"if {_code(condition)}: " if condition else ""
        note = "  # has no effect" if idle else ""
        lines.append(f"{test}{name} = {_code(flatten_products(value))}{note}")
    if block.route:
        route = json.dumps(block.route, ensure_ascii=False)
        lines = [f"if route == {route}:", *(f"    {line}" for line in lines)]
    return "\n".join(lines)


def _code(node: ast.expr) -> str:
    return ast.unparse(node).replace(" * ", "*").replace(" / ", "/").replace(" ** ", "**")


def _rows(block: _Block) -> Iterator[str]:
    """The rows of the LaTeX block."""
    if block.route:
        yield rf"&\text{{{escaped(block.route)}:}}"
    clock = _Clock(block)
    for i, (name, value, condition, initial, _, idle) in enumerate(block.lines):
        if i in clock.copies.values():
            continue
        here = lambda x, i=i, initial=initial: clock.written(x, i, initial)
        left, right = here(name) if initial else clock.written(name, i + 1), to_latex(value, here)
        if left == right:
            continue
        if condition and not initial:
            test = condition_to_latex(condition, here)
            if clock.remembered(name, i):
                right = (
                    rf"\begin{{cases}} {right} & \text{{if }} {test} \\ "
                    rf"{here(name)} & \text{{otherwise}} \end{{cases}}"
                )
            else:
                right += rf" \qquad \text{{if }} {test}"
        yield f"{left} &= {right}" + r" \qquad \text{(has no effect)}" * idle


class _Clock:
    """Which time a name refers to: that of the last update before its line, this one after.

    A line `m_old = m` or `g_prev = g` only keeps a value; in LaTeX the index
    says as much, so the line is left out and the name written as what it copies."""

    def __init__(self, block: _Block):
        self.lines = block.lines
        self.last = {line.name: i for i, line in enumerate(self.lines) if not line.initial}
        begun = {line.name for line in self.lines if line.initial}
        self.copies: dict[str, int] = {}
        self.timeless = set(block.fixed)
        for i, (name, value, condition, initial, *_) in enumerate(self.lines):
            needs = names_in(value, condition)
            if name == "theta" or initial:
                continue
            if name not in begun and not needs & ({"g", "t", "theta"} | set(self.last)):
                self.timeless.add(name)
                del self.last[name]
            elif isinstance(value, ast.Name) and not condition and name not in begun:
                self.copies[name] = i

    def offset(self, name: str, position: int) -> int | None:
        """0 for this update, -1 for the one before; None for what has no time."""
        if name == "g":
            return 0
        if name not in self.last or name in self.timeless:
            return None
        return 0 if position > self.last[name] else -1

    def remembered(self, name: str, position: int) -> bool:
        """Whether what a name was before an update matters to it."""
        if name == "theta":
            return True
        early = self.lines[: position + 1]
        return any(name in names_in(line.value, line.condition) for line in early)

    def written(self, name: str, position: int, initial: bool = False, shift: int = 0) -> str:
        """The LaTeX of a name that stands in line `position`."""
        offset = self.offset(name, position)
        if name in self.copies:
            copied = self.lines[self.copies[name]].value.id  # type: ignore[attr-defined]
            return self.written(copied, self.copies[name], shift=shift + (offset or 0))
        hyper = offset is None and name not in {line.name for line in self.lines}
        if offset is None:
            return name_to_latex(name, hyperparameter=hyper)
        name, ahead = name.removesuffix("_next"), name.endswith("_next")
        moment = offset + shift + ahead
        index = "0" if initial else f"t{moment:+d}" if moment else "t"
        return name_to_latex(name, index)
