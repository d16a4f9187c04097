"""Writers: `metrics(state)` to a file, one step at a time."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

_SPELLED = {math.inf: "Infinity", -math.inf: "-Infinity"}


class _Writer(contextlib.AbstractContextManager):
    """What is open until it is closed."""

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError  # each kind of file is closed in its own way

    def write(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Writes what was measured at a step; waits for values that are still computed."""
        raise NotImplementedError


class JSONLWriter(_Writer):
    """Writes one line of JSON a step, `{"step": 3, "grad_rms": 0.5, ...}`.

    Every line is valid JSON and on disk when `write` returns, so that a run
    that dies leaves all it wrote.  JSON has no word for what is not finite: it
    becomes the string "NaN", "Infinity" or "-Infinity", which `float` reads.

    Args:
      path: the file; lines are added to what is there, as a resumed run wants.
        A last line that was cut off stays as it is, on its own.

    Example:
      >>> import tempfile
      >>> from adamw_jax import JSONLWriter
      >>> with tempfile.NamedTemporaryFile("r") as file:
      ...     with JSONLWriter(file.name) as writer:
      ...         writer.write(3, {"loss": 0.5, "grad_rms": float("nan")})
      ...     print(file.read(), end="")
      {"step": 3, "loss": 0.5, "grad_rms": "NaN"}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        if os.path.isfile(path) and _is_cut_off(path):  # a pipe cannot be looked at
            self._file.write(b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, step: Any, metrics: Mapping[str, Any]) -> None:
        line = {"step": int(step)} | {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()


def _is_cut_off(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends in the midst of a line."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() not in (b"", b"\n")


def _plain(value: Any) -> Any:
    """A number, an array or a string as JSON has it."""
    return value if isinstance(value, str) else _spelled(np.asarray(value).tolist())


def _spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelled(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _SPELLED.get(value, "NaN")
    return value


class TensorBoardWriter(_Writer):
    """Writes scalars for TensorBoard, one curve a name.

    Args:
      directory: of the run, made if it is not there.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoardWriter: tensorboardX is not installed. "
                "Run: pip install 'adamw-jax[tensorboard]'."
            ) from None
        self._writer = SummaryWriter(os.fspath(directory))

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        self._writer.close()

    def write(self, step: Any, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), int(step))
