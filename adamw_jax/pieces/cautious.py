"""Cautious: an update that keeps the coordinates in which it agrees with the gradient."""

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.transformation import transformation
from adamw_jax.core.trees import branches_of


@transformation(
    leafwise=True,
    consumes="fork",
    equation="k = update * gradient > 0; update * k / maximum(mean(k), 0.001)",
    traits=("first",),
)
def cautious() -> optax.GradientTransformation:
    """{update, gradient} -> u · k / max(mean(k), 1e-3), where k = 1 if u g > 0, else 0.

    Drops the coordinates in which the update and the gradient disagree, and
    makes up for their number, one mean for each leaf.

    Raises:
      KeyError: what it receives is no fork with both branches.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import cautious
      >>> u, g = jnp.array([1.0, 1.0]), jnp.array([1.0, -1.0])
      >>> cautious().update({"update": u, "gradient": g}, cautious().init(g))[0].tolist()
      [2.0, 0.0]

    Reference: Liang et al., "Cautious Optimizers", 2024, algorithm 1; scale as
    in the authors' package C-Optim.
    """

    def leaf(u, g):
        agree = (jnp.real(u * jnp.conj(g)) > 0).astype(u.dtype)
        share = jnp.sum(agree) / max(u.size, 1)
        return u * agree / jnp.maximum(jnp.real(share), 1e-3).astype(u.dtype)

    branches = lambda fork: branches_of("cautious", fork, "update", "gradient")
    return optax.stateless(lambda fork, params: jax.tree.map(leaf, *branches(fork)))
