"""Comparing trees, with a sentence where they differ."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.core.trees import first_difference, is_key, path_text


class Broken(Exception):
    """The property does not hold; the message says where."""


def as_numpy(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def assert_same_structure(tree: Any, other: Any, what: str) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(other):
        where = first_difference(tree, other)
        raise Broken(f"{what} differ{f' first at {where!r}' if where else ' in their containers'}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other), strict=True)
    for (path, x), y in pairs:
        if jnp.shape(x) != jnp.shape(y):
            shapes = f"{jnp.shape(x)} and {jnp.shape(y)}"
            raise Broken(f"{what} differ: {path_text(path)!r} has shapes {shapes}.")


def assert_same(tree: Any, other: Any, what: str, tolerance: float) -> None:
    """Raises where two trees differ by more than rounding, leaf by leaf."""
    assert_same_structure(tree, other, what)
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other), strict=True)
    for (path, x), y in pairs:
        x, y = as_numpy(x), as_numpy(y)
        if np.array_equal(x, y, equal_nan=x.dtype.kind in "fc"):
            continue
        wide = np.complex128 if x.dtype.kind == "c" else np.float64
        gap = np.max(np.abs(x.astype(wide) - y.astype(wide)))
        size = np.max(np.abs(y.astype(wide)))
        if not gap <= tolerance * size:
            raise Broken(f"{what} differ at {path_text(path)!r} by {gap:.2g}, of {size:.2g}.")


def assert_finite(tree: Any, what: str) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        bad = np.count_nonzero(~np.isfinite(as_numpy(x).astype(complex)))
        if bad:
            raise Broken(f"{what}: {path_text(path)!r} holds {bad} elements that are not finite.")
