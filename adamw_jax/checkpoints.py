"""Checkpoints: a run that dies goes on where it was, to the bit.

Orbax writes and reads, and a step appears on disk whole or not at all.  What it
does not notice is a disk that lost a file or changed a byte later: it may return
zeros or garbage.  So every step holds a record of its leaves, with a digest of
each, and what is read is compared with the record.
"""

import collections
import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.core.digests import digest
from adamw_jax.core.trees import is_bare, is_key, path_names, path_text

try:
    import orbax.checkpoint as ocp
except ImportError:
    raise ImportError(
        "adamw_jax.checkpoints: orbax-checkpoint is not installed. "
        "Run: pip install 'adamw-jax[checkpoints]'."
    ) from None


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The last checkpoints of a run, in a directory.

    Save whatever decides how the run goes on: model, optimizer state, random keys
    and the position in the data, as one tree of arrays, numbers and PRNG keys.

    Args:
      directory: of this run alone; made when the first checkpoint is saved.
      keep: the number of checkpoints to keep, those of the latest steps.

    Example:
      >>> import tempfile
      >>> from adamw_jax.checkpoints import Checkpoints
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     with Checkpoints(directory) as checkpoints:
      ...         start, tree = checkpoints.restore({"w": jnp.zeros(2), "position": 0})
      ...         checkpoints.save(start + 1, {"w": tree["w"] + 1, "position": 64})
      ...         checkpoints.restore(tree)
      (1, {'position': 64, 'w': Array([1., 1.], dtype=float32)})
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(f"Checkpoints: keep is {keep}. Keep at least 1, better 2.")
        directory = os.fspath(directory)
        self._directory = directory if "://" in directory else os.path.abspath(directory)
        self._keep = keep
        self._writer: Any = None
        self._damaged: list[Any] = []  # directories of steps

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until all is on disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def save(self, step: int, tree: Any) -> None:
        """Saves a tree after so many steps; returns once it may be changed or donated.

        The files are written meanwhile.  The next `save` and `close` wait for them.

        Raises:
          TypeError: a leaf is no array, number or PRNG key, or the step no count.
          ValueError: the directory holds that step or a later one; or the tree is a
            bare leaf, has none, or has two of one name.
        """
        _check(step, tree)
        arrays = jax.tree_util.tree_map_with_path(_array, tree)
        if self._writer is None:
            self._writer = self._open_writer()
        last = self._writer.latest_step()
        if last is not None and step <= last:
            raise ValueError(
                f"Checkpoints.save: step {step} does not come after step {last}, which is in "
                f"{self._directory}. Restore it first, or use another directory."
            )
        record = ocp.args.JsonSave(_sealed(_record(tree, arrays)))
        items = ocp.args.Composite(tree=ocp.args.StandardSave(arrays), record=record)
        self._writer.save(int(step), args=items, force=True)

    def restore(self, tree: Any) -> tuple[int, Any]:
        """`(step, tree)` of the newest whole checkpoint; `(0, tree)` itself if there is none yet.

        What is damaged or half written is skipped, with a warning that says what is
        wrong and which step is used.  Restoring changes nothing on disk; the next
        `save` moves damaged steps aside (to `7.damaged`) and removes half-written ones.

        Args:
          tree: like the one that was saved, with the same paths, shapes and dtypes,
            in the shardings to restore to.

        Raises:
          ValueError: `tree` does not have the leaves that were saved, or there are
            checkpoints and every one is damaged.
        """
        self.close()
        options = ocp.CheckpointManagerOptions(
            create=False, save_root_metadata=False, lightweight_initialize=True
        )
        with ocp.CheckpointManager(self._directory, options=options) as reader:
            if not reader.directory.exists():
                return 0, tree
            return self._newest_whole(reader, tree)

    def _newest_whole(self, reader: Any, tree: Any) -> tuple[int, Any]:
        names = sorted(path.name for path in reader.directory.iterdir())
        half = [name for name in names if ocp.utils.TMP_DIR_SUFFIX in name]
        problems = [f"{name} is half written" for name in half]
        self._damaged = []
        for step in sorted(reader.all_steps(), reverse=True):
            try:
                restored = _read(reader, step, tree)
            except _Damaged as damage:
                problems.append(f"step {step} is damaged ({damage})")
                self._damaged.append(reader.directory / str(step))
            else:
                _warn(problems, f"Step {step} is used instead.")
                return step, restored
        if self._damaged:
            raise ValueError(
                f"Checkpoints.restore: no checkpoint in {self._directory} is whole: "
                f"{'; '.join(problems)}. To start again, use another directory."
            )
        _warn(problems, "The run starts again.")
        return 0, tree

    def _open_writer(self) -> Any:
        if jax.process_index() == 0:
            for path in self._damaged:
                aside = path.with_name(f"{path.name}.damaged")
                if aside.exists():
                    aside.rmtree()
                path.rename(aside)
        self._damaged = []
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, cleanup_tmp_directories=True, lightweight_initialize=True
        )
        return ocp.CheckpointManager(self._directory, options=options)


class _Damaged(Exception):
    """What is on disk is not what was saved."""


def _warn(problems: Sequence[str], outcome: str) -> None:
    if problems:
        text = f"Checkpoints.restore: {'; '.join(problems)}. {outcome}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)  # 4: whoever called restore


def _check(step: Any, tree: Any) -> None:
    """Raises where what is saved could not be found again."""
    if np.asarray(step).dtype.kind not in "iu" or step < 0:
        raise TypeError(
            f"Checkpoints.save: step is {step!r}. Pass the number of steps so far, an integer."
        )
    if is_bare(tree):
        raise ValueError(f"Checkpoints.save: the tree is {tree!r}. Save a dict of what to keep.")
    paths = [path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for joint in "/.":  # the record's, and Orbax's for its files
        path, times = collections.Counter(map(joint.join, paths)).most_common(1)[0]
        if times > 1:
            raise ValueError(
                f"Checkpoints.save: {times} leaves are called '{path}'. Rename their keys."
            )


NUMBERS = bool | int | float | complex


def _array(path: tuple[Any, ...], leaf: Any) -> Any:
    """A leaf as an array that Orbax keeps: of a key its data, of a number 64 bits, and an
    empty array as one zero."""
    array = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if not isinstance(array, jax.Array):
        array = np.array(leaf)  # a copy: the leaf may change while the files are written
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"Checkpoints.save: leaf '{path_text(path)}' is {leaf!r}. Save arrays, numbers and "
            "PRNG keys, and take the rest out of the tree."
        )
    return array if array.size else np.zeros(1, array.dtype)


def _target(leaf: Any, dtype: str) -> Any:
    """What tells Orbax where a leaf goes: to the devices it is bound to, or else to NumPy."""
    if is_key(leaf):
        leaf, dtype = jax.eval_shape(jax.random.key_data, leaf), "uint32"
    elif np.size(leaf) and getattr(leaf, "committed", isinstance(leaf, jax.ShapeDtypeStruct)):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros(np.shape(leaf) if np.size(leaf) else 1, jnp.dtype(dtype))


def _like(leaf: Any, array: Any) -> Any:
    """What was restored, as the kind of thing that the leaf is."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and (is_key(leaf) or not leaf.size):
        leaf = jax.device_put(jnp.empty(leaf.shape, leaf.dtype), leaf.sharding)
    if not np.size(leaf):
        return leaf  # its shape and dtype are all there is
    if is_key(leaf):
        key = jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return jax.device_put(key, leaf.sharding) if leaf.committed else key
    if isinstance(leaf, jax.Array):
        return array if isinstance(array, jax.Array) else jnp.array(array)
    if isinstance(leaf, NUMBERS):  # as np.float64 is, too
        return type(leaf)(array[()])
    return array[()] if isinstance(leaf, np.generic) else array


def _record(tree: Any, arrays: Any) -> dict[str, list[Any]]:
    """Dtype, shape and digest of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        path_text(path): [
            str(leaf.dtype if is_key(leaf) else array.dtype),
            list(np.shape(leaf)),
            digest(array),
        ]
        for (path, leaf), array in zip(leaves, jax.tree.leaves(arrays), strict=True)
    }


def _sealed(record: Any) -> dict[str, Any]:
    return {"leaves": record, "crc32": zlib.crc32(json.dumps(record).encode())}


def _read(reader: Any, step: int, tree: Any) -> Any:
    """The tree of a step: what was saved, in the containers and shardings asked for."""
    sealed = _restored(reader, step, "record", ocp.args.JsonRestore())
    if not isinstance(sealed, dict) or _sealed(sealed.get("leaves")) != sealed:
        raise _Damaged("its record has changed")
    record = sealed["leaves"]
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {path_text(path): leaf for path, leaf in paths}
    _expect(step, record, leaves)
    targets = [_target(leaf, record[name][0]) for name, leaf in leaves.items()]
    restore = ocp.args.StandardRestore(treedef.unflatten(targets))
    arrays = treedef.flatten_up_to(_restored(reader, step, "tree", restore))
    for name, array in zip(leaves, arrays, strict=True):
        if digest(array) != record[name][2]:
            raise _Damaged(f"'{name}' has changed")
    return treedef.unflatten(map(_like, leaves.values(), arrays))


def _restored(reader: Any, step: int, item: str, args: Any) -> Any:
    try:
        return reader.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # a damaged file comes to light as any of many
        first, *_ = str(error).splitlines() or [""]
        raise _Damaged(f"its {item} cannot be read: {type(error).__name__}: {first}") from error


def _expect(step: int, record: dict[str, list[Any]], leaves: dict[str, Any]) -> None:
    """Raises where a tree does not have the leaves that were saved."""
    for name in [*record, *leaves]:
        if name not in record or name not in leaves:
            saved, here = f"step {step}", "the tree"
            has, lacks = (saved, here) if name in record else (here, saved)
            raise ValueError(
                f"Checkpoints.restore: {has} has '{name}', which {lacks} has not. Pass a tree "
                "like the one that was saved."
            )
        dtype, shape, _ = record[name]
        leaf = leaves[name]
        own = leaf.dtype if hasattr(leaf, "dtype") else np.array(leaf).dtype
        same = str(own) == dtype
        if isinstance(leaf, NUMBERS) and not same:  # such as a step that began as 0
            same = own.kind == jnp.dtype(dtype).kind
        if not same or list(np.shape(leaf)) != shape:
            raise ValueError(
                f"Checkpoints.restore: '{name}' was saved as {dtype}{shape}, and the tree has "
                f"{own}{list(np.shape(leaf))}. Pass a tree like the one that was saved."
            )
