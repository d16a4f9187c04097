"""Handwritten digits on a mesh of devices: data and model parallel, with ZeRO-1 and Muon.

It makes eight devices of the CPU, so it runs on a laptop; `--devices 0` takes the TPUs
or GPUs that are there.

    python examples/train_sharded.py --steps 200
"""

import argparse

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from adamw_jax import muon, replace, sharding_report, state_sharding, warmup_stable_decay


class Network(nnx.Module):
    def __init__(self, width, rngs):
        self.embed = nnx.Linear(64, width, rngs=rngs)
        self.up = nnx.List([nnx.Linear(width, 2 * width, rngs=rngs) for _ in range(4)])
        self.down = nnx.List([nnx.Linear(2 * width, width, rngs=rngs) for _ in range(4)])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(nnx.relu(up(x)))
        return self.head(x)


def spec(path, leaf):
    """Each `up` splits its outputs over the model axis, each `down` its inputs."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.startswith("up/"):
        return PartitionSpec(*[None] * (leaf.ndim - 1), "model")
    return PartitionSpec("model") if "down" in name and leaf.ndim == 2 else PartitionSpec()


def bytes_here(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def main(steps, width, batch_size=64):
    count = jax.device_count()
    shape = (count // 2, 2) if count % 2 == 0 else (count, 1)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    print(f"mesh: {dict(mesh.shape)}")

    # Newton-Schulz on whole matrices, each device its share of every stack of them.
    rate = warmup_stable_decay(0.02, steps, warmup_steps=steps // 10, decay_steps=steps // 5)
    tx = replace(muon(rate), "muon.orthogonalize", stack_axis=("model", "data"))

    graph, params = nnx.split(Network(width, nnx.Rngs(0)), nnx.Param)
    sharding = lambda path, leaf: NamedSharding(mesh, spec(path, leaf))
    params = jax.device_put(params, jax.tree_util.tree_map_with_path(sharding, params))
    placing = state_sharding(tx, params, mesh, zero_axis="data")
    state = jax.jit(tx.init, out_shardings=placing)(params)
    report = sharding_report(tx, params, mesh, zero_axis="data")
    for place in report:
        if place.fallback:
            print(f"not spread: {place.path}: {place.fallback}")
    alone = sum(x.nbytes for x in jax.tree.leaves(state))
    print(f"optimizer bytes: {alone} in all, {bytes_here(state)} on each device")

    def loss_fn(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def train_step(params, state, images, labels):
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    kept = jax.tree.map(lambda x: x.sharding, params), placing, None
    train_step = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=kept)

    images, labels = load_digits(return_X_y=True)
    images, labels = np.float32(images) / 16, np.int32(labels)
    over_data = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(jax.process_index())
    with jax.set_mesh(mesh):  # for the stacks
        for step in range(1, steps + 1):
            # Every process draws its own part of the batch and hands over that alone.
            batch = rng.choice(len(images), batch_size // jax.process_count(), replace=False)
            local = images[batch], labels[batch]
            x, y = (jax.make_array_from_process_local_data(over_data, a) for a in local)
            params, state, loss = train_step(params, state, x, y)
            if step % 50 == 0 or step == steps:
                print(f"step {step}: training loss {loss:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--devices", type=int, default=8, help="so many of the CPU; 0: real ones")
    arguments = parser.parse_args()
    if arguments.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", arguments.devices)
        # Two steps in flight could wait for each other where devices outnumber cores.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    main(arguments.steps, arguments.width)
