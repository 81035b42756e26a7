"""Measures how fast the package is, beside the stack it extends."""
