"""Looking ahead and behind: averages that use more than the latest gradient."""

from adamw_jax.core.combinators import chain, join
from adamw_jax.core.domains import Decay, NonNegative
from adamw_jax.core.flow import AFormula, per_tree
from adamw_jax.core.numerics import add
from adamw_jax.core.saying import named
from adamw_jax.core.transformation import Transformation, elementwise, transformation
from adamw_jax.pieces.bias_correction import bias_correction
from adamw_jax.pieces.moments import scale_by_momentum
from adamw_jax.pieces.scaling import identity, scale


@transformation(equation="b = decay * b + u; u + decay * b")
def nesterov_trace(decay: Decay) -> Transformation:
    """b <- decay b + g, passes g + decay b on.

    The state holds decay·b, in units of the look-ahead.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import nesterov_trace
      >>> tx = nesterov_trace(0.5)
      >>> first, state = tx.update(2.0, tx.init(0.0))
      >>> second, state = tx.update(2.0, state)
      >>> first.item(), second.item()
      (3.0, 3.5)

    Reference: Sutskever et al., "On the importance of initialization and
    momentum in deep learning", 2013, equations 3-4.
    """
    return join(add, gradient=identity(), momentum=scale_by_momentum(decay, gain=decay))


@transformation
def nesterov_average(decay: Decay) -> Transformation:
    """decay m / (1 - decay^(t+1)) + (1 - decay) g / (1 - decay^t), m the average of g.

    Args:
      decay: in [0, 1).

    Example:
      >>> from adamw_jax import nesterov_average
      >>> tx = nesterov_average(0.5)
      >>> round(tx.update(3.0, tx.init(0.0))[0].item(), 4)  # 0.5 · 1.5 / 0.75 + 0.5 · 3 / 0.5
      4.0

    Reference: Dozat, "Incorporating Nesterov Momentum into Adam", 2016,
    algorithm 2 with a constant momentum.
    """
    return join(
        add,
        momentum=chain(scale_by_momentum(decay), bias_correction(decay, ahead=1), scale(decay)),
        gradient=chain(bias_correction(decay), scale(1 - decay)),
    )


@elementwise(product=per_tree(1.0), momentum=0.0)
def warming_nesterov(decay: Decay, psi: NonNegative = 0.004) -> AFormula:
    """(1 - μ[t]) g / (1 - Π[t]) + μ[t+1] m / (1 - Π[t+1]), m the average of g.

    μ[t] = decay (1 - 0.96^(t psi) / 2), and Π[t] is the product of the first t.

    Args:
      decay: of m, and the limit of μ, in [0, 1).
      psi: how fast μ approaches it.

    State: `momentum`, like the parameters; `product`, Π; `count`.

    Example:
      >>> from adamw_jax import warming_nesterov
      >>> tx = warming_nesterov(0.9)
      >>> round(tx.update(1.0, tx.init(0.0))[0].item(), 4)
      1.0565

    Reference: Dozat, "Incorporating Nesterov Momentum into Adam", 2016, algorithm 2.
    """

    def formula(u, t, product, momentum):
        at = lambda t: decay * (1 - 0.5 * 0.96 ** (t * psi))
        mu, ahead = named("mu", at(t)), named("mu_next", at(t + 1))
        product = product * mu
        momentum = decay * momentum + (1 - decay) * u
        out = (1 - mu) * u / (1 - product) + ahead * momentum / (1 - product * ahead)
        return out, {"product": product, "momentum": momentum}

    return formula
