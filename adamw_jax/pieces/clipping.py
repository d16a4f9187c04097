"""Guards: pieces that hold an update back when it looks wrong."""

import jax
import jax.numpy as jnp
import optax

from adamw_jax.core.domains import Positive
from adamw_jax.core.flow import AFormula
from adamw_jax.core.numerics import abs_squared, add, clipped, root_mean_square, safe_sqrt
from adamw_jax.core.transformation import elementwise, transformation
from adamw_jax.core.trees import cast, widest
from adamw_jax.pieces.scaling import leafwise_map


@transformation(leafwise=True, equation="u / maximum(1, rms(u) / threshold)", traits=("clip",))
def clip_by_rms(threshold: Positive = 1.0) -> optax.GradientTransformation:
    """u -> u / max(1, RMS(u) / threshold), for each leaf.

    Args:
      threshold: the largest RMS that passes, in the unit of u.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import clip_by_rms
      >>> g = jnp.array([4.0, -4.0])
      >>> tx = clip_by_rms(1.0)
      >>> tx.update(g, tx.init(g))[0].tolist()
      [1.0, -1.0]

    Reference: Shazeer & Stern, "Adafactor", 2018, section 6.
    """
    return leafwise_map(
        lambda u: (
            u / cast(jnp.maximum(1, root_mean_square(u) / cast(threshold, root_mean_square(u))), u)
        )
    )


@transformation(leafwise=True, equation="u * minimum(1, max_norm / norm(u))", traits=("clip",))
def clip_by_leaf_norm(max_norm: Positive) -> optax.GradientTransformation:
    """u -> u · min(1, max_norm / ‖u‖), for each leaf.

    Args:
      max_norm: the largest norm that passes, in the unit of u.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax import clip_by_leaf_norm
      >>> g = jnp.array([3.0, 4.0])
      >>> tx = clip_by_leaf_norm(2.5)
      >>> tx.update(g, tx.init(g))[0].tolist()
      [1.5, 2.0]

    Reference: Yuan et al., "MARS", 2024, algorithm 2.
    """

    def leaf(u):
        norm = safe_sqrt(jnp.sum(abs_squared(u)))
        limit = cast(max_norm, norm)
        return u * cast(limit / jnp.maximum(norm, limit), u)

    return leafwise_map(leaf)


@elementwise
def clip_by_age(power: Positive = 0.25) -> AFormula:
    """u -> clip(u, -b, b) with b = (t - 1)^power: nothing passes the first time.

    Args:
      power: how fast the bound grows.

    State: `count`, the number of updates so far.

    Example:
      >>> from adamw_jax import clip_by_age
      >>> tx = clip_by_age()
      >>> first, state = tx.update(3.0, tx.init(0.0))
      >>> second, state = tx.update(3.0, state)
      >>> first.item(), second.item()
      (0.0, 1.0)

    Reference: Taniguchi et al., "ADOPT", 2024, algorithm 2.
    """
    return lambda u, t: clipped(u, (t - 1) ** power)


@elementwise
def clip(max_abs: Positive) -> AFormula:
    """u -> min(max(u, -max_abs), max_abs); a complex u keeps its phase.

    Args:
      max_abs: the largest magnitude that passes, in the unit of u.

    Example:
      >>> from adamw_jax import clip
      >>> clip(1.0).update(-3.0, clip(1.0).init(0.0))[0].item()
      -1.0
    """
    return lambda u: clipped(u, max_abs)


@transformation(equation="u * minimum(1, max_norm / global_norm(u))", traits=("clip", "global"))
def clip_by_global_norm(max_norm: Positive) -> optax.GradientTransformation:
    """u -> u * min(1, max_norm / ‖u‖), the norm taken over the whole tree.

    One scalar factor for all leaves: a short update passes unchanged, to the bit.

    Args:
      max_norm: the largest norm that passes, in the unit of u.

    Example:
      >>> from adamw_jax import clip_by_global_norm
      >>> tx = clip_by_global_norm(1.0)
      >>> tx.update({"w": 4.0}, tx.init({"w": 0.0}))[0]["w"].item()
      1.0

    Reference: Pascanu et al., "On the difficulty of training recurrent neural
    networks", 2013, algorithm 1.
    """

    def update(updates, params):
        squares = [jnp.sum(abs_squared(u)) for u in jax.tree.leaves(updates)]
        if not squares:
            return updates
        finest = widest(*(s.dtype for s in squares))
        norm = safe_sqrt(add(*(s.astype(finest) for s in squares)))
        limit = cast(max_norm, norm)
        factor = limit / jnp.maximum(norm, limit)
        return jax.tree.map(lambda u: cast(factor, u) * u, updates)

    return optax.stateless(update)
