"""Digests: 32 bits that tell whether an array is what it was.

A digest is computed where the array is.  It is a sum over elements modulo 2^32, so
it is the same however the array is sharded, and nothing but that sum is moved.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(array: Any) -> int:
    """32 bits that differ if one element does; if many do, all but once in 4 billion times."""
    if isinstance(array, np.ndarray):  # JAX may not have 64 bits
        if array.dtype.kind == "c":
            array = np.stack([array.real, array.imag])
        if array.dtype.itemsize == 8:
            array = np.ascontiguousarray(array[..., None]).view(np.uint32)
    return int(_hash(array))


@jax.jit
def _hash(x: jax.Array) -> jax.Array:
    """A sum of hashes, each of an element's bits and its place (MurmurHash3's finalizer)."""
    words = _words(x)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no reshape, which would gather what is sharded
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += iota * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    h = words ^ (place * jnp.uint32(0x9E3779B9))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as 32-bit words, two for one of 64 bits."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}"))
    if x.dtype.itemsize == 8:
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return x.astype(jnp.uint32)
