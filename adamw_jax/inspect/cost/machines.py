"""Machines to compile for: TPUs that need not be there, and the machine at hand."""

import contextlib
import functools
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

# Bytes a second between a chip and its main memory, by JAX's name of the device.  From the
# table "Key specifications" of each page cloud.google.com/tpu/docs/<v4, v5e, v5p, v6e>.
BANDWIDTH = {
    "TPU v4": 1200e9,
    "TPU v5 lite": 819e9,
    "TPU v5": 2765e9,
    "TPU v6 lite": 1638e9,
}


# What libtpu would ask the machine it runs on, and leave to one process at a time.
COMPILE_ONLY = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@functools.cache
def _mesh(shape: tuple[int, ...], names: tuple[str, ...], devices: tuple) -> Mesh:
    return Mesh(np.array(devices).reshape(shape), names)


def laid_out(sharding: Any, devices: list) -> NamedSharding:
    """The same sharding over the devices compiled for."""
    if not isinstance(sharding, NamedSharding):
        raise TypeError(
            f"cost: sharding holds {sharding!r}. Pass a jax.sharding.NamedSharding, or a tree of "
            "them shaped like the parameters."
        )
    shape = tuple(sharding.mesh.shape.values())
    if math.prod(shape) > len(devices):
        raise ValueError(
            f"cost: the mesh {dict(sharding.mesh.shape)} has {math.prod(shape)} devices, there are "
            f"{len(devices)} of {devices[0].device_kind}. Name a larger topology, or use fewer."
        )
    names = tuple(sharding.mesh.axis_names)
    return NamedSharding(_mesh(shape, names, tuple(devices[: math.prod(shape)])), sharding.spec)


def at_hand(platform: str | None) -> list:
    try:
        return jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(
            f"cost: there is no platform {platform!r} here. Choose {jax.default_backend()!r}, "
            "which is, or 'tpu', which need not be."
        ) from error


@functools.cache
def topology(name: str) -> list:
    """The devices of a TPU topology, none of which need exist."""
    attached = any(device.platform == "tpu" for device in jax.devices())
    if not attached and importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "cost: compiling for a TPU needs libtpu, which is not installed. Run "
            f"pip install 'adamw-jax[tpu-aot]', or choose platform {jax.default_backend()!r}, "
            "which is at hand."
        )
    try:
        with _environment({} if attached else COMPILE_ONLY):
            return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"cost: libtpu knows no topology {name!r} ({str(error).splitlines()[0]}). Name a chip "
            "and how many, for example v5e:2x2x1 or v5p:2x2x2."
        ) from error


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are not set, set for a while."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def bandwidth(devices: list) -> float | None:
    """Of one device, which may be one of two cores that share a chip."""
    whole = BANDWIDTH.get(devices[0].device_kind)
    if whole is None:
        return None
    chips = {tuple(device.coords) for device in devices}
    return whole * len(chips) / len(devices)
