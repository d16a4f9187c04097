"""What a step costs, on a machine one need not have.

The update is compiled as a training loop would run it (gradients in, parameters
and state donated, updates applied) and the program is read, not run.

An element-wise optimizer is bound by memory: its least possible traffic, the
*floor*, reads every buffer once and writes every one that is kept once.  AdamW in
float32 reads g, m, v, θ and writes m, v, θ: 28 bytes a parameter.

How the bytes are counted, from the optimised program in `adamw_jax.inspect.hlo`:

* An instruction reads its operands and writes its results once each, as far as
  they live in main memory.  A fusion is one instruction: what happens inside it
  stays on the chip.  Of an operand that is only sliced, the slices are read; of
  one updated in place, the update is written.
* A copy into on-chip memory (a prefetch) reads main memory; using it there does
  not.  The compiler's own "bytes accessed" counts both, and every scalar.
* A loop counts as often as it runs; of a condition, the dearest branch (`least`
  has the cheapest: a Sophia step that does not refresh its curvature).
* Arrays count in whole tiles, as they lie in memory.  A matrix product counts its
  operands once, although a large one may read them more often.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from adamw_jax.core import trees
from adamw_jax.core.transformation import Transformation, lift
from adamw_jax.inspect.cost import hlo, machines
from adamw_jax.inspect.describe.report import cut
from adamw_jax.state import layout as leaves


@dataclasses.dataclass(frozen=True, repr=False)
class Cost:
    """What `cost` returns: printed it is the report, and its parts can be asked for.

    All bytes and operations are those of one device for one step.

    Attributes:
      expression: the optimizer.
      device: the kind of device compiled for, and the topology if there is one.
      devices: over how many the parameters are spread.
      parameters: how many numbers, on all devices together.
      bytes: to and from main memory, through the dearest branch of any condition.
      least: the same through the cheapest branch.
      floor: the least any program must move: each argument read, each result written.
      temporaries: bytes allocated beside arguments and results.
      flops: operations, as the compiler counts them.
      kernels: operations on arrays in the program's entry: fusions, custom calls and
        what was not fused.
      collectives: transfers between devices, each with its bytes and how often.
      unbounded: loops of unknown length, which are counted as one pass.
      compiler_bytes: the compiler's own "bytes accessed".
      bandwidth: bytes a second of main memory; None where the table has no such device.
    """

    expression: Transformation
    device: str
    devices: int
    parameters: int
    bytes: float
    least: float
    floor: float
    temporaries: int
    flops: float
    kernels: int
    collectives: tuple[hlo.Collective, ...]
    unbounded: int
    compiler_bytes: float
    bandwidth: float | None

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes moved for each parameter; float32 AdamW on one device has 28."""
        return self.bytes / max(self.parameters, 1)

    @property
    def ratio(self) -> float:
        """Bytes moved, relative to the floor."""
        return self.bytes / max(self.floor, 1)

    @property
    def seconds(self) -> float | None:
        """The time that the bytes take at the bandwidth: what a step takes that is
        bound by memory, and the least that any other takes."""
        return None if self.bandwidth is None else self.bytes / self.bandwidth

    def __str__(self) -> str:
        each = lambda total: f"{total / max(self.parameters, 1):8.3f} a parameter"
        rows = [
            ("bytes moved", f"{each(self.bytes)}, {self.bytes:,.0f} in all"),
            ("floor", f"{each(self.floor)}, each buffer read and written once"),
            ("ratio", f"{self.ratio:8.3f}"),
            ("temporaries", f"{each(self.temporaries)}, {self.temporaries:,} bytes"),
            ("flops", f"{each(self.flops)}"),
            ("kernels", f"{self.kernels:8,}"),
            *_said(self.collectives),
            ("compiler's count", f"{each(self.compiler_bytes)}"),
        ]
        if self.least < self.bytes:
            rows.insert(1, ("at least", f"{each(self.least)}, by the cheapest branch"))
        if self.unbounded:
            rows.insert(1, ("", f"{self.unbounded:8} loops of unknown length counted as one pass"))
        if self.seconds is not None and self.bandwidth is not None:
            rate = f"at {self.bandwidth / 1e9:,.0f} GB/s"
            rows.append(("time", f"{self.seconds * 1e3:8.3f} ms {rate}"))
        spread = f" over {self.devices} devices, of which each:" if self.devices > 1 else ":"
        lines = [
            repr(self.expression),
            f"on {self.device}",
            f"a step of {self.parameters:,} parameters{spread}",
            *(f"{name:18}{text}" for name, text in rows),
        ]
        return "\n".join(map(cut, lines))

    __repr__ = __str__


def _said(collectives: tuple[hlo.Collective, ...]) -> list[tuple[str, str]]:
    """One row for each kind of transfer."""
    if not collectives:
        return [("collectives", "    none")]
    kinds: dict[str, list[float]] = {}
    for c in collectives:
        count, given = kinds.get(c.operation, [0, 0])
        kinds[c.operation] = [count + c.times, given + c.times * c.bytes]
    return [
        ("" if i else "collectives", f"{count:8g} {name} of {given:,.0f} bytes")
        for i, (name, (count, given)) in enumerate(kinds.items())
    ]


def cost(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    platform: str | None = "tpu",
    topology: str = "v5e:2x2x1",
    sharding: Any = None,
    extra: Mapping[str, Any] = {},
) -> Cost:
    """What one step of an optimizer moves and takes, from the compiled program.

    Args:
      tx: the optimizer.
      params: the parameters, or their shapes and dtypes
        (`jax.eval_shape(init, ...)`): any pytree.
      platform: "tpu" compiles for a TPU that need not be there, which takes the
        extra tpu-aot; "cpu", "gpu" or None compiles for the machine at hand.
      topology: which TPU, as "v5e:2x2x1" or "v5p:2x2x2": the chip and how many.
      sharding: a `NamedSharding` for all parameters or a tree of them, over a mesh
        whose axes are laid over the devices compiled for; an
        `jax.sharding.AbstractMesh` will do.  Gradients and state are sharded
        like their parameters.  None for one device.
      extra: arguments of `update` beside gradients, state and parameters, such as
        Sophia's `obj_fn`.

    Raises:
      ImportError: `platform` is "tpu" and libtpu is not installed.
      ValueError: there is no such topology or platform, or the mesh has more
        devices than it.
      TypeError: `sharding` holds something else than a `NamedSharding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from adamw_jax import adamw, cost
      >>> params = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
      >>> cost(adamw(1e-3), params, platform="cpu").floor // 512**2
      28.0
    """
    tx = lift(tx, "cost")
    devices = machines.topology(topology) if platform == "tpu" else machines.at_hand(platform)
    placed = _placed(tx, params, sharding, devices)
    compiled = _compile(tx, *placed, extra)
    program = hlo.parse(compiled.as_text())
    moved = hlo.traffic(program)
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    kind = devices[0].device_kind
    return Cost(
        expression=tx,
        device=f"{kind}, {topology}" if platform == "tpu" else kind,
        devices=len(jax.tree.leaves(placed)[0].sharding.device_set),
        parameters=sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params)),
        floor=hlo.floor(program),
        temporaries=memory.temp_size_in_bytes if memory else 0,
        flops=analysis.get("flops", 0.0),
        compiler_bytes=analysis.get("bytes accessed", 0.0),
        bandwidth=machines.bandwidth(devices),
        **moved._asdict(),
    )


def _compile(tx: Transformation, params: Any, state: Any, extra: Mapping[str, Any]) -> Any:
    """The donated update, with results sharded like the arguments that they replace."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    out = jax.tree.map(lambda x: x.sharding, (params, state))
    step = jax.jit(update, donate_argnums=(0, 1), out_shardings=out)
    return step.trace(params, state, params).lower().compile()


def _placed(tx: Transformation, params: Any, sharding: Any, devices: list) -> tuple[Any, Any]:
    """Abstract parameters and state, each where it lives."""
    flat, treedef = jax.tree.flatten(params)
    if not flat:
        raise ValueError(f"cost: params is {params!r}. Pass a tree with at least one array.")
    if sharding is None:
        everywhere: Sharding = SingleDeviceSharding(devices[0])
        homes: list[Any] = [everywhere] * len(flat)
    else:
        is_sharding = lambda x: isinstance(x, Sharding)
        given = jax.tree.broadcast(sharding, params, is_leaf=is_sharding)
        homes = [machines.laid_out(x, devices) for x in jax.tree.leaves(given, is_leaf=is_sharding)]
        everywhere = NamedSharding(homes[0].mesh, PartitionSpec())
    abstract = lambda x, home: jax.ShapeDtypeStruct(jnp.shape(x), trees.dtype_of(x), sharding=home)
    known = [abstract(x, home) for x, home in zip(flat, homes, strict=True)]
    params = treedef.unflatten(known)
    arrays, state_def = jax.tree.flatten(jax.eval_shape(tx.init, params))
    kept = []
    for held, x in zip(leaves.state(tx, params), arrays, strict=True):
        own = None if held.leaf is None else known[held.leaf]
        alone = own is None or own.shape != x.shape
        kept.append(abstract(x, everywhere if alone else homes[held.leaf or 0]))
    return params, state_def.unflatten(kept)
