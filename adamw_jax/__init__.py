"""Optimizers as expressions over small pure gradient transformations."""

from adamw_jax.core.combinators import chain, fork, interpolate, join, merge, pick, precondition
from adamw_jax.core.diff import Change, Changes, diff
from adamw_jax.core.flow import each, per_tree
from adamw_jax.core.numerics import add, divide
from adamw_jax.core.routing import masked, matches, route, routed, routes
from adamw_jax.core.slots import expand, part, parts, replace, swap
from adamw_jax.core.transformation import Transformation, combinator, elementwise, transformation
from adamw_jax.core.wrappers import accumulate, delay, scheduled
from adamw_jax.inspect.contract.check import assert_contract, check
from adamw_jax.inspect.cost.cost import Cost, cost
from adamw_jax.inspect.describe.describe import Description, describe
from adamw_jax.inspect.equations.equations import equations
from adamw_jax.inspect.lint.lint import assert_clean, lint
from adamw_jax.inspect.lint.rules import Finding
from adamw_jax.inspect.parse import parse
from adamw_jax.optimizers.adafactor import adafactor, adam_mini
from adamw_jax.optimizers.adam import adam, adam_l2, adamw, scale_by_adam
from adamw_jax.optimizers.adam_variants import (
    adabelief,
    ademamix,
    amsgrad,
    cautious_adamw,
    deviation,
    laprop,
    nadamw,
    radam,
    stable_adamw,
)
from adamw_jax.optimizers.adan import adan, adopt, mars
from adamw_jax.optimizers.lion import lion, signum
from adamw_jax.optimizers.momentum import (
    heavy_ball,
    lookahead_params,
    lookahead_point,
    momentum,
    nesterov,
    sgd,
)
from adamw_jax.optimizers.muon import muon
from adamw_jax.optimizers.rmsprop import adagrad, rmsprop
from adamw_jax.optimizers.schedule_free import prodigy, schedule_free_adamw
from adamw_jax.optimizers.soap import soap
from adamw_jax.optimizers.sophia import sophia_g, sophia_h
from adamw_jax.pieces.bias_correction import bias_correction, rectify, root_bias_correction
from adamw_jax.pieces.cautious import cautious
from adamw_jax.pieces.clipping import (
    clip,
    clip_by_age,
    clip_by_global_norm,
    clip_by_leaf_norm,
    clip_by_rms,
)
from adamw_jax.pieces.eigenbasis import eigenbasis
from adamw_jax.pieces.factored_moments import (
    block_second_moment,
    default_blocks,
    factored_second_moment,
)
from adamw_jax.pieces.hessian import curvature, gauss_newton_bartlett, hutchinson
from adamw_jax.pieces.moments import (
    difference,
    previous_second_moment,
    running_max,
    scale_by_momentum,
    second_moment,
    sum_of_squares,
    variance_reduction,
)
from adamw_jax.pieces.nesterov import nesterov_average, nesterov_trace, warming_nesterov
from adamw_jax.pieces.newton_schulz import Table
from adamw_jax.pieces.orthogonalize import View, default_matrices, orthogonalize, scale_by_shape
from adamw_jax.pieces.prodigy import by_distance, distance_root
from adamw_jax.pieces.rms import average, rms, scale_by_rms, update_rms
from adamw_jax.pieces.scaling import (
    floor,
    identity,
    root,
    scale,
    scale_by_learning_rate,
    scale_by_parameter_rms,
    sign,
    square,
)
from adamw_jax.pieces.schedule_free import schedule_free
from adamw_jax.pieces.skip_nonfinite import skip_nonfinite
from adamw_jax.pieces.weight_decay import (
    add_decoupled_weight_decay,
    add_l2_gradient,
    proximal_decay,
    shrink,
    shrink_after,
)
from adamw_jax.schedules import (
    Schedule,
    ahead,
    capped_inverse_sqrt,
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    join_schedules,
    linear,
    linear_warmup,
    one_cycle,
    piecewise,
    polynomial,
    relative,
    schedule,
    shift,
    warmup_stable_decay,
)
from adamw_jax.state.evaluation import eval_params
from adamw_jax.state.from_torch import from_torch
from adamw_jax.state.read_and_reset import read, reset
from adamw_jax.state.sharding import Placement, sharding_report, state_sharding
from adamw_jax.state.transplant import Transplant, transplant
from adamw_jax.telemetry.metrics import metrics, probe
from adamw_jax.telemetry.observe import observe
from adamw_jax.telemetry.writers import JSONLWriter, TensorBoardWriter

__version__ = "0.1.0"

__all__ = [
    "Change",
    "Changes",
    "Cost",
    "Description",
    "Finding",
    "JSONLWriter",
    "Placement",
    "Schedule",
    "Table",
    "TensorBoardWriter",
    "Transformation",
    "Transplant",
    "View",
    "accumulate",
    "adabelief",
    "adafactor",
    "adagrad",
    "adam",
    "adam_l2",
    "adam_mini",
    "adamw",
    "adan",
    "add",
    "add_decoupled_weight_decay",
    "add_l2_gradient",
    "ademamix",
    "adopt",
    "ahead",
    "amsgrad",
    "assert_clean",
    "assert_contract",
    "average",
    "bias_correction",
    "block_second_moment",
    "by_distance",
    "capped_inverse_sqrt",
    "cautious",
    "cautious_adamw",
    "chain",
    "check",
    "clip",
    "clip_by_age",
    "clip_by_global_norm",
    "clip_by_leaf_norm",
    "clip_by_rms",
    "combinator",
    "constant",
    "cosine",
    "cosine_restarts",
    "cost",
    "curvature",
    "default_blocks",
    "default_matrices",
    "delay",
    "describe",
    "deviation",
    "diff",
    "difference",
    "distance_root",
    "divide",
    "each",
    "eigenbasis",
    "elementwise",
    "equations",
    "eval_params",
    "expand",
    "exponential",
    "factored_second_moment",
    "floor",
    "fork",
    "from_torch",
    "gauss_newton_bartlett",
    "heavy_ball",
    "hutchinson",
    "identity",
    "interpolate",
    "inverse_sqrt",
    "join",
    "join_schedules",
    "laprop",
    "linear",
    "linear_warmup",
    "lint",
    "lion",
    "lookahead_params",
    "lookahead_point",
    "mars",
    "masked",
    "matches",
    "merge",
    "metrics",
    "momentum",
    "muon",
    "nadamw",
    "nesterov",
    "nesterov_average",
    "nesterov_trace",
    "observe",
    "one_cycle",
    "orthogonalize",
    "parse",
    "part",
    "parts",
    "per_tree",
    "pick",
    "piecewise",
    "polynomial",
    "precondition",
    "previous_second_moment",
    "probe",
    "prodigy",
    "proximal_decay",
    "radam",
    "read",
    "rectify",
    "relative",
    "replace",
    "reset",
    "rms",
    "rmsprop",
    "root",
    "root_bias_correction",
    "route",
    "routed",
    "routes",
    "running_max",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_momentum",
    "scale_by_parameter_rms",
    "scale_by_rms",
    "scale_by_shape",
    "schedule",
    "schedule_free",
    "schedule_free_adamw",
    "scheduled",
    "second_moment",
    "sgd",
    "sharding_report",
    "shift",
    "shrink",
    "shrink_after",
    "sign",
    "signum",
    "skip_nonfinite",
    "soap",
    "sophia_g",
    "sophia_h",
    "square",
    "stable_adamw",
    "state_sharding",
    "sum_of_squares",
    "swap",
    "transformation",
    "transplant",
    "update_rms",
    "variance_reduction",
    "warming_nesterov",
    "warmup_stable_decay",
]
