"""Handwritten digits with Flax NNX and AdamW: the shortest honest training loop.

The test digits are looked at once, at the end.

    python examples/train_nnx.py --steps 500
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adamw_jax import adamw, cosine


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


def main(steps, batch_size=64):
    images, labels = load_digits(return_X_y=True)
    arrays = train_test_split(jnp.float32(images) / 16, labels, test_size=0.2, random_state=0)
    images, test_images, labels, test_labels = map(jnp.asarray, arrays)

    tx = adamw(cosine(1e-2, steps), weight_decay=1e-2)
    # Any piece can be swapped.  Without the correction under the root it is another optimizer:
    # tx = swap(tx, "direction.denominator.correction", identity())
    print(tx)

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for step, key in enumerate(jax.random.split(jax.random.key(1), steps), 1):
        batch = jax.random.choice(key, len(images), (batch_size,), replace=False)
        loss = train_step(model, optimizer, images[batch], labels[batch])
        if step % 100 == 0 or step == steps:
            print(f"step {step}: training loss {loss:.4f}")

    accuracy = (model(test_images).argmax(axis=-1) == test_labels).mean()
    print(f"test accuracy {accuracy:.2%} on {len(test_labels)} digits never trained on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
