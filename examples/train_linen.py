"""Handwritten digits with Flax Linen and AdamW: the shortest honest training loop.

The test digits are looked at once, at the end.

    python examples/train_linen.py --steps 500
    python examples/train_linen.py --optimizer "schedule_free_adamw(1e-2)"
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adamw_jax import adamw, chain, clip_by_global_norm, cosine, parse
from adamw_jax.flax import TrainState


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(images)))


def kernels(params):
    """Decay matrices, not biases."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@jax.jit
def train_step(state, images, labels):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main(steps, optimizer, batch_size=64):
    images, labels = load_digits(return_X_y=True)
    arrays = train_test_split(jnp.float32(images) / 16, labels, test_size=0.2, random_state=0)
    images, test_images, labels, test_labels = map(jnp.asarray, arrays)

    inner = adamw(cosine(1e-2, steps), weight_decay=1e-2, mask=kernels)
    tx = chain(clip=clip_by_global_norm(1.0), adamw=parse(optimizer) if optimizer else inner)
    # Any piece can be swapped.  With nothing to divide by it is momentum, clipped and decayed:
    # tx = swap(tx, "adamw.direction", part(tx, "adamw.direction.numerator"))
    print(tx)

    network = Network()
    params = network.init(jax.random.key(0), images[:1])["params"]
    state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
    for step, key in enumerate(jax.random.split(jax.random.key(1), steps), 1):
        batch = jax.random.choice(key, len(images), (batch_size,), replace=False)
        state, loss = train_step(state, images[batch], labels[batch])
        if step % 100 == 0 or step == steps:
            print(f"step {step}: training loss {loss:.4f}")

    logits = network.apply({"params": state.eval_params}, test_images)  # some optimizers average
    accuracy = (logits.argmax(axis=-1) == test_labels).mean()
    print(f"test accuracy {accuracy:.2%} on {len(test_labels)} digits never trained on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--optimizer", help='in the place of AdamW, such as "lion(1e-3)"')
    main(**vars(parser.parse_args()))
