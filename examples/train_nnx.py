"""Handwritten digits with Flax NNX and AdamW: the shortest honest training loop.

The test digits are looked at once, at the end.

    python examples/train_nnx.py --steps 500
    python examples/train_nnx.py --optimizer "schedule_free_adamw(1e-2)"
    python examples/train_nnx.py --checkpoints out/nnx    # stop it, start it again: it goes on
"""

import argparse
import contextlib

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adamw_jax import adamw, cosine, parse
from adamw_jax.flax import evaluation_model


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return self.output(nnx.relu(self.hidden(images)))


def loss_fn(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def train_step(model, optimizer, images, labels):
    loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss


def open_checkpoints(directory):
    from adamw_jax.checkpoints import Checkpoints  # needs orbax-checkpoint

    return Checkpoints(directory)


def main(steps, optimizer, checkpoints, batch_size=64):
    images, labels = load_digits(return_X_y=True)
    arrays = train_test_split(jnp.float32(images) / 16, labels, test_size=0.2, random_state=0)
    images, test_images, labels, test_labels = map(jnp.asarray, arrays)

    tx = parse(optimizer) if optimizer else adamw(cosine(1e-2, steps), weight_decay=1e-2)
    # Any piece can be swapped.  Without the correction under the root it is another optimizer:
    # tx = swap(tx, "direction.denominator.correction", identity())
    print(tx)

    model = Network(nnx.Rngs(0))
    optimizer, start = nnx.Optimizer(model, tx, wrt=nnx.Param), 0
    with open_checkpoints(checkpoints) if checkpoints else contextlib.nullcontext() as saved:
        if saved:
            start, state = saved.restore(nnx.state((model, optimizer)))
            nnx.update((model, optimizer), state)
            print(f"starts after step {start}")
        for step in range(start + 1, steps + 1):
            key = jax.random.fold_in(jax.random.key(1), step)  # the step is the data's position
            batch = jax.random.choice(key, len(images), (batch_size,), replace=False)
            loss = train_step(model, optimizer, images[batch], labels[batch])
            if step % 100 == 0 or step == steps:
                print(f"step {step}: training loss {loss:.4f}")
                if saved:
                    saved.save(step, nnx.state((model, optimizer)))

    model = evaluation_model(model, optimizer)  # some optimizers average
    accuracy = (model(test_images).argmax(axis=-1) == test_labels).mean()
    print(f"test accuracy {accuracy:.2%} on {len(test_labels)} digits never trained on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--optimizer", help='such as "lion(1e-3)"')
    parser.add_argument("--checkpoints", metavar="DIR", help="save here, and go on from here")
    main(**vars(parser.parse_args()))
