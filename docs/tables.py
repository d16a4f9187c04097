"""Puts what was computed into the pages: `python docs/tables.py` (or `make readme`).

A block of a page is what stands between `<!-- name -->` and `<!-- /name -->`.

* `demo` of README.md: the table that `make demo` left in out/ablation.md, if there is one.
* `benchmarks` of README.md: docs/benchmarks.md, which `make bench` writes.
* `expressions` of docs/algebra.md: every optimizer, written out in pieces.
* `telemetry` of docs/insight.md: docs/benchmarks_telemetry.md, of `python -m benchmarks.telemetry`.
* `optimizers` of docs/optimizers.md: every optimizer by its parts, as `adamw-jax list` has it.

It also draws docs/floors.svg again, by docs/floors.py.
"""

import ast
import runpy
from pathlib import Path

import adamw_jax as aj
from adamw_jax.inspect import periodic

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
DEMO = DOCS.parent / "out" / "ablation.md"

OPTIMIZERS = {
    "SGD": aj.sgd(0.1),
    "Momentum, as an average": aj.momentum(0.1),
    "Momentum, Polyak's heavy ball": aj.heavy_ball(0.1),
    "Nesterov": aj.nesterov(0.1),
    "AdaGrad": aj.adagrad(0.1),
    "RMSProp": aj.rmsprop(0.1),
    "Adam": aj.adam(0.001),
    "Adam with an L2 penalty": aj.adam_l2(0.001),
    "AdamW": aj.adamw(0.001),
    "AdamW as in its paper": aj.adamw(0.001, weight_decay=0.01, coupling="independent"),
    "Signum": aj.signum(0.0001),
    "Lion": aj.lion(0.0001),
    "Sophia with Hutchinson's estimator": aj.sophia_h(0.001),
    "Sophia with the Gauss-Newton-Bartlett estimator": aj.sophia_g(0.001),
    "Muon": aj.muon(0.02),
    "LaProp": aj.laprop(0.0004),
    "AMSGrad": aj.amsgrad(0.001),
    "NAdamW": aj.nadamw(0.001),
    "RAdam": aj.radam(0.001),
    "AdaBelief": aj.adabelief(0.001),
    "Adan": aj.adan(0.001),
    "ADOPT": aj.adopt(0.001),
    "AdEMAMix": aj.ademamix(0.001),
    "Cautious AdamW": aj.cautious_adamw(0.001),
    "StableAdamW": aj.stable_adamw(0.001),
    "Adafactor": aj.adafactor(0.01),
    "Adam-mini": aj.adam_mini(0.001),
    "Schedule-Free AdamW": aj.schedule_free_adamw(0.0025),
    "Prodigy": aj.prodigy(1.0),
    "SOAP": aj.soap(0.003),
    "MARS": aj.mars(0.003),
}


def wrapped(node: ast.expr, indent: int = 0, width: int = 80, label: str = "") -> str:
    """An expression on one line if it fits, else one argument a line."""
    line = " " * indent + label + ast.unparse(node).replace("'", '"')
    if len(line) <= width or not isinstance(node, ast.Call):
        return line
    arguments = [("", x) for x in node.args] + [(f"{k.arg}=", k.value) for k in node.keywords]
    lines = [wrapped(x, indent + 4, width - 1, name) + "," for name, x in arguments]
    head = " " * indent + label + ast.unparse(node.func)
    return "\n".join([f"{head}(", *lines, " " * indent + ")"])


def expressions() -> str:
    """The block of docs/algebra.md."""
    entries = []
    for title, tx in OPTIMIZERS.items():
        written = wrapped(ast.parse(repr(aj.expand(tx)), mode="eval").body)
        entries.append(f"{title}, `{tx!r}`:\n\n```python\n{written}\n```")
    return "\n\n".join(entries)


def table(page: Path) -> str:
    """The first table of a Markdown page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def block(page: Path, name: str) -> str:
    """What a page holds between the marks."""
    text = page.read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def insert(page: Path, name: str, content: str) -> None:
    """Replaces what a page holds between the marks."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(f"<!-- {name} -->\n")
    _, after = rest.split(f"\n<!-- /{name} -->")
    page.write_text(
        f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}", encoding="utf-8"
    )


def main():
    if DEMO.exists():
        insert(README, "demo", table(DEMO))
    insert(README, "benchmarks", (DOCS / "benchmarks.md").read_text(encoding="utf-8").strip())
    telemetry = (DOCS / "benchmarks_telemetry.md").read_text(encoding="utf-8").strip()
    insert(DOCS / "insight.md", "telemetry", telemetry)
    insert(DOCS / "algebra.md", "expressions", expressions())
    insert(DOCS / "optimizers.md", "optimizers", periodic.markdown().strip())
    runpy.run_path(str(DOCS / "floors.py"), run_name="__main__")


if __name__ == "__main__":
    main()
