"""Optimizers as expressions over small pure gradient transformations."""

from adamw_jax.combine import (
    add,
    chain,
    fork,
    interpolate,
    join,
    masked,
    merge,
    pick,
    precondition,
)
from adamw_jax.decay import add_decoupled_weight_decay, add_l2_gradient, shrink
from adamw_jax.expression import (
    Transformation,
    expand,
    part,
    parts,
    replace,
    swap,
    transformation,
)
from adamw_jax.maps import clip, floor, identity, root, scale, sign, square
from adamw_jax.moments import (
    bias_correction,
    difference,
    running_max,
    scale_by_momentum,
    second_moment,
    sum_of_squares,
)
from adamw_jax.optimizers.adam import adam, adam_l2, adamw, scale_by_adam
from adamw_jax.optimizers.adaptive import adagrad, rmsprop
from adamw_jax.optimizers.momentum import (
    heavy_ball,
    lookahead_params,
    lookahead_point,
    momentum,
    nesterov,
    sgd,
)
from adamw_jax.rescale import clip_by_global_norm, scale_by_learning_rate, scale_by_rms
from adamw_jax.schedules import (
    Schedule,
    constant,
    cosine,
    inverse_sqrt,
    linear_warmup,
    relative,
    schedule,
    warmup_stable_decay,
)

__version__ = "0.1.0"

__all__ = [
    "Schedule",
    "Transformation",
    "adagrad",
    "adam",
    "adam_l2",
    "adamw",
    "add",
    "add_decoupled_weight_decay",
    "add_l2_gradient",
    "bias_correction",
    "chain",
    "clip",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "difference",
    "expand",
    "floor",
    "fork",
    "heavy_ball",
    "identity",
    "interpolate",
    "inverse_sqrt",
    "join",
    "linear_warmup",
    "lookahead_params",
    "lookahead_point",
    "masked",
    "merge",
    "momentum",
    "nesterov",
    "part",
    "parts",
    "pick",
    "precondition",
    "relative",
    "replace",
    "rmsprop",
    "root",
    "running_max",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_momentum",
    "scale_by_rms",
    "schedule",
    "second_moment",
    "sgd",
    "shrink",
    "sign",
    "square",
    "sum_of_squares",
    "swap",
    "transformation",
    "warmup_stable_decay",
]
