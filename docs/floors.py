"""Draws the floors of the package from its imports: `python docs/floors.py` writes docs/floors.svg.

A room is a folder of `adamw_jax`, or a file beside them.  It stands on the floor above
the highest room that it imports.  `make readme` draws the picture again, and
tests/test_docs.py tells when that is due.
"""

import ast
import functools
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "adamw_jax"
PICTURE = DOCS / "floors.svg"

WIDTH, GAP, SHAFT, MARGIN = 960, 16, 34, 14  # pixels; a shaft is what lies between two floors
LETTER, LINE = 7.3, 18  # of 12 pixel monospace


class Room(NamedTuple):
    """A folder or a file of the package: its name, what it holds, and what it imports."""

    name: str
    modules: tuple[str, ...]
    says: str
    imports: frozenset[str]


def rooms(package: Path = PACKAGE) -> dict[str, Room]:
    """Every room by name."""
    names = [p.name for p in sorted(package.iterdir()) if (p / "__init__.py").exists()]
    names += [p.name for p in sorted(package.glob("*.py"))]
    return {name: _room(package, name, names) for name in names}


def _room(package: Path, name: str, names: list[str]) -> Room:
    place = package / name
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    found = {_room_of(module, names) for file in files for module in _imported(file)}
    inside = sorted(place.iterdir()) if place.is_dir() else []
    modules = [f"{p.name}/" for p in inside if (p / "__init__.py").exists()]
    modules += [p.stem for p in inside if p.suffix == ".py" and not p.stem.startswith("__")]
    first = place / "__init__.py" if place.is_dir() else place
    doc = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or ""
    return Room(name, tuple(modules), doc.split("\n")[0], frozenset(found - {name}))


def _imported(file: Path) -> Iterator[str]:
    """Dotted names of this package that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == "adamw_jax")


def _room_of(module: str, names: list[str]) -> str:
    word = f"{module}.".split(".")[1]
    return next((x for x in (word, f"{word}.py") if x in names), "__init__.py")


def floors(house: dict[str, Room]) -> list[list[Room]]:
    """The rooms floor by floor, the lowest first; on a floor each near what it imports."""

    @functools.cache
    def height(name: str) -> int:
        return 1 + max(map(height, house[name].imports), default=-1)

    place: dict[str, float] = {}
    found: list[list[Room]] = []
    for level in range(max(map(height, house)) + 1):
        here = sorted((house[name] for name in house if height(name) == level), key=_by(place))
        place |= {room.name: (i + 0.5) / len(here) for i, room in enumerate(here)}
        found.append(here)
    return found


def _by(place: dict[str, float]):
    middle = lambda names: sum(place[name] for name in names) / max(len(names), 1)
    return lambda room: (middle(room.imports - {"core"}), room.name)


def steps(house: dict[str, Room]) -> list[tuple[str, str]]:
    """Who imports whom, without what follows from the others."""

    @functools.cache
    def below(name: str) -> frozenset[str]:
        own = house[name].imports
        return own.union(*map(below, own))

    return [
        (name, other)
        for name, room in house.items()
        for other in sorted(room.imports)
        if not any(other in below(between) for between in room.imports)
    ]


def svg() -> str:
    """The picture."""
    house = rooms()
    boxes, height = _boxes(floors(house))
    style = (
        "text { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; "
        "fill: #24292f } .name { font-weight: bold; font-size: 14px } .says { fill: #57606a }"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}">'
    arrow = '<marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
    lines = [
        head,
        f"<style>{style}</style>",
        f'<defs>{arrow}<path d="M0,0 L9,4 L0,8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>',
    ]
    for name, (x, y, width, tall) in boxes.items():
        lines += _drawn(house[name], x, y, width, tall)
    for upper, lower in steps(house):
        lines.append(_arrow(boxes[upper], boxes[lower]))
    return "\n".join([*lines, "</svg>", ""])


def _boxes(storeys: list[list[Room]]) -> tuple[dict[str, tuple[float, ...]], float]:
    """x, y, width and height of every room, and the height of the house."""
    boxes, y = {}, float(MARGIN)
    for storey in reversed(storeys):
        weights = [max(len(_words(room)), 70) for room in storey]
        free = WIDTH - 2 * MARGIN - GAP * (len(storey) - 1)
        widths = [free * weight / sum(weights) for weight in weights]
        tall = max(len(_lines(r, w)) for r, w in zip(storey, widths, strict=True)) * LINE + 16
        x = float(MARGIN)
        for room, width in zip(storey, widths, strict=True):
            boxes[room.name] = x, y, width, tall
            x += width + GAP
        y += tall + SHAFT
    return boxes, y - SHAFT + MARGIN


def _words(room: Room) -> str:
    return " ".join(room.modules)


def _lines(room: Room, width: float) -> list[tuple[str, str]]:
    """The lines of text in a room of some width, each with its style."""
    letters = int((width - 24) / LETTER)
    name = room.name if room.name.endswith(".py") else f"{room.name}/"
    said = [("says", line) for line in textwrap.wrap(room.says, letters)]
    listed = textwrap.wrap(_words(room), letters, break_on_hyphens=False)
    return [("name", name), *said, *(("modules", line) for line in listed)]


def _drawn(room: Room, x: float, y: float, width: float, tall: float) -> list[str]:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}"'
    drawn = [f'<rect {shape} rx="5" fill="#f6f8fa" stroke="#8c959f"/>']
    for i, (style, line) in enumerate(_lines(room, width)):
        where = f'x="{x + 12:.1f}" y="{y + 22 + i * LINE:.1f}"'
        drawn.append(f'<text {where} class="{style}">{escape(line)}</text>')
    return drawn


def _arrow(upper: tuple[float, ...], lower: tuple[float, ...]) -> str:
    """From the middle of one room to the nearest place above the other."""
    x, y = upper[0] + upper[2] / 2, upper[1] + upper[3]
    to = min(max(x, lower[0] + 24), lower[0] + lower[2] - 24)
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to:.1f}" y2="{lower[1]:.1f}"'
    return f'<line {ends} stroke="#57606a" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
