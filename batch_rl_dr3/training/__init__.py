"""Runs: iterations, checkpoints, provenance."""
