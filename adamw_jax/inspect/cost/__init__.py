"""Cost: what a step costs on a machine that need not be there."""
