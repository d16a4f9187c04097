"""Sharding: where the state of an optimizer lies on a mesh of devices.

State that has a parameter's shape lies as the parameter does.  With a
`zero_axis` (ZeRO, stage 1) every array of state is besides dealt out over the
data axis, on which parameters are only copies of each other: a step then
updates each part of a parameter on one device, and gathers the results.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adamw_jax.core import trees
from adamw_jax.core.placement import axis_size
from adamw_jax.core.transformation import lift
from adamw_jax.state import layout as leaves


class Placement(NamedTuple):
    """One array of state on a mesh.

    Attributes:
      path: the part that keeps it, the field and the parameter that it is for,
        such as "direction.numerator.0 momentum of layer/kernel".
      shape: of the whole array.
      spec: which axes of the mesh shard which of its axes.
      bytes: on each device.
      fallback: why it is not spread over `zero_axis`, if it should be; else "".
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    fallback: str


def state_sharding(
    tx: optax.GradientTransformation,
    params_sharding: Any,
    mesh: jax.sharding.Mesh,
    zero_axis: str | None = None,
) -> Any:
    """The sharding of every array of an optimizer's state.

    * State of a parameter's shape is sharded as the parameter.
    * Other statistics of a parameter (Adafactor's rows, Adam-mini's blocks)
      take over the shards of those of its axes that they keep, where it is clear
      which these are; Gram matrices and their like are replicated.
    * Both are then spread over `zero_axis`, if there is one: on the first of
      their axes that it divides, those not sharded yet coming first.
    * Counts, learning rates and random keys are replicated.

    `sharding_report` says what came of it.

    Args:
      tx: the optimizer.
      params_sharding: the parameters with their shardings: arrays on the mesh, or
        `jax.ShapeDtypeStruct(shape, dtype, sharding=...)`.  No sharding means
        replicated.
      mesh: the mesh.
      zero_axis: the axis of the mesh that shards the data, or None.

    Returns:
      A tree like `tx.init(params)` of `NamedSharding`.  Give it to `jax.jit` as
      `out_shardings` of `tx.init` and of the training step.

    Raises:
      ValueError: the mesh has no such axis, or a parameter lies on another one.
      TypeError: `params_sharding` holds shardings without shapes, or `zero_axis` is
        no name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from adamw_jax import momentum, state_sharding
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
      >>> found = state_sharding(momentum(0.1), params, mesh, zero_axis="data")
      >>> tuple(found["direction"].momentum["w"].spec)
      ('data', None)

    Reference: Rajbhandari et al., "ZeRO", 2020, section 5.1 (P_os).
    """
    placed = _placements("state_sharding", tx, params_sharding, mesh, zero_axis)
    structure = jax.tree.structure(
        jax.eval_shape(tx.init, _shapes("state_sharding", params_sharding))
    )
    return structure.unflatten([NamedSharding(mesh, p.spec) for p in placed])


def sharding_report(
    tx: optax.GradientTransformation,
    params_sharding: Any,
    mesh: jax.sharding.Mesh,
    zero_axis: str | None = None,
) -> list[Placement]:
    """What `state_sharding` decides, one `Placement` an array of state.

    Args:
      tx, params_sharding, mesh, zero_axis: as for `state_sharding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from adamw_jax import momentum, sharding_report
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
      >>> first, *_ = sharding_report(momentum(0.1), params, mesh, zero_axis="data")
      >>> first.path, first.bytes, first.fallback
      ('direction momentum of w', 128, '')
    """
    return _placements("sharding_report", tx, params_sharding, mesh, zero_axis)


def _placements(function, tx, params, mesh, zero_axis) -> list[Placement]:
    if not isinstance(zero_axis, str | None):
        raise TypeError(f"{function}: zero_axis is {zero_axis!r}. Name one axis of the mesh.")
    size = axis_size(function, mesh, zero_axis) if zero_axis else 1
    shapes = _shapes(function, params)
    taken = [
        _axes_of(function, path, leaf, mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    paths = [trees.path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = []
    for held in leaves.state(lift(tx, function), shapes):
        name, fallback = f"{held.path} {held.field}".strip(), ""
        axes: list[tuple[str, ...]] = [()] * len(held.shape)
        if held.leaf is not None:
            name = f"{name} of {paths[held.leaf]}"
            axes = _inherited(
                held.shape, jax.tree.leaves(shapes)[held.leaf].shape, taken[held.leaf]
            )
            if zero_axis:
                axes, fallback = _spread(held.shape, axes, mesh, zero_axis, size)
        spec = PartitionSpec(*(names if len(names) > 1 else (*names, None)[0] for names in axes))
        shard = NamedSharding(mesh, spec).shard_shape(held.shape)
        bytes_here = math.prod(shard) * held.dtype.itemsize
        found.append(Placement(name, held.shape, spec, bytes_here, fallback))
    return found


def _shapes(function: str, params: Any) -> Any:
    """The parameters without their shardings, which `init` need not know."""

    def leaf(path, x):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"{function}: '{trees.path_text(path)}' is {x!r}, which has no shape. Pass the "
                "parameters, or jax.ShapeDtypeStruct(shape, dtype, sharding=...) for each."
            )
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _axes_of(function: str, path: tuple, leaf: Any, mesh: Any) -> list[tuple[str, ...]]:
    """The axes of the mesh that shard each axis of a parameter."""
    sharding = getattr(leaf, "sharding", None)
    named = isinstance(sharding, NamedSharding)
    if sharding is None or (not named and sharding.is_fully_replicated):
        return [()] * len(leaf.shape)
    if not named or dict(sharding.mesh.shape) != dict(mesh.shape):
        raise ValueError(
            f"{function}: parameter '{trees.path_text(path)}' has {sharding!r}, which is not on "
            f"the mesh {dict(mesh.shape)}. Place it with a NamedSharding there."
        )
    entries = [*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))]
    return [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in entries]


def _inherited(shape: tuple, of: tuple, axes: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """How a statistic is sharded whose parameter has shape `of` and is sharded over `axes`.

    Each of its axes must be one of the parameter's, in order, or have length 1 in
    place of one.  Where that can be in several ways, as for the row and the column
    of a square matrix, or in none, nobody can tell, and it is replicated."""
    fits = [
        kept
        for kept in itertools.combinations(range(len(of)), len(shape))
        if all(n in (of[i], 1) for n, i in zip(shape, kept, strict=True))
    ]
    if len(fits) != 1:
        return [()] * len(shape)
    return [axes[i] if n == of[i] else () for n, i in zip(shape, fits[0], strict=True)]


def _spread(shape: tuple, axes: list, mesh: Any, zero_axis: str, size: int) -> tuple[list, str]:
    """The axes with `zero_axis` added where it fits first, or why it fits nowhere."""
    if zero_axis in itertools.chain(*axes) or not math.prod(shape):
        return axes, ""
    shards = [math.prod(mesh.shape[name] for name in names) for names in axes]
    for i in sorted(range(len(shape)), key=lambda i: bool(axes[i])):  # those not sharded first
        if shape[i] % (shards[i] * size) == 0:
            return [(*names, zero_axis) if i == j else names for j, names in enumerate(axes)], ""
    over = f", sharded {tuple(shards)}," if max(shards, default=1) > 1 else ""
    return axes, f"no axis of {shape}{over} is divisible by {size}"
