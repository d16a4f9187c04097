"""State: where it is, how to read, reset, carry, share and evaluate it."""
