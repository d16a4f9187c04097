"""`python -m benchmarks`: measures every case, prints the table, writes it to docs/."""

from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.measure import where

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def row(case, measured):
    bar = "" if case.bar == float("inf") else f"≤ {case.bar:g}{case.unit}"
    spread = "" if measured.low == measured.high else f"{measured.low:.2f} to {measured.high:.2f}"
    return f"| {case.name} | {bar} | {measured.median:.3f}{case.unit} | {spread} |"


def main():
    lines = [
        "| adamw_jax / Optax | bar | measured | quartiles |",
        "| :-- | --: | --: | --: |",
    ]
    print(*lines, sep="\n")
    over = []
    for case in CASES:
        measured = case.measure()
        lines.append(row(case, measured))
        print(lines[-1], flush=True)
        over += [case.name] * (measured.median > case.bar)
    lines += ["", where()]
    print(*lines[-2:], sep="\n")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if over:
        print(f"Above their bar here: {', '.join(over)}.")


if __name__ == "__main__":
    main()
