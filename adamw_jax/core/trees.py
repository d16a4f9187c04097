"""Trees of arrays: paths, precision, checks, and one update per leaf.

Nothing here knows what an optimizer is.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along a tree path.  Flax boxes parameters at `init` only, so a
    trailing `.value` is dropped: both calls then see the same path."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return tuple(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def path_text(path: tuple[Any, ...]) -> str:
    """A tree path as one string, `layer/kernel`; a bare leaf is called "(root)"."""
    return "/".join(path_names(path)) or "(root)"


def dtype_of(x: Any) -> Any:
    """The dtype of an array, a number or an abstract value, as JAX will hold it."""
    known = hasattr(x, "dtype") and not isinstance(x, np.ndarray | np.generic)
    return x.dtype if known else jnp.result_type(x)


def real_dtype(dtype: Any) -> Any:
    """float32 for float32 and complex64, float64 for float64 and complex128, ..."""
    return jnp.finfo(dtype).dtype


def widest(*dtypes: Any) -> Any:
    """The real dtype with the most bits among those of some dtypes.  Said here because
    strict dtype promotion refuses to choose."""
    return max(map(real_dtype, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def in_precision(x: jax.Array, dtype: Any) -> jax.Array:
    """x in the precision of a dtype: what is complex stays complex, and real what is real."""
    if x.dtype == dtype:
        return x
    real = real_dtype(dtype)
    if not jnp.iscomplexobj(x):
        return x.astype(real)
    return x.astype(jnp.complex128 if jnp.finfo(real).bits > 32 else jnp.complex64)


def cast(number: Any, like: Any) -> jax.Array:
    """A hyperparameter in the dtype of the array it is about to meet.

    Explicit, so that strict dtype promotion holds and an array-valued
    hyperparameter never widens or narrows the arithmetic."""
    return jnp.asarray(number, dtype_of(like))


def copies(tree: Any) -> Any:
    """The tree in memory of its own, weakly typed leaves with their dtype for good."""
    return jax.tree.map(lambda x: jnp.array(x, dtype_of(x)), tree)


def widen(tree: Any) -> Any:
    """The tree with 16-bit (and smaller) floats as float32."""

    def leaf(x: Any) -> Any:
        dtype = dtype_of(x)
        if jnp.finfo(dtype).bits >= 32:
            return x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
        return jnp.asarray(x, jnp.float32)

    return jax.tree.map(leaf, tree)


def narrow(tree: Any, like: Any) -> Any:
    """The tree in the dtypes of `like`, where it has the same structure."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        return tree

    # A statistic of complex gradients may be real, and stays so.
    return jax.tree.map(lambda x, y: in_precision(x, dtype_of(y)), tree, like)


def first_difference(tree: Any, other: Any) -> str | None:
    """The first path that one tree has and the other has not."""
    paths = [path_text(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    others = [path_text(p) for p, _ in jax.tree_util.tree_leaves_with_path(other)]
    lonely = [p for p in others if p not in set(paths)] + [p for p in paths if p not in set(others)]
    return lonely[0] if lonely else None


def check_parameters(function: str, params: Any) -> None:
    """Raises where a leaf is not a floating-point or complex array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        _check_inexact(function, "parameter", path, leaf)


def _check_inexact(function: str, what: str, path: tuple[Any, ...], leaf: Any) -> None:
    try:
        dtype = dtype_of(leaf)
    except TypeError:
        raise ValueError(
            f"{function}: {what} '{path_text(path)}' is {leaf!r}. Pass a tree of arrays."
        ) from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"{function}: {what} '{path_text(path)}' has dtype {dtype}. Optimize floating-point "
            "leaves only: take the others out of the tree or put None in their place."
        )


def check_updates(function: str, updates: Any, params: Any = None) -> None:
    """Raises where a gradient is not a floating-point or complex array, or where the
    gradients do not have the structure and shapes of the parameters, if there are any."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(updates)
    for path, g in paths:
        _check_inexact(function, "the gradient of", path, g)
    if params is None:
        return
    if treedef != jax.tree.structure(params):
        where = first_difference(updates, params)
        what = (
            f"differ first at '{where}'"
            if where
            else f"are {treedef} and {jax.tree.structure(params)}"
        )
        raise ValueError(
            f"{function}: the trees of gradients and parameters {what}. Pass the gradient of "
            "every parameter, in the same containers."
        )
    for (path, g), p in zip(paths, jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"{function}: the gradient of '{path_text(path)}' has shape {jnp.shape(g)}, its "
                f"parameter {jnp.shape(p)}. They must be equal; nothing is broadcast."
            )


def branches_of(function: str, fork: Any, *names: str) -> list[Any]:
    """The branches of a fork with these names, or a `KeyError` that says which there are."""
    if hasattr(fork, "each"):  # what a reading passes along in the place of arrays
        return [fork[name] for name in names]
    there = fork if isinstance(fork, dict) else {}
    for name in names:
        if name not in there:
            raise KeyError(
                f"{function}: there is no branch {name!r}; there are: {', '.join(there) or 'none'}."
                f" Put {function} after a fork that has it, such as fork({name}=identity(), ...)."
            )
    return [fork[name] for name in names]


def check_not_grown(function: str, new: Any, updates: Any) -> None:
    """Raises where an array among the hyperparameters has broadcast an update."""
    if jax.tree.structure(new) != jax.tree.structure(updates):
        return  # a statistic of another form
    for (path, x), g in zip(
        jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(updates), strict=True
    ):
        if jnp.shape(x) != jnp.shape(g) and jnp.size(x) >= jnp.size(g):
            raise ValueError(
                f"{function}: the update of '{path_text(path)}' has shape {jnp.shape(x)}, its "
                f"gradient {jnp.shape(g)}: a hyperparameter is an array. Pass numbers, or map "
                "over the array with jax.vmap."
            )


def is_key(x: Any) -> bool:
    """Whether an array holds typed PRNG keys."""
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def is_bare(tree: Any) -> bool:
    """Whether a tree is one leaf, or has none: there is nothing to deal out."""
    return jax.tree.structure(tree).num_leaves == 0 or bool(jax.tree_util.all_leaves([tree]))


def update_each_leaf(tx: Any, update_leaf: Any, updates: Any, state: Any, params: Any) -> Any:
    """Updates a tree leaf by leaf with a function that JAX traces once per leaf shape.

    Every subtree of the state that is shaped like the updates is dealt out,
    one leaf a call; the rest of the state (counts) goes to every call, and
    since each returns the same new value, the first is kept.
    """
    leaves, treedef = jax.tree.flatten(updates)
    like_updates = lambda x: jax.tree.structure(x) == treedef
    nodes, statedef = jax.tree.flatten(state, is_leaf=like_updates)
    dealt = [jax.tree.leaves(node) if like_updates(node) else None for node in nodes]
    param_leaves = [None] * len(leaves) if params is None else jax.tree.leaves(params)
    if len(param_leaves) != len(leaves):
        raise ValueError(
            f"{tx.factory.__name__}: got {len(leaves)} arrays of updates for {len(param_leaves)} "
            "parameters. Pass one each; of the branches of a fork make one by merge or pick."
        )
    out, columns = [], []
    for i, (leaf, param) in enumerate(zip(leaves, param_leaves, strict=True)):
        own = [
            node if column is None else column[i] for node, column in zip(nodes, dealt, strict=True)
        ]
        new, own = update_leaf(tx, leaf, statedef.unflatten(own), param)
        out.append(new)
        columns.append(statedef.flatten_up_to(own))
    gathered = [
        values[0] if column is None else treedef.unflatten(values)
        for column, values in zip(dealt, zip(*columns, strict=True), strict=True)
    ]
    return treedef.unflatten(out), statedef.unflatten(gathered)


def is_function(x: Any) -> bool:
    """Whether a mask or a rule is a function, and not a tree that can be called, as a model is
    and what is shaped like it."""
    inside = any(leaf is not x for leaf in jax.tree.leaves(x))
    bound = isinstance(x, jax.tree_util.Partial) or hasattr(x, "__func__")
    return callable(x) and (bound or not inside)


def paths_of(tree: Any) -> list[tuple[str, ...]]:
    """The path of every leaf, and of those that `select` has taken out."""
    absent = lambda x: isinstance(x, optax.MaskedNode)
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=absent)
    return [path_names(path) for path, _ in found]


def check_mask(function: str, mask: Any) -> None:
    """Raises where a mask given as a tree holds something else than bools."""
    if is_function(mask):
        return
    for path, flag in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(flag, bool | np.bool_):
            where = f"mask leaf '{path_text(path)}'" if path else "mask"
            raise ValueError(
                f"{function}: {where} is {flag!r}. Use True or False, a tree of them shaped like "
                "the parameters, or a function from parameters to one."
            )


def mask_flags(function: str, mask: Any, tree: Any) -> list[bool]:
    """One bool per leaf of `tree`, matched by path; a mask may be a prefix."""
    mask = mask(tree) if is_function(mask) else mask
    check_mask(function, mask)
    by_path = {path_names(path): flag for path, flag in jax.tree_util.tree_leaves_with_path(mask)}
    known = lambda names: (names[:n] for n in range(len(names), -1, -1) if names[:n] in by_path)
    used = {next(known(names), None) for names in paths_of(tree)}  # a route may see a part
    flags = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        prefix = next(known(path_names(path)), None)
        if prefix is None:
            raise ValueError(
                f"{function}: the mask says nothing of '{path_text(path)}'. "
                "Give it a True or False for every parameter, or for a prefix of its path."
            )
        flags.append(bool(by_path[prefix]))
    for prefix in by_path:
        if prefix not in used:
            raise ValueError(
                f"{function}: the mask names '{'/'.join(prefix) or '(root)'}', which no parameter "
                "has. Shape it like the parameters."
            )
    return flags


def select(tree: Any, flags: list[bool]) -> Any:
    """The tree with `optax.MaskedNode()` (no leaf) where the flag is False."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, flags, strict=True)
    return treedef.unflatten([x if flag else optax.MaskedNode() for x, flag in pairs])


def put_back(chosen: Any, tree: Any, flags: list[bool]) -> Any:
    """`tree` with the leaves whose flag is True taken from `chosen`, in order."""
    leaves, treedef = jax.tree.flatten(tree)
    new = iter(jax.tree.leaves(chosen))
    return treedef.unflatten([next(new) if f else x for x, f in zip(leaves, flags, strict=True)])
