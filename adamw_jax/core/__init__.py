"""Core: what an expression is, and the one interpreter that everything else reads it by."""
