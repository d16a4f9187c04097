"""Pieces: the words of the algebra, one kind a file, named for the quantity."""
