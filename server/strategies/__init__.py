"""Federated methods, one file each: what is broadcast, and what the server does with the sum of the updates."""
