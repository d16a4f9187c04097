"""Equations: the update rule of an expression, as a paper would print it."""
