"""A training run that can be killed at any moment.  test_checkpoints.py does.

python tests/interrupted.py DIRECTORY RESULT --steps 100 --every 10
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adamw_jax import adamw, chain, clip_by_global_norm, cosine
from adamw_jax.checkpoints import Checkpoints

EXAMPLES, BATCH = 256, 32


class Network(nnx.Module):
    """With random streams and batch statistics: both must survive."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.output = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        return self.output(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


@nnx.jit
def train_step(model, optimizer, xs, labels):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(xs), labels).mean()

    optimizer.update(model, nnx.grad(loss_fn)(model))


def batch_at(position, key):
    """Which examples come after so many: a new order each epoch, from the position alone."""
    epoch, start = divmod(position, EXAMPLES)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), EXAMPLES)
    return order[start : start + BATCH]


def main(directory, result, steps, every):
    data = np.random.default_rng(0)
    xs = jnp.asarray(data.normal(size=(EXAMPLES, 16)), jnp.float32)
    labels = jnp.asarray(data.integers(4, size=EXAMPLES))
    model = Network(nnx.Rngs(0))
    tx = chain(clip_by_global_norm(1.0), adamw(cosine(1e-2, steps), weight_decay=1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    order = {"position": 0, "key": jax.random.key(1)}

    with Checkpoints(directory) as checkpoints:
        tree = {"train": nnx.state((model, optimizer)), "order": order}
        start, tree = checkpoints.restore(tree)
        nnx.update((model, optimizer), tree["train"])
        order = tree["order"]
        print("start", start, flush=True)
        for step in range(start + 1, steps + 1):
            batch = batch_at(**order)
            train_step(model, optimizer, xs[batch], labels[batch])
            order["position"] += BATCH
            if step % every == 0:
                train = nnx.state((model, optimizer))
                checkpoints.save(step, {"train": train, "order": order})

    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(nnx.state((model, optimizer))))
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    np.savez(result, **{jax.tree_util.keystr(path): plain(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("result")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10)
    main(**vars(parser.parse_args()))
