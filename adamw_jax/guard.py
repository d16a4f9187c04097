"""Guards: pieces that hold an update back when it looks wrong."""

import jax
import jax.numpy as jnp
import optax

from adamw_jax.domains import NonNegative, Positive
from adamw_jax.maps import abs_squared, clipped, divide, leafwise_map, safe_sqrt
from adamw_jax.moments import CountState, count_up
from adamw_jax.transform import transformation
from adamw_jax.trees import branches_of, cast, real_dtype


def rms(x: jax.Array) -> jax.Array:
    """The root of the mean of |x|², 0 for an empty array."""
    return safe_sqrt(jnp.sum(abs_squared(x)) / max(x.size, 1))


@transformation(
    leafwise=True,
    consumes="fork",
    equation="k = update * gradient > 0; update * k / maximum(mean(k), 0.001)",
    traits=("first",),
)
def cautious():
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


@transformation(
    leafwise=True,
    consumes="fork",
    equation="maximum(1, rms(gradient / maximum(sqrt(second_moment), eps)))",
    traits=("first", "scale_invariant", "positive"),
)
def update_rms(eps: NonNegative = 1e-8):
    """{gradient, second_moment} -> max(1, RMS(g / max(√v, eps))), one number a leaf.

    Above 1 when the gradient is larger than its history says.

    Args:
      eps: least value of √v [L/θ].

    Raises:
      KeyError: what it receives is no fork with both branches.

    Example:
      >>> from adamw_jax import chain, fork, identity, square, update_rms
      >>> tx = chain(fork(gradient=identity(), second_moment=square()), update_rms())
      >>> tx.update(3.0, tx.init(0.0))[0].item()
      1.0

    Reference: Wortsman et al., "Stable and low-precision training for
    large-scale vision-language models", 2023, algorithm 2.
    """

    def leaf(g, v):
        return jnp.maximum(1, rms(divide(g, jnp.maximum(safe_sqrt(v), cast(eps, v))))).astype(
            g.dtype
        )

    branches = lambda fork: branches_of("update_rms", fork, "gradient", "second_moment")
    return optax.stateless(lambda fork, params: jax.tree.map(leaf, *branches(fork)))


@transformation(leafwise=True, equation="u / maximum(1, rms(u) / threshold)", traits=("clip",))
def clip_by_rms(threshold: Positive = 1.0):
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
    return leafwise_map(lambda u: u / cast(jnp.maximum(1, rms(u) / cast(threshold, rms(u))), u))


@transformation(leafwise=True, equation="u * minimum(1, max_norm / norm(u))", traits=("clip",))
def clip_by_leaf_norm(max_norm: Positive):
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


@transformation(leafwise=True, equation="maximum(minimum, rms(theta)) * u", traits=("linear",))
def scale_by_parameter_rms(minimum: NonNegative = 1e-3):
    """u -> max(minimum, RMS(θ)) · u, for each leaf: steps relative to the parameters.

    Args:
      minimum: the least scale [θ], so that parameters at 0 can leave it.

    Raises:
      ValueError: `update` got no parameters.

    Example:
      >>> from adamw_jax import scale_by_parameter_rms
      >>> tx = scale_by_parameter_rms()
      >>> tx.update(0.5, tx.init(4.0), 4.0)[0].item()
      2.0

    Reference: Shazeer & Stern, "Adafactor", 2018, section 8.
    """

    def update(updates, params):
        if params is None:
            raise ValueError(
                "scale_by_parameter_rms: got no parameters. Call update(grads, state, params)."
            )
        leaf = lambda u, p: cast(jnp.maximum(cast(minimum, rms(p)), rms(p)), u) * u
        return jax.tree.map(leaf, updates, params)

    return optax.stateless(update)


@transformation(
    leafwise=True, equation="clip(u, -((t - 1) ** power), (t - 1) ** power)", traits=("clip",)
)
def clip_by_age(power: Positive = 0.25):
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

    def init(params):
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        def leaf(u):
            t = state.count.astype(real_dtype(u.dtype))
            return clipped(u, t ** cast(power, t))

        return jax.tree.map(leaf, updates), CountState(count_up(state.count))

    return optax.GradientTransformation(init, update)
