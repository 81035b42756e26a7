"""Losses and penalties as pure TensorFlow functions."""
