"""A recipe as jobs, and how they run: methods made, inputs found, artifacts found in the store or made."""
