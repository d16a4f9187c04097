"""The shell: `adamw-jax`, or `python -m adamw_jax`.

adamw-jax list              the periodic table of optimizers
adamw-jax list --markdown   the same in Markdown
"""

import functools
import sys
from collections.abc import Sequence

from absl import app, flags

_MARKDOWN = flags.DEFINE_bool("markdown", False, "print tables in Markdown")


def _list() -> None:
    from adamw_jax.inspect import periodic

    if _MARKDOWN.value:
        print(periodic.markdown(), end="")
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    whole = functools.partial(Column, no_wrap=True)
    table = Table(
        whole("optimizer"), "direction", "then", whole("decay"), whole("bytes"), box=SIMPLE
    )
    for name, *cells in map(periodic.cells, periodic.table()):
        before, numerator, denominator, basis, after, decay, size = cells
        first = f"{before} → {numerator}" if before else numerator
        lines = [first, denominator and f"/ {denominator}", basis and f"in the {basis}"]
        table.add_row(name, "\n".join(filter(None, lines)), after, decay, size)
    Console().print(table)


COMMANDS = {"list": _list}


def _run(arguments: Sequence[str]) -> None:
    name, *rest = arguments[1:] or ("",)
    if name not in COMMANDS or rest:
        wrong = f"adamw-jax: there is no command {' '.join(arguments[1:])!r}." if name else ""
        print(f"{wrong}\n{__doc__}".strip(), file=sys.stderr)
        sys.exit(2)
    COMMANDS[name]()


def main() -> None:
    """The console script."""
    app.run(_run)


if __name__ == "__main__":
    main()
