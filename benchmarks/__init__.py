"""Measured claims: each sub-folder holds one benchmark, its command and its results."""
