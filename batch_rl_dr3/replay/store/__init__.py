"""The local store that training samples from: built, opened and read."""
