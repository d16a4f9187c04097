"""`python -m benchmarks`: measures every row, prints the table, writes it to docs/.

`python -m benchmarks trace_80_shapes import` measures these rows, and writes nothing.
"""

import argparse
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.measure import Comparison, where

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BAR = {"ratio": "≤ {}", "ours": "ours ≤ {}", "difference": "ours - Optax's ≤ {}"}
HEAD = """\
| row | what | ours | Optax's | ours / Optax's | quartiles | bar |
| :-- | :-- | --: | --: | --: | --: | --: |"""


def row(name: str, case: Case, measured: Comparison) -> str:
    amount = lambda value: f"{value:.4g} {case.unit}".strip()
    cells = [
        f"`{name}`",
        case.what,
        amount(measured.ours),
        amount(measured.theirs),
        f"{measured.ratio:.4g}",
        "" if measured.low == measured.high else f"{measured.low:.3g} to {measured.high:.3g}",
        "",
    ]
    if case.bar:
        most = f"{case.bar.most:g}" if case.bar.of == "ratio" else amount(case.bar.most)
        cells[-1] = BAR[case.bar.of].format(most)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(CASES))
    asked = parser.parse_args().rows
    if unknown := [name for name in asked if name not in CASES]:
        parser.error(f"no row {', '.join(unknown)}. Choose from {', '.join(CASES)}.")
    lines, over = [HEAD], []
    print(HEAD)
    for name in asked or CASES:
        case = CASES[name]
        measured = case.measure()
        lines.append(row(name, case, measured))
        print(lines[-1], flush=True)
        over += [name] * (case.bar is not None and getattr(measured, case.bar.of) > case.bar.most)
    lines += ["", where()]
    print(*lines[-2:], sep="\n")
    if not asked:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if over:
        print(f"Above their bar here: {', '.join(over)}.")


if __name__ == "__main__":
    main()
