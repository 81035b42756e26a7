"""Logged replay: its format, its subsets, a local store, a buffer."""
