"""Towers: small models of different size that a server trains and aligns and devices adapt."""
