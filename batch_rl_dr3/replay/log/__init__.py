"""Logged replay as it is stored: its formats, readers and sources."""
