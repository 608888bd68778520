"""Towers: encoders of different size that a server aligns and devices adapt."""
