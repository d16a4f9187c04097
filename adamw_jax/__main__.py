"""The shell: `adamw-jax`, or `python -m adamw_jax`.

adamw-jax list                                 the periodic table of optimizers
adamw-jax describe 'adamw(3e-3)'               parts, leaves, routes and bytes before training
adamw-jax describe 'muon(0.02)' --params=up/kernel:64x256,up/bias:256
adamw-jax equations 'lion(1e-4)'               the update rule; --format=latex, --symbols
adamw-jax lint 'chain(adamw(1e-3), clip(1.0))' what is in the wrong order, if anything
adamw-jax diff 'adamw(1e-3)' 'adam(1e-3)'      what changes from one to the other
adamw-jax cost 'adamw(3e-3)' --platform=cpu    bytes and time of a step, with --params
adamw-jax cost 'adamw(3e-3)' --topology=v5p:2x2x1    likewise, on TPUs that are not here

An expression is what Python would print: pieces, combinators, optimizers and
schedules of adamw_jax, edited as you like, for example
'swap(adamw(3e-3), "weight_decay", identity())'.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

_MARKDOWN = flags.DEFINE_bool("markdown", False, "list: print in Markdown")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "latex"], "equations: how to print")
_SYMBOLS = flags.DEFINE_bool("symbols", False, "equations: letters for hyperparameters")
_PARAMS = flags.DEFINE_string(
    "params",
    "embed/embedding:1000x64,block/query/kernel:64x64,block/up/kernel:64x256,"
    "block/up/bias:256,block/norm/scale:64,head/kernel:64x1000",
    "describe, cost: the parameters, as path:shape,path:shape",
)
_PLATFORM = flags.DEFINE_string(
    "platform", "tpu", "cost: tpu for one that need not be here; cpu or gpu for what is"
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2x1", "cost: which TPU, and how many chips")


class UsageError(Exception):
    """A call of the shell that cannot be carried out, in one sentence."""


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


def _parameters(text: str) -> Any:
    """A tree of abstract float32 parameters from "path:shape,path:shape"."""
    import jax
    import jax.numpy as jnp

    tree: dict[str, Any] = {}
    for entry in text.split(","):
        path, colon, shape = entry.strip().partition(":")
        *folders, leaf = path.split("/")
        sizes = shape.split("x") if shape else []
        if not (leaf and colon) or not all(size.isdecimal() for size in sizes):
            raise UsageError(f"--params: {entry!r} is not path:shape, such as up/kernel:64x256.")
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
            if not isinstance(inside, dict):
                raise UsageError(f"--params: {entry!r} lies below another parameter.")
        if leaf in inside:
            raise UsageError(f"--params: {entry!r} is there already. Name each parameter once.")
        inside[leaf] = jax.ShapeDtypeStruct(tuple(map(int, sizes)), jnp.float32)
    return tree


def _describe(text: str) -> None:
    from adamw_jax import describe, parse

    print(describe(parse(text), _parameters(_PARAMS.value)))


def _equations(text: str) -> None:
    from adamw_jax import equations, parse

    print(equations(parse(text), format=_FORMAT.value, symbols=_SYMBOLS.value))


def _lint(text: str) -> int:
    from adamw_jax import lint, parse

    findings = lint(parse(text))
    print("\n".join(map(str, findings)) or "Nothing found.")
    return 1 if findings else 0


def _diff(old: str, new: str) -> None:
    from adamw_jax import diff, parse

    changes = diff(parse(old), parse(new))
    print("\n".join(map(str, changes)) or "No difference.")


def _cost(text: str) -> None:
    from adamw_jax import cost, parse, parts

    tx, params = parse(text), _parameters(_PARAMS.value)
    if any("estimate" in part.factory.declared["traits"] for part in [tx, *parts(tx).values()]):
        raise UsageError(
            f"cost: {tx!r} reads the loss, which no flag can give. In Python, pass it: "
            "cost(tx, params, extra={'obj_fn': loss}), or 'logits_fn' for sophia_g."
        )
    print(cost(tx, params, platform=_PLATFORM.value, topology=_TOPOLOGY.value))


# name: what to call, and how many expressions it takes
COMMANDS: dict[str, tuple[Callable[..., Any], int]] = {
    "list": (_list, 0),
    "describe": (_describe, 1),
    "equations": (_equations, 1),
    "lint": (_lint, 1),
    "diff": (_diff, 2),
    "cost": (_cost, 1),
}


def run(arguments: Sequence[str]) -> int:
    """Carries out one command; the exit code."""
    name, *texts = arguments[1:] or ("",)
    if name not in COMMANDS:
        wrong = f"adamw-jax: there is no command {name!r}." if name else ""
        print(f"{wrong}\n{__doc__}".strip(), file=sys.stderr)
        return 2
    command, count = COMMANDS[name]
    if len(texts) != count:
        wanted = ("no expression", "1 expression", "2 expressions")[count]
        print(
            f"adamw-jax: {name} takes {wanted}, not {len(texts)}. "
            "Put each in quotes; adamw-jax --help shows examples.",
            file=sys.stderr,
        )
        return 2
    try:
        return command(*texts) or 0
    except (UsageError, ImportError, ValueError, KeyError, TypeError) as error:
        print(error.args[0] if error.args else error, file=sys.stderr)
        return 2


def _run_quietly(arguments: Sequence[str]) -> int:
    import jax

    if _PLATFORM.value in ("cpu", "tpu"):  # nothing is run: let accelerators sleep
        jax.config.update("jax_platforms", "cpu")
    return run(arguments)


def main() -> None:
    """The console script."""
    app.run(_run_quietly)


if __name__ == "__main__":
    main()
