"""Contract: what every piece promises, and the check that it keeps it."""
