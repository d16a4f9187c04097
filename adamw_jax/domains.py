"""Domains: what a hyperparameter may be, to annotate the factories of one's own pieces."""

from adamw_jax.core.domains import (
    ASchedule,
    Count,
    Decay,
    DType,
    Finite,
    Flag,
    Fraction,
    LearningRate,
    NonNegative,
    OpenFraction,
    Positive,
    Steps,
    Whole,
)

__all__ = [
    "ASchedule",
    "Count",
    "DType",
    "Decay",
    "Finite",
    "Flag",
    "Fraction",
    "LearningRate",
    "NonNegative",
    "OpenFraction",
    "Positive",
    "Steps",
    "Whole",
]
