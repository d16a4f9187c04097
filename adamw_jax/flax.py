"""Flax: what stands between a model and an optimizer that asks for more than gradients.

NNX: `of_params` makes the functions that Sophia takes, `evaluation_model` the
model that an averaging optimizer means.  Linen: `TrainState` passes on what the
optimizer takes.  Not imported by `adamw_jax` itself, which does without Flax.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import optax
from flax import nnx
from flax.training import train_state

from adamw_jax.core.flow import Flow, opened, slots
from adamw_jax.core.transformation import Transformation, keywords_of, lift
from adamw_jax.core.trees import first_difference
from adamw_jax.state.evaluation import eval_params


def of_params(
    function: Callable[..., Any],
    model: nnx.Module,
    *arguments: Any,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
) -> Callable[[Any], Any]:
    """`function(model, *arguments)` as a function of the model's parameters alone.

    That is what `sophia_h` takes as `obj_fn` (a function that returns the loss) and
    `sophia_g` as `logits_fn` (one that returns the logits).  It is a function in
    the mathematician's sense: each call sees a new copy of the model as it was
    when `of_params` was called.  Dropout draws the same mask every time, and
    neither batch statistics nor random streams of the model move.

    Args:
      function: of a model and more, as `nnx.grad` takes it.
      model: whose structure, batch statistics and random streams to use.
      *arguments: what `function` takes after the model, such as the batch.
      wrt: what of the model is a parameter, as in `nnx.Optimizer`.
      has_aux: `function` returns a pair, of which the first counts.

    Returns:
      A function of parameters, an `nnx.State` or nested dicts of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from adamw_jax import sophia_h
      >>> from adamw_jax.flax import of_params
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, sophia_h(1e-3), wrt=nnx.Param)
      >>> loss_fn = lambda model, xs: (model(xs) ** 2).mean()
      >>> @nnx.jit
      ... def train_step(model, optimizer, xs):
      ...     loss, grads = nnx.value_and_grad(loss_fn)(model, xs)
      ...     optimizer.update(model, grads, obj_fn=of_params(loss_fn, model, xs))
      ...     return loss
      >>> loss = train_step(model, optimizer, jnp.ones((4, 2)))
    """
    graphdef, own, *rest = nnx.split(model, wrt, ...)
    rest = nnx.as_pure(rest)  # the split ones follow what happens to the model

    def function_of_params(params: Any) -> Any:
        stray = first_difference(params, own)
        if stray is not None:
            raise ValueError(
                f"of_params: wrt={wrt!r} and the parameters of the optimizer differ first at "
                f"'{stray}'. Pass the wrt that nnx.Optimizer has."
            )
        out = function(nnx.merge(graphdef, params, *rest, copy=True), *arguments)
        return out[0] if has_aux else out

    return function_of_params


def evaluation_model(model: nnx.Module, optimizer: nnx.Optimizer[Any]) -> nnx.Module:
    """A copy of the model at the parameters to evaluate; see `adamw_jax.eval_params`.

    For an optimizer that averages, such as `schedule_free_adamw`, these are not
    the parameters that are trained.  Nothing else changes: call `.eval()` on the
    copy to switch dropout off.  Batch statistics were gathered at the parameters
    that are trained; run a few batches through the copy first to gather them again.

    Args:
      model: that is trained.
      optimizer: that trains it.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from adamw_jax import schedule_free_adamw
      >>> from adamw_jax.flax import evaluation_model
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, schedule_free_adamw(1e-3), wrt=nnx.Param)
      >>> evaluation_model(model, optimizer)(jnp.ones((4, 2))).shape
      (4, 1)
    """
    graphdef, params, *rest = nnx.split(model, optimizer.wrt, ...)
    state = nnx.as_pure(optimizer.opt_state)
    params = eval_params(optimizer.tx, state, nnx.as_pure(params))
    return nnx.merge(graphdef, params, *rest, copy=True)


class TrainState(train_state.TrainState):
    """Flax's `TrainState`, whose `apply_gradients` passes on what the optimizer takes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from adamw_jax import sophia_h
      >>> from adamw_jax.flax import TrainState
      >>> network, xs = nn.Dense(1), jnp.ones((4, 2))
      >>> params = network.init(jax.random.key(0), xs)["params"]
      >>> state = TrainState.create(apply_fn=network.apply, params=params, tx=sophia_h(1e-3))
      >>> @jax.jit
      ... def train_step(state, xs):
      ...     loss_fn = lambda params: (state.apply_fn({"params": params}, xs) ** 2).mean()
      ...     return state.apply_gradients(grads=jax.grad(loss_fn)(state.params), obj_fn=loss_fn)
      >>> state = train_step(state, xs)
    """

    if TYPE_CHECKING:  # Flax does not say what it takes and returns

        @classmethod
        def create(
            cls,
            *,
            apply_fn: Callable[..., Any] | None,
            params: Any,
            tx: optax.GradientTransformation,
            **keywords: Any,
        ) -> Self: ...

    def apply_gradients(self, *, grads: Any, **keywords: Any) -> Self:
        """The state after one update.

        Args:
          grads: like `params`.
          **keywords: one that names a field of the state (`batch_stats` of your
            subclass) replaces it, as in Flax's own `TrainState`; any other goes to
            `tx.update` (`obj_fn`, `logits_fn`, `value`).

        Raises:
          TypeError: a keyword is neither a field nor anything the optimizer could
            read, or it names one of the fields that the update itself changes.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: keywords.pop(name) for name in fields & keywords.keys()}
        self._check(replaced, keywords)
        update = functools.partial(self.tx.update, **keywords)
        # The rest is Flax's: it sees an optimizer that has got its keywords already.
        bound = self.replace(tx=optax.GradientTransformation(self.tx.init, update))
        tx = replaced.pop("tx", self.tx)
        new: Self = super(TrainState, bound).apply_gradients(grads=grads, **replaced)
        return new.replace(tx=tx)

    def _check(self, replaced: dict[str, Any], passed: dict[str, Any]) -> None:
        for name in ("step", "params", "opt_state"):
            if name in replaced:
                raise TypeError(
                    f"TrainState.apply_gradients: {name!r} is what the update computes. "
                    f"Use state.replace({name}=...) before or after it."
                )
        if passed and not _reads_keywords(lift(self.tx)):
            fields = ", ".join(field.name for field in dataclasses.fields(self))
            raise TypeError(
                f"TrainState.apply_gradients: {min(passed)!r} is no field of "
                f"{type(self).__name__} ({fields}), and {self.tx!r} reads no extra arguments. "
                "Correct the name or leave it out."
            )

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate; see `adamw_jax.eval_params`."""
        return eval_params(self.tx, self.opt_state, self.params)


def _reads_keywords(tx: Transformation) -> bool:
    """Whether a piece of an optimizer may read what `update` gets beside gradients, state
    and parameters.  Combinators pass everything on, and read what they name."""
    tx = opened(tx)
    inner = slots(tx).values()
    if isinstance(tx.body, Flow):
        return any(map(_reads_keywords, inner))
    if not inner:
        return isinstance(tx.body, optax.GradientTransformationExtraArgs)
    return bool(keywords_of(tx.body.update)) or any(map(_reads_keywords, inner))
