"""The paths of the state are a public interface: checkpoints and dashboards name them.

If one changes on purpose, say so in the changelog and write the file again:
`PYTHONPATH=tests python tests/test_state_paths.py`.
"""

import pathlib

import jax
import jax.numpy as jnp
import zoo

GOLDEN = pathlib.Path(__file__).parent / "golden" / "state_paths.txt"


def state_paths():
    """One line for every array of every optimizer's state, for one bfloat16 parameter w."""
    lines = []
    for row in zoo.ROWS:
        state = row.tx().init({"w": jnp.zeros(row.shape, jnp.bfloat16)})
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            lines.append(f"{row.name}: {name} {leaf.dtype}[{','.join(map(str, leaf.shape))}]")
    return "\n".join(lines) + "\n"


def test_state_paths():
    assert state_paths() == GOLDEN.read_text()


if __name__ == "__main__":
    GOLDEN.write_text(state_paths())
