"""Value networks that output their penultimate features."""
