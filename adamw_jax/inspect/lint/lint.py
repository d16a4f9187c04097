"""Lint: mistakes of order, found before anything runs.

A flat list of pieces lets one write another optimizer than one meant, silently:
a learning rate that is normalised away, a decay that is not decoupled, a step
that climbs.  `adamw_jax.inspect.lint.reading` runs the flow of an expression on units
and signs; `adamw_jax.inspect.lint.rules` says which of them are mistakes.

What a piece does is read off its formula or its equation.  A piece that is more than
arithmetic declares it in the words of `adamw_jax.inspect.lint.facts.WORDS`.  One with
neither, or one that is not of this library, is unknown: nothing is concluded that
depends on it.

Something that is no whole optimizer, such as `scale_by_momentum(0.9)`, gets the
one finding of severity "note" there is, `no_learning_rate`.
"""

from collections.abc import Collection

import optax

from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.inspect.lint.reading import Order
from adamw_jax.inspect.lint.rules import RULES, Finding


def lint(tx: optax.GradientTransformation, *, waive: str | Collection[str] = ()) -> list[Finding]:
    """Mistakes of order in an optimizer; an empty list when all is well.

    Looks at the expression alone: nothing is run, and training costs nothing more.

    Args:
      tx: the optimizer.
      waive: findings to leave out, by rule ("clip_after_learning_rate") or by
        rule and slot ("clip_after_learning_rate@clip").

    Raises:
      ValueError: `waive` names no rule, or a piece has a trait that is no word.

    Example:
      >>> from adamw_jax import adamw, chain, lint, scale_by_adam, scale_by_learning_rate
      >>> lint(adamw(1e-3))
      []
      >>> [f.rule for f in lint(chain(scale_by_learning_rate(1e-3), scale_by_adam()))]
      ['learning_rate_normalized_away']
    """
    waive = (waive,) if isinstance(waive, str) else tuple(waive)
    for name in waive:
        if name.split("@")[0] not in RULES:
            raise ValueError(
                f"lint: waive names no rule {name!r}. Choose one of: {', '.join(RULES)}."
            )
    found = Order(lift(tx, "lint")).run()
    return [f for f in found if not {f.rule, f"{f.rule}@{f.path}"} & set(waive)]


def assert_clean(
    tx: optax.GradientTransformation, *, waive: str | Collection[str] = ()
) -> Transformation:
    """`tx` itself, after checking that `lint` finds nothing, notes included.

    Write `tx = assert_clean(chain(...))` where an optimizer is made.

    Raises:
      ValueError: there are findings; the message lists them.

    Example:
      >>> from adamw_jax import adamw, assert_clean
      >>> tx = assert_clean(adamw(1e-3))
    """
    findings = lint(tx, waive=waive)
    if findings:
        lines = "\n  ".join(map(str, findings))
        raise ValueError(f"assert_clean: {len(findings)} findings. Mend or waive:\n  {lines}")
    return lift(tx)
