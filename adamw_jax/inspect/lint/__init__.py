"""Lint: mistakes of order, found before anything runs."""
