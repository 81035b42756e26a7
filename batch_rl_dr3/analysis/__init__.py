"""What the paper measures on features, in NumPy."""
