"""Insight: what can be read off an expression without running it."""
