"""The report that `describe` prints, as text of 80 columns and as HTML."""

import html as markup
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax.core.expression import is_node
from adamw_jax.core.flow import slots
from adamw_jax.core.transformation import Transformation

WIDTH = 80


def text(description: Any) -> str:
    """The report in lines of at most 80 columns."""
    sections = [tree(description.expression), _aligned(*table(description)), _sums(description)]
    if description.warnings:
        wrap = lambda warning: textwrap.fill(warning, WIDTH, initial_indent="! ",
                                             subsequent_indent="  ")  # fmt: skip
        sections.append([line for w in description.warnings for line in wrap(w).splitlines()])
    return "\n\n".join("\n".join(cut(line) for line in lines) for lines in sections)


def cut(line: str, width: int = WIDTH) -> str:
    """A line, with an ellipsis in its middle if it is too long."""
    if len(line) <= width:
        return line
    keep = width - 1
    return line[: keep - keep // 2] + "…" + line[len(line) - keep // 2 :]


def tree(tx: Transformation, name: str = "", depth: int = 0) -> list[str]:
    """The expression, one line a part."""
    lines = ["  " * depth + (f"{name}: " if name else "") + _label(tx)]
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]
    for inner, piece in slots(tx).items():
        lines += tree(piece, inner, depth + 1)
    return lines


def _label(tx: Transformation) -> str:
    """A part without the parts inside it."""
    if tx.is_foreign:
        return repr(tx)
    plain = {name: value for name, value in tx.arguments.items() if not _holds_parts(value)}
    return repr(Transformation(tx.factory, plain)).removesuffix("()")


def _holds_parts(value: Any) -> bool:
    return any(isinstance(x, Transformation) for x in jax.tree.leaves(value, is_leaf=is_node))


def table(description: Any) -> tuple[list[str], list[list[str]]]:
    """The headers of the table and its rows, one for all leaves that are alike.

    The learning rate is relative; where a route has several, the sums cannot tell whose is
    which, and it is there as it is, too."""
    rates = {(leaf.route, leaf.learning_rate) for leaf in description.leaves}
    differ = len(rates) > len({route for route, _ in rates})
    groups: dict[tuple[str, ...], list[str]] = {}
    for leaf in description.leaves:
        alike = re.sub(r"\d+", "0", leaf.path), *_cells(leaf, differ)
        groups.setdefault(alike, []).append(leaf.path)
    rate = ["rate"] if differ else []
    headers = ["leaf", "shape", "dtype", "route", "decay", "lr", *rate, "state", "bytes"]
    return headers, [[_together(paths), *cells] for (_, *cells), paths in groups.items()]


def _together(paths: list[str]) -> str:
    """Paths that differ in numbers alone as one: `layers/0-11/kernel (12)`."""
    if len(paths) == 1:
        return paths[0]
    pieces = zip(*(re.split(r"(\d+)", path) for path in paths), strict=True)
    return "".join(map(_span, pieces)) + f" ({len(paths)})"


def _span(found: tuple[str, ...]) -> str:
    """The same piece of several paths: itself, the first number and the last, or `*`."""
    if len(set(found)) == 1:
        return found[0]
    numbers = {int(x) for x in found}
    first, last = min(numbers), max(numbers)
    return f"{first}-{last}" if len(numbers) == last - first + 1 else "*"


def _cells(leaf: Any, rate: bool) -> list[str]:
    """What the table says of a leaf; with its own `rate`, where they differ."""
    unknown = "learning_rate" in leaf.unknown
    held = Counter(_short(h.dtype) for h in leaf.state)
    return [
        "x".join(map(str, leaf.shape)) or "scalar",
        _short(leaf.dtype),
        leaf.route,
        "?" if "weight_decay" in leaf.unknown else _number(leaf.weight_decay, leaf.decayed),
        "?" if unknown else "-" if leaf.multiplier is None else f"×{leaf.multiplier:.3g}",
        *(["?" if unknown else _number(leaf.learning_rate, True)] if rate else []),
        " ".join(f"{n}·{dtype}" if n > 1 else dtype for dtype, n in held.items()) or "-",
        f"{leaf.bytes / max(leaf.size, 1):.1f}",
    ]


def _short(dtype: Any) -> str:
    """f32 for float32, bf16 for bfloat16."""
    return re.sub(r"(bf|[a-z])[a-z]*", r"\1", dtype.name, count=1)


def _number(value: Any, decayed: bool) -> str:
    if value is None or not decayed:
        return "-"
    return f"{value:.3g}" if isinstance(value, float | int) else f"array{np.shape(value)}"


def _aligned(headers: Sequence[str], rows: list[list[str]]) -> list[str]:
    """A table; where it is too wide its first column, the paths, gives way."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths[1:]) <= WIDTH else " "
    spare = WIDTH - sum(widths[1:]) - len(gap) * len(widths[1:])
    widths[0] = min(widths[0], max(spare, 16))
    line = lambda row: gap.join(
        cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    return [line(headers), *map(line, rows)]


def _sums(description: Any) -> list[str]:
    totals = description.totals
    lines = [
        f"{totals.parameters:,} parameters, {description.bytes_per_parameter:.1f} bytes of state "
        f"each ({totals.state_bytes:,} in all,",
        f"{totals.overhead_bytes:,} more for counts and the like):",
    ]
    held = {h.path: h for leaf in description.leaves for h in leaf.state}
    for path, size in totals.by_piece.items():
        lines.append(f"  {size:5.1f}  {path or '(whole)'}, {held[path].dtype.name}")
    for route, count in totals.by_route.items():
        rates = {leaf.learning_rate for leaf in description.leaves if leaf.route == route}
        said = ", ".join(f"{rate:g}" for rate in sorted(r for r in rates if r is not None))
        rate = f", learning rate {said}" if said else ""
        lines.append(f"route {route}: {count:,} parameters{rate}")
    return lines


def html(description: Any) -> str:
    """The report for a notebook."""
    escape = lambda lines: markup.escape("\n".join(lines))
    row = lambda tag, values: "<tr>" + "".join(
        f"<{tag}>{markup.escape(value)}</{tag}>" for value in values
    ) + "</tr>"  # fmt: skip
    headers, leaves = table(description)
    rows = "".join(row("td", cells) for cells in leaves)
    warnings = "".join(f"<li>{markup.escape(warning)}</li>" for warning in description.warnings)
    return (
        f"<details open><summary>{escape([_label(description.expression)])}</summary>"
        f"<pre>{escape(tree(description.expression))}</pre></details>"
        f"<table><thead>{row('th', headers)}</thead><tbody>{rows}</tbody></table>"
        f"<pre>{escape(_sums(description))}</pre>"
        f"<ul>{warnings}</ul>"
    )
