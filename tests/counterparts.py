"""Optax's own implementations, called as ours are: the `optax` column of zoo.py."""

import jax.numpy as jnp
import optax


def independent(learning_rate, weight_decay=1e-4, **rest):
    """Optax only has the coupled form; its lambda is ours over the peak rate."""
    peak = getattr(learning_rate, "peak", learning_rate)
    return optax.adamw(learning_rate, weight_decay=weight_decay / peak, **rest)


def decayed(scale_by):
    """Optax's `scale_by_...` with decoupled weight decay."""

    def build(learning_rate, weight_decay=0.0, **rest):
        return optax.chain(
            scale_by(**rest),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return build


def adopt(learning_rate, weight_decay=0.0, **rest):
    """Optax decays in the first update, in which the authors leave the parameters alone."""
    return optax.chain(
        decayed(optax.contrib.scale_by_adopt)(learning_rate, weight_decay, **rest),
        optax.scale_by_schedule(lambda count: jnp.where(count > 0, 1.0, 0.0)),
    )


def sign_of_average(b1=0.9):
    return optax.chain(optax.ema(b1, debias=False), optax.scale_by_sign())
