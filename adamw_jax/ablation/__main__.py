"""Trains AdamW and variants of it on handwritten digits; writes a report."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

WEIGHT_DECAY = 0.1


INTERRUPTED = 130  # what a shell expects of a program stopped by Ctrl-C


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ablation: {message}.\n")


def at_least(smallest: int) -> Callable[[str], int]:
    """A flag's type: a whole number that is not too small."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is too small, use {smallest} or more")
        return int(text)

    return parse


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, those left out filled in."""
    parser = Parser(prog="python -m adamw_jax.ablation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the report goes")
    parser.add_argument("--seeds", type=at_least(2), help="reporting seeds (12; quick: 3)")
    parser.add_argument("--steps", type=at_least(1), help="updates of each run (500; quick: 60)")
    parser.add_argument("--quick", action="store_true", help="a coarse grid, to see that it runs")
    chosen = parser.parse_args(arguments)
    chosen.seeds = chosen.seeds or (3 if chosen.quick else 12)
    chosen.steps = chosen.steps or (60 if chosen.quick else 500)
    return chosen


def grid(per_decade: int) -> list[float]:
    """Learning rates from 0.001 to 10, evenly spaced in their logarithm."""
    return [float(f"{10 ** (k / per_decade - 3):.3g}") for k in range(4 * per_decade + 1)]


def run(chosen: argparse.Namespace) -> int:
    """Builds the experiment that the flags ask for and runs it."""
    # Imported here, so that a wrong flag or folder is answered at once.
    from adamw_jax.ablation import arms, demo, tasks

    experiment = demo.Experiment(
        task=tasks.digits(),
        arms=arms.adamw_arms(WEIGHT_DECAY),
        rates=grid(1 if chosen.quick else 3),
        tuning=2 if chosen.quick else 4,
        reporting=chosen.seeds,
        steps=chosen.steps,
        remark=f"λ = {WEIGHT_DECAY}, large enough to matter here.",
    )
    return demo.run(experiment, chosen.out)


def main(arguments: list[str] | None = None) -> int:
    """Returns an exit code; what a user can get wrong is one sentence on stderr."""
    chosen = options(arguments)
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen.out):
            pass  # better now than after the training
        return run(chosen)
    except ImportError as error:
        print(f"ablation: {error}. Run pip install 'adamw-jax[examples]'.", file=sys.stderr)
        return 1
    except OSError as error:
        reason = error.strerror or error
        print(f"ablation: cannot write to {chosen.out}: {reason}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ablation: interrupted before any arm had finished.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:
        # An import or a compilation stopped half-way can crash the orderly exit of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
