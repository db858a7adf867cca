"""A method of each kind, as ``trainwright new`` writes it: it runs, and does next to nothing."""
