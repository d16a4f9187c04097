"""Many machines: two processes that talk over the loopback train as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import OPTIMIZERS, SHAPES

ROOT = Path(__file__).parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(processes, out):
    """The path of the parameters, trained by so many processes."""
    script, port = str(ROOT / "tests" / "processes.py"), free_port()
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(processes), str(port), str(out)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, said
    return dict(np.load(out))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    one, two = (train(n, tmp_path / f"{n}.npz") for n in (1, 2))
    assert set(one) == {f"{o} {i} {leaf}" for o in OPTIMIZERS for i in range(20) for leaf in SHAPES}
    assert set(two) == set(one)
    for name, x in one.items():
        np.testing.assert_allclose(two[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    moved = [np.abs(one[f"{o} 19 up"] - one[f"{o} 0 up"]).max() for o in OPTIMIZERS]
    assert min(moved) > 0.05  # they did train
