"""A report on an optimizer for given parameters, before training.

Every leaf with its route, decay, learning rate and state; bytes for each
parameter; and what looks like a mistake.  Nothing is allocated.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.core import trees
from adamw_jax.core.routing import routes
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.inspect.describe import advice, report
from adamw_jax.inspect.describe.facts import UNKNOWN, decay_of, factor_of, rate_of
from adamw_jax.schedules import Schedule
from adamw_jax.state.layout import Held, Reach, reaches, state, undecided


class Leaf(NamedTuple):
    """One parameter.

    Attributes:
      path, shape, dtype, size: of the parameter.
      route: the route it takes, "all" where nothing is routed, "undecided"
        where no rule can tell.
      weight_decay: λ, 0 if it is not decayed; None if that is not known.
      learning_rate: its learning rate, at the peak of a schedule; None if it
        has none, or if that is not known.
      multiplier: its learning rate relative to that of most parameters.
      state: the arrays of state that belong to it.
      unknown: which of `weight_decay` and `learning_rate` are not known: a piece of
        another library may have them, a schedule may not know its peak.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    route: str
    weight_decay: Any
    learning_rate: float | None
    multiplier: float | None
    state: tuple[Held, ...]
    unknown: tuple[str, ...] = ()

    @property
    def decayed(self) -> bool:
        """Whether it is decayed, as far as that is known."""
        return self.weight_decay is not None and not _is_zero(self.weight_decay)

    @property
    def bytes(self) -> int:
        """Bytes of its state."""
        return sum(held.bytes for held in self.state)


class Totals(NamedTuple):
    """Sums over all parameters.

    Attributes:
      parameters: how many numbers.
      parameter_bytes: their bytes.
      state_bytes: bytes of the state that belongs to parameters.
      overhead_bytes: bytes of counts, keys and other scalars.
      by_piece: state bytes for each parameter, by the path of the piece.
      by_route: numbers in each route.
    """

    parameters: int
    parameter_bytes: int
    state_bytes: int
    overhead_bytes: int
    by_piece: dict[str, float]
    by_route: dict[str, int]


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """What `describe` returns: printed it is the report, and its parts can be asked for.

    In print, parameters that differ in nothing but the numbers in their paths, such as
    those of equal layers, share a line.

    Attributes:
      expression: the optimizer.
      leaves: one `Leaf` a parameter.
      totals: sums over them.
      warnings: what looks like a mistake, one sentence each.
    """

    expression: Transformation
    leaves: tuple[Leaf, ...]
    totals: Totals
    warnings: tuple[str, ...]

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of state for each parameter; float32 AdamW has 8."""
        return sum(self.totals.by_piece.values())

    def __str__(self) -> str:
        return report.text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report.html(self)


def describe(tx: optax.GradientTransformation, params: Any) -> Description:
    """What an optimizer will do to each of the parameters, and what it will keep for them.

    Args:
      tx: the optimizer.
      params: the parameters, or their shapes and dtypes
        (`jax.eval_shape(init, ...)`): any pytree, Linen variables with or
        without boxes, an NNX module (its `nnx.Param`) or state.  The statistics
        of batch norms are no parameters.

    Raises:
      TypeError: `tx` is not a gradient transformation.
      ValueError: a leaf is no floating-point array, or `tx.init` would raise for
        another reason than one that is reported as a warning.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from adamw_jax import adamw, describe
      >>> found = describe(adamw(1e-3), {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)})
      >>> found.bytes_per_parameter
      8.0
    """
    tx, params = lift(tx, "describe"), _trained(params)
    trees.check_parameters("describe", params)
    doubtful = undecided(tx, params)
    count = len(jax.tree.leaves(params))
    decided = [i for i in range(count) if i not in doubtful]
    known = trees.select(params, [i not in doubtful for i in range(count)]) if doubtful else params
    seen = [r._replace(leaves=tuple(decided[i] for i in r.leaves)) for r in reaches(tx, known)]
    held = [
        h if h.leaf is None else h._replace(leaf=decided[h.leaf])
        for h in state(tx, known, lenient=True)
    ]
    names = dict(zip(decided, routes(tx, known).values(), strict=True))
    leaves = _leaves(params, seen, held, names)
    warnings = advice.warnings(seen, held, leaves, jax.tree.leaves(params), doubtful)
    return Description(tx, leaves, _totals(leaves, held), tuple(warnings))


def _trained(params: Any) -> Any:
    """The parameters alone, without the statistics that Flax keeps beside them."""
    nnx = sys.modules.get("flax.nnx")  # where there is a module, it is loaded
    if nnx and isinstance(params, nnx.Module):
        return nnx.state(params, nnx.Param)
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= set(params):  # of Linen
        return {name: x for name, x in params.items() if name != "batch_stats"}
    if not nnx:
        return params
    kept = lambda x: None if isinstance(x, nnx.BatchStat) else x
    return jax.tree.map(kept, params, is_leaf=lambda x: isinstance(x, nnx.BatchStat))


def _leaves(params, seen: list[Reach], held: list[Held], names: dict[int, str]) -> tuple[Leaf, ...]:
    flat = jax.tree_util.tree_leaves_with_path(params)
    count = len(flat)
    known = [_Facts(r, params, count) for r in seen]
    decays, rates = ([f(known, i) for i in range(count)] for f in (_weight_decay, _learning_rate))
    unknown = [
        tuple(k for k, x in (("weight_decay", a), ("learning_rate", b)) if x is UNKNOWN)
        for a, b in zip(decays, rates, strict=True)
    ]
    decays, rates = ([None if x is UNKNOWN else x for x in xs] for xs in (decays, rates))
    relative = _multipliers(rates, [math.prod(jnp.shape(x)) for _, x in flat])
    return tuple(
        Leaf(
            path=trees.path_text(path),
            shape=tuple(jnp.shape(x)),
            dtype=jnp.dtype(trees.dtype_of(x)),
            size=math.prod(jnp.shape(x)),
            route=names.get(i, "undecided"),
            weight_decay=decays[i],
            learning_rate=rates[i],
            multiplier=relative[i],
            state=tuple(h for h in held if h.leaf == i),
            unknown=unknown[i],
        )
        for i, (path, x) in enumerate(flat)
    )


def _multipliers(rates: list[float | None], sizes: list[int]) -> list[float | None]:
    """Rates relative to the one that most parameters have."""
    total: dict[float, int] = {}
    for rate, size in zip(rates, sizes, strict=True):
        if rate:
            total[rate] = total.get(rate, 0) + size
    base = max(total, key=lambda rate: total[rate], default=1.0)
    return [None if rate is None else rate / base for rate in rates]


def _is_zero(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer) and bool(np.all(np.asarray(value) == 0))


class _Facts:
    """What one part does to the leaves that it sees.

    A part through which not all of the update passes is known by what it says alone."""

    def __init__(self, r: Reach, params: Any, count: int):
        self.leaves, self.stage = set(r.leaves), r.stage
        self.decay, self.rate, self.factor = None, None, 1.0
        if r.leaves:
            own = trees.select(params, [i in self.leaves for i in range(count)])
            known = lambda x, default: x if r.stage or x is not UNKNOWN else default
            self.decay, self.rate = (
                known(decay_of(r.piece, own), None),
                known(rate_of(r.piece), None),
            )
            self.factor = factor_of(r.piece) if r.stage else 1.0


def _weight_decay(seen: list[_Facts], leaf: int) -> Any:
    found = [f.decay for f in seen if leaf in f.leaves and f.decay is not None]
    if any(value is UNKNOWN for value in found):
        return UNKNOWN
    return next((value for value in found if not _is_zero(value)), 0.0)


def _learning_rate(seen: list[_Facts], leaf: int) -> Any:
    """The product of the rates, and of the factors, that a leaf's update passes through.

    What says nothing may have a rate of its own; but where a rate follows, it is taken
    for a part of the direction."""
    rates, factors, silent = [], [], False
    for f in (f for f in seen if leaf in f.leaves):
        factors.append(f.factor)
        silent = silent or f.rate is UNKNOWN
        if f.rate is not None and f.rate is not UNKNOWN:
            rates.append(f.rate.peak if isinstance(f.rate, Schedule) else f.rate)
            silent = False
    if silent or not all(isinstance(x, float | int) for x in (*rates, *factors)):
        return UNKNOWN
    return abs(math.prod((*rates, *factors))) if rates else None


def _totals(leaves: tuple[Leaf, ...], held: list[Held]) -> Totals:
    parameters = sum(leaf.size for leaf in leaves)
    by_piece: dict[str, float] = {}
    for h in held:
        if h.leaf is not None:
            by_piece[h.path] = by_piece.get(h.path, 0) + h.bytes / max(parameters, 1)
    by_route: dict[str, int] = {}
    for leaf in leaves:
        by_route[leaf.route] = by_route.get(leaf.route, 0) + leaf.size
    return Totals(
        parameters=parameters,
        parameter_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        state_bytes=sum(leaf.bytes for leaf in leaves),
        overhead_bytes=sum(h.bytes for h in held if h.leaf is None),
        by_piece=by_piece,
        by_route=by_route,
    )
