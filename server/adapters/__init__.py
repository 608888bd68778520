"""Adapters on the server: who learns from whom, and the mix that each client gets."""
