"""Transplanting: state carried from one optimizer to another, and a report of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core.diff import diff
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.core.trees import cast, dtype_of, path_names, path_text
from adamw_jax.state.matching import Entry, entries, follows, older, pair, reason, scope, source


class Move(NamedTuple):
    """What became of one array of state.

    Attributes:
      old: its dotted name in the old state, "" if it is new.
      new: its dotted name in the new state, "" if it is dropped.
      leaf: path of its parameter, None if it belongs to none in particular.
      note: what changed on the way, or why nothing was carried.
    """

    old: str
    new: str
    leaf: str | None
    note: str


class Report(NamedTuple):
    """What `transplant` did to every array; prints one line for each place.

    Attributes:
      kept: carried from the old state to the new one.
      reset: begin again, as `init` makes them.
      dropped: old ones that the new optimizer has no place for.
    """

    kept: tuple[Move, ...]
    reset: tuple[Move, ...]
    dropped: tuple[Move, ...]

    def __str__(self):
        lines = []
        for title, moves in self._asdict().items():
            groups: dict[tuple, list] = {}
            for move in moves:
                groups.setdefault((move.old, move.new, move.note), []).append(move.leaf)
            lines += [_line(title, what, owners) for what, owners in groups.items()]
        return "\n".join(lines)

    def __repr__(self):
        return str(self)


def _line(title: str, what: tuple[str, str, str], leaves: list[str | None]) -> str:
    old, new, note = what
    names = old if old == new else " -> ".join(filter(None, (old, new)))
    owners = [leaf for leaf in leaves if leaf is not None]
    said = f"{len(owners)} parameters" if len(owners) > 2 else ", ".join(owners)
    return f"{title:8}{names}" + f" [{said}]" * bool(said) + f": {note}" * bool(note)


class Transplant(NamedTuple):
    """What `transplant` returns; prints the report.

    Attributes:
      state: as `new_tx.init(params)` makes it, filled with what was kept.
      report: what was kept, reset and dropped.
    """

    state: Any
    report: Report

    def __repr__(self):
        count = len(jax.tree.leaves(self.state))
        return f"Transplant: {count} arrays of state\n{self.report}"


def transplant(
    old_state: Any,
    old_tx: optax.GradientTransformation,
    new_tx: optax.GradientTransformation,
    params: Any,
) -> Transplant:
    """Carries state from one optimizer to another: all that means the same in both.

    An array is kept, to the bit, where the new optimizer has one of the same
    name, shape and dtype for the same parameter, that sees the same gradients:
    in the same slot, or in another where there is no doubt which.  All others
    begin again, and the report says why.

    * The same gradients are those that the same has happened to: clipping, an L2 term
      or another combinator in front change nothing, squares, signs, quotients and
      averages do.  What a foreign piece does nobody knows; behind it an array is kept
      only if the very same piece stands before both.
    * Another hyperparameter is no obstacle; the report notes it.
    * An average (`gain=None`) that becomes a sum, or the reverse, is multiplied
      by the quotient of their gains: `momentum` and `heavy_ball` convert.
    * A count is kept with the averages whose age it tells, or not at all: if
      one of them begins again, so do the others that share the count.
    * No old average is divided by the root of a second moment that begins
      again: such a step has no bound.  Both begin again.

    Args:
      old_state: the state of `old_tx`, or what Orbax restores without a target:
        nested dicts and lists with the same names.
      old_tx: the optimizer that made it.
      new_tx: the optimizer to go on with.
      params: the parameters, in any containers.

    Raises:
      ValueError: `old_state` is not one that `old_tx` makes for `params`.

    Example:
      >>> from adamw_jax import adamw, chain, clip_by_global_norm, transplant
      >>> old, new = adamw(1e-3), chain(clip_by_global_norm(1.0), adamw(1e-3))
      >>> state, report = transplant(old.init(0.5), old, new, 0.5)
      >>> len(report.kept), report.reset, report.dropped
      (6, (), ())
    """
    was, becomes = lift(old_tx, "transplant"), lift(new_tx, "transplant")
    before, after = entries(was, params), entries(becomes, params)
    values = _values(old_state, was, params)
    old = [e._replace(value=x) for e, x in zip(before, values, strict=True)]
    found, notes = _sources(old, after)
    fresh, treedef = jax.tree.flatten(becomes.init(params))
    leaves = [
        _carried(old[found[j][0]], e, x) if j in found else x
        for j, (e, x) in enumerate(zip(after, fresh, strict=True))
    ]
    return Transplant(treedef.unflatten(leaves), _report(old, after, found, notes, params))


def _values(state: Any, tx: Transformation, params: Any) -> list[Any]:
    """The leaves of a state, or of the nested dicts and lists it was saved as, in its order."""
    given = {path_names(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}
    values = []
    for path, like in jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, params)):
        names = path_names(path)
        boxed = (*names, "value")  # a box restored as a dict, or one put around by Flax
        if names not in given and boxed not in given:
            raise _misfit(tx, f"lacks '{path_text(path)}'")
        x = given.pop(names if names in given else boxed)
        if (jnp.shape(x), dtype_of(x)) != (like.shape, like.dtype):
            has, needs = (f"{dtype_of(a)}{list(jnp.shape(a))}" for a in (x, like))
            raise _misfit(tx, f"holds {has} at '{path_text(path)}', for these parameters {needs}")
        values.append(x)
    if given:
        raise _misfit(tx, f"holds '{'/'.join(next(iter(given)))}', which it does not keep")
    return values


def _misfit(tx: Transformation, what: str) -> ValueError:
    return ValueError(
        f"transplant: old_state is not one of {tx!r}: it {what}. "
        "Pass the optimizer that made it, and the parameters it was made for."
    )


def _sources(old: list[Entry], new: list[Entry]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """For arrays of `new` those of `old` that stand for them, and for others why none does."""
    pairs = pair(old, new)
    notes: dict[int, str] = {}
    numbers = {j: source(old, e) for j, e in enumerate(new) if e.held.leaf is None}
    scopes = {j: scope(new, new[j]) for j in numbers}

    def torn():
        """What cannot be kept since something that belongs to it is not."""
        for j, near in scopes.items():
            if not numbers[j] or not all(i in pairs for i in near):
                note = f"shares {new[j].name} with what begins again"
                yield from ((i, note) for i in near if i in pairs)
        for j, i in older(new, pairs):
            yield j, f"{new[i].name} begins again"

    while found := dict(torn()):
        notes |= found
        pairs = {j: i for j, i in pairs.items() if j not in found}
    for j, near in scopes.items():
        if near and near[0] not in pairs:
            numbers[j], notes[j] = [], f"begins again with {new[near[0]].name}"
    return {j: [i] for j, i in pairs.items()} | {j: i for j, i in numbers.items() if i}, notes


def _gain_ratio(old: Entry, new: Entry) -> Any:
    """By what to multiply a sum of what it was shown: its gain over what it was.

    That of an average is 1 - decay, and one average is as good as another."""
    if old.piece == new.piece:
        return 1.0
    was, now = follows(old), follows(new)
    if was is None or now is None or not was.power == now.power == 1:
        return 1.0
    if was.averages and now.averages:
        return 1.0
    gain = 1 - was.decay if now.averages else now.gain
    with np.errstate(all="ignore"):
        ratio = gain / (1 - was.decay if was.averages else was.gain)
    # Where nothing was gathered, or nobody knows how much, it is kept as it is.
    return np.where(np.isfinite(ratio), ratio, 1.0)[()]


def _carried(old: Entry, new: Entry, like: Any) -> jax.Array:
    if old.held.leaf is None:
        return jnp.array(old.value)  # one that serves twice must not be donated twice
    x, ratio = jnp.asarray(old.value), _gain_ratio(old, new)
    return x if np.all(ratio == 1) else x * cast(ratio, x)


def _note(old: Entry, new: Entry) -> str:
    """What has changed about what is kept."""
    was, now = old.piece, new.piece
    names = was.factory.__name__, now.factory.__name__
    if type(was.body) is not type(now.body) or names[0] != names[1]:
        notes = [" -> ".join(names)]
    else:
        notes = [str(c) for c in diff(was, now) if c.path in now.arguments]
    ratio = 1.0 if old.held.leaf is None else _gain_ratio(old, new)
    if np.all(ratio == 1):
        return ", ".join(notes)
    return ", ".join([*notes, "times " + (f"{ratio:g}" if np.ndim(ratio) == 0 else "an array")])


def _report(old, new, found, notes, params) -> Report:
    paths = [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaf = lambda e: None if e.held.leaf is None else paths[e.held.leaf]
    used = {i for sources in found.values() for i in sources}
    kept, reset = [], []
    for j, e in enumerate(new):
        if j in found:
            source = old[found[j][0]]
            kept.append(Move(source.name, e.name, leaf(e), _note(source, e)))
        else:
            reset.append(Move("", e.name, leaf(e), notes.get(j) or reason(old, e, used)))
    dropped = (Move(e.name, "", leaf(e), "") for i, e in enumerate(old) if i not in used)
    return Report(tuple(kept), tuple(reset), tuple(dropped))
