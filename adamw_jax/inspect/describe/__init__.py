"""Describe: what an optimizer will do to each of the parameters."""
