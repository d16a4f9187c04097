"""Advice: what looks like a mistake when an optimizer meets its parameters."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from adamw_jax.core.flow import Flow, Owners, Reading, interpret, slots
from adamw_jax.core.placement import axis_size, padding
from adamw_jax.core.transformation import Transformation
from adamw_jax.inspect.describe.facts import memory_of
from adamw_jax.pieces.orthogonalize import stack_heights, view_of
from adamw_jax.state.layout import Held, Reach

# Norms, biases and single scalars: decay has no reason to pull these to 0.
NOT_DECAYED = r"(?i)norm|(^|[/_])(ln|bn)\w*/|(bias|scale|offset|beta|gamma)$"


def warnings(
    seen: list[Reach],
    held: list[Held],
    leaves: Sequence[Any],
    arrays: Sequence[Any],
    doubtful: dict[int, str],
) -> Iterator[str]:
    """One sentence for each thing that looks wrong.

    Args:
      seen: which part sees which parameters.
      held: all state.
      leaves: the parameters as `describe` lists them.
      arrays: the parameters themselves, in the same order.
      doubtful: what is said of those for which no rule can decide.
    """
    yield from doubtful.values()
    yield from _unmatched(seen)
    yield from _decayed(leaves)
    yield from _frozen_averages(seen, held)
    yield from _three_axes(seen, leaves)
    yield from _replicated(held, leaves, arrays)
    yield from _unequal_shares(seen, leaves, arrays)


def _unmatched(seen: list[Reach]) -> Iterator[str]:
    sees = {r.path: r.leaves for r in seen}
    for r in seen:
        owners = _owners(r.piece) if r.leaves else None
        if owners is None:
            continue
        # The last route takes what is left, if anything.
        names = list(slots(r.piece))
        for name in names if owners.passes else names[:-1]:
            path = f"{r.path}.{name}" if r.path else name
            if sees[path]:
                continue
            if owners.passes:
                yield f"The mask at {r.path!r} is True for no parameter."
            else:
                yield f"The route {path!r} gets no parameter."


class _Split(Reading):
    """The reading that sees how a combinator deals out the leaves."""

    owners: Owners | None = None

    def part(self, run, slot, u):
        return u

    def split(self, run, u, owners):
        self.owners = owners
        return u


def _owners(piece: Transformation) -> Owners | None:
    """How a combinator deals out the leaves among its slots; None if it does not."""
    if not (isinstance(piece.body, Flow) and piece.body.splits):
        return None
    reading = _Split()
    interpret(piece, None, reading)
    return reading.owners


def _decayed(leaves: Sequence[Any]) -> Iterator[str]:
    found = [leaf.path for leaf in leaves if leaf.decayed and re.search(NOT_DECAYED, leaf.path)]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield (
            f"Weight decay reaches norms or biases: {found[0]!r}{others}. "
            "Leave them out with mask=lambda params: ..."
        )


def _frozen_averages(seen: list[Reach], held: list[Held]) -> Iterator[str]:
    """An average in 16 bits does not move when 1 - decay is below the spacing of its numbers."""
    pieces = {r.path: r for r in seen}
    found = {}
    for h in held:
        r, half = pieces.get(h.path), h.dtype.itemsize == 2 and jnp.issubdtype(h.dtype, jnp.inexact)
        decay = memory_of(r.piece, h.name) if r and half else None
        if decay is not None and 1 - decay < float(jnp.finfo(h.dtype).eps) / 2:
            found[h.path] = (
                f"{h.field} at {h.path!r} is {h.dtype.name}, in which a decay of {decay} never "
                'decays. Store it with dtype="float32".'
            )
    yield from found.values()


def _three_axes(seen: list[Reach], leaves: Sequence[Any]) -> Iterator[str]:
    """Leaves that some piece sees as a matrix, and nobody has said how."""
    told = set()
    for r in seen:
        if r.piece.arguments.get("views", "none") is not None:
            continue
        for leaf in (leaves[i] for i in r.leaves):
            if len(leaf.shape) == 3 and leaf.path not in told:
                told.add(leaf.path)
                yield (
                    f"{leaf.path!r} of shape {leaf.shape} may be a stack of matrices or one "
                    f"matrix; {r.path!r} takes it as one, all axes but the last as rows. Decide "
                    "with views=lambda path, leaf: ..."
                )


def _replicated(held: list[Held], leaves: Sequence[Any], arrays: Sequence[Any]) -> Iterator[str]:
    """State of matrices that every device of a mesh would hold in full."""
    found = []
    for h in held:
        if h.leaf is None or len(leaves[h.leaf].shape) < 2:
            continue
        sharding: Any = getattr(arrays[h.leaf], "sharding", None)
        devices = getattr(sharding, "num_devices", 1)
        if devices > 1 and (sharding.is_fully_replicated or h.shape != leaves[h.leaf].shape):
            found.append((h, leaves[h.leaf].path, devices))
    if found:
        (first, path, devices), size = found[0], sum(h.bytes for h, _, _ in found)
        yield (
            f"{size:,} bytes of state are replicated on {devices} devices, {first.field} of "
            f"{path!r} among them. Spread it: state_sharding(tx, params, mesh, zero_axis=...)."
        )


def _unequal_shares(
    seen: list[Reach], leaves: Sequence[Any], arrays: Sequence[Any]
) -> Iterator[str]:
    """Stacks of matrices that the devices of a mesh cannot share equally."""
    for r in seen:
        if not r.piece.arguments.get("stack_axis") or "views" not in r.piece.arguments:
            continue
        chosen, axis = r.piece.arguments["views"], r.piece.arguments["stack_axis"]
        meshes = [getattr(getattr(arrays[i], "sharding", None), "mesh", None) for i in r.leaves]
        size = axis_size("describe", meshes[0], axis) if any(meshes) else 1
        views = [view_of("describe", chosen, leaves[i].path, arrays[i]) for i in r.leaves]
        for shape, height in stack_heights([arrays[i] for i in r.leaves], views):
            if padding(height, size):
                yield (
                    f"{height} matrices of shape {shape} do not share equally among {size} "
                    f"devices; {r.path!r} adds {padding(height, size)} of zeros."
                )
