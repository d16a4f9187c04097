"""Optimizers: one family a file, and the body of each is one expression."""
