"""Tasks: data, a network, a loss, and the split that keeps us honest.

A task is three functions and three sets of examples.  The network is a Flax NNX
module split once into its (static) graph and its parameters, so that everything
downstream is a pure function of a parameter tree and may be vmapped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

Params = Any


class Batch(NamedTuple):
    """Examples: inputs [n, features] and integer labels [n]."""

    inputs: jax.Array
    labels: jax.Array


class Scores(NamedTuple):
    """Mean cross-entropy (nats) and the share of correct answers."""

    loss: Any
    accuracy: Any


@dataclass(frozen=True)
class Task:
    """What an arm is trained and judged on.

    Attributes:
      name: one line for the report.
      init: from a PRNG key to parameters.
      predict: from parameters and inputs to logits [n, classes].
      train: the examples gradients are taken on.
      validation: the examples learning rates are chosen on.
      test: the examples results are reported on.
    """

    name: str
    init: Callable[[jax.Array], Params]
    predict: Callable[[Params, jax.Array], jax.Array]
    train: Batch
    validation: Batch
    test: Batch

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy in nats."""
        logits = self.predict(params, batch.inputs)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    def scores(self, params: Params, batch: Batch) -> Scores:
        """Loss and accuracy."""
        right = self.predict(params, batch.inputs).argmax(axis=-1) == batch.labels
        return Scores(self.loss(params, batch), right.mean(dtype=jnp.float32))


class Perceptron(nnx.Module):
    """Features -> hidden (ReLU) -> classes."""

    def __init__(self, features: int, hidden: int, classes: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.hidden(x)))


def digits(hidden: int = 64) -> Task:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels, 60/20/20 %.

    Pixels are standardised with the training part's mean and deviation.  The
    split is fixed: it does not change with the seed of a run.
    """
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    train, validation, test = np.split(order, [int(0.6 * len(order)), int(0.8 * len(order))])
    mean, deviation = images[train].mean(axis=0), images[train].std(axis=0)
    images = (images - mean) / np.where(deviation > 0, deviation, 1)  # some pixels are never inked

    def batch(rows: np.ndarray) -> Batch:
        return Batch(jnp.asarray(images[rows], jnp.float32), jnp.asarray(labels[rows], jnp.int32))

    def network(key: jax.Array) -> Perceptron:
        return Perceptron(images.shape[1], hidden, 10, rngs=nnx.Rngs(key))

    graph = nnx.graphdef(network(jax.random.key(0)))
    return Task(
        name=f"scikit-learn digits, perceptron 64-{hidden}-10",
        init=lambda key: nnx.state(network(key), nnx.Param),
        predict=lambda params, inputs: nnx.merge(graph, params)(inputs),
        train=batch(train),
        validation=batch(validation),
        test=batch(test),
    )
