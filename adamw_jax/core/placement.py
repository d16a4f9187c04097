"""Placement: where the work of a step runs on a mesh of devices.

A sharding says where an array lies.  Most pieces need not know of it: they work
element by element, and the compiler leaves every element where it is.  What
works on whole matrices says here how it wants them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Axis = str | tuple[str, ...]


def axis_size(function: str, mesh: Any, axis: Axis) -> int:
    """How many devices there are along one axis of a mesh, or along several together.

    Raises:
      ValueError: the mesh has no such axis.
    """
    names = (axis,) if isinstance(axis, str) else axis
    for name in names:
        if name not in mesh.shape:
            there = ", ".join(mesh.shape)
            raise ValueError(
                f"{function}: the mesh has no axis {name!r}. Choose from: {there}."
                if there
                else f"{function}: there is no mesh with an axis {name!r}. Enter one: "
                "with jax.set_mesh(mesh): ..."
            )
    return math.prod(mesh.shape[name] for name in names)


def padding(items: int, size: int) -> int:
    """How many items must be added before `size` devices get equally many."""
    return -items % size


def deal_out(
    function: str, work: Callable[[jax.Array], jax.Array], stack: jax.Array, axis: Axis
) -> jax.Array:
    """work(stack), each device doing its share of the items of a stack.

    The items come as they are sharded; then they move, over one axis of the mesh
    after the other, until every device holds whole ones; and back the same way.
    In between there is nothing to communicate.  A stack that does not divide is
    filled up with zeros.

    Args:
      function: who asks, for the error.
      work: maps every item of a stack alone, to one of the same shape.
      stack: [n, ...].
      axis: of the mesh that `jax.set_mesh` made current, or several.
    """
    count, names = len(stack), (axis,) if isinstance(axis, str) else tuple(axis)
    size = axis_size(function, jax.sharding.get_abstract_mesh(), names)
    stack = jnp.pad(stack, [(0, padding(count, size))] + [(0, 0)] * (stack.ndim - 1))
    as_it_comes = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (stack.ndim - 1))
    way = [as_it_comes, *(PartitionSpec(names[: i + 1]) for i in range(len(names)))]
    for spec in way:
        stack = jax.lax.with_sharding_constraint(stack, spec)
    stack = work(stack)
    for spec in reversed(way):
        stack = jax.lax.with_sharding_constraint(stack, spec)
    return stack[:count]


def automatic(function: Callable[..., Any], like: Any, *arguments: Any) -> Any:
    """function(*arguments), placed by the compiler even where the mesh is explicit.

    With explicit axes a sharding is part of an array's type, and a product or a
    reshape that cannot carry it over is an error.  Here the result is said to lie
    as `like` does, and what comes between is the compiler's to place.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves((like, arguments)))
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    if mesh is None:
        return function(*arguments)
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    out = jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like)
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=out)(*arguments)
