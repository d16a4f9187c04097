"""One of the processes of a training run: python processes.py RANK PROCESSES PORT OUT.

Four devices in all, whatever the number of processes.  Rank 0 writes the path of the
parameters to OUT.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamw_jax as aj

OPTIMIZERS = {
    "adamw": aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.01)),
    "muon": aj.replace(aj.muon(0.01), "muon.orthogonalize", stack_axis=("model", "data")),
}
SPECS = {"up": P(None, "model"), "mid": P("model", None), "out": P(None, None), "bias": P()}
SHAPES = {"up": (16, 32), "mid": (32, 16), "out": (16, 16), "bias": (16,)}


def loss(params, x, y):
    hidden = jnp.tanh(jnp.tanh(x @ params["up"]) @ params["mid"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def train(tx, mesh, steps=20, batch=8):
    """The parameters after each step, whole, as NumPy arrays."""
    rng = np.random.default_rng(0)
    on_mesh = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    start = {k: np.float32(rng.normal(size=shape) / 4) for k, shape in SHAPES.items()}
    params = {
        k: jax.make_array_from_callback(v.shape, on_mesh[k], v.__getitem__)
        for k, v in start.items()
    }
    placing = aj.state_sharding(tx, params, mesh, zero_axis="data")
    state = jax.jit(tx.init, out_shardings=placing)(params)

    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(on_mesh, placing))
    whole = jax.jit(lambda params: params, out_shardings=NamedSharding(mesh, P()))
    mine = batch // jax.process_count()
    rows = slice(jax.process_index() * mine, (jax.process_index() + 1) * mine)
    path = []
    for _ in range(steps):
        data = (np.float32(rng.normal(size=(batch, 16)))[rows] for _ in range(2))
        over_data = NamedSharding(mesh, P("data"))
        x, y = (jax.make_array_from_process_local_data(over_data, a) for a in data)
        params, state = step(params, state, x, y)
        path.append(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole(params)))
    return path


def main(rank, processes, port, out):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // processes)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=rank)
    assert jax.device_count() == 4
    assert jax.process_count() == processes
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    # Along the data axis one process ends and the other begins.
    assert len({d.process_index for d in mesh.devices[:, 0]}) == processes
    with jax.set_mesh(mesh):
        paths = {name: train(tx, mesh) for name, tx in OPTIMIZERS.items()}
    if rank == 0:
        arrays = {
            f"{name} {i} {leaf}": x
            for name, path in paths.items()
            for i, params in enumerate(path)
            for leaf, x in params.items()
        }
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
