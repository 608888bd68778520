"""Starts processes and talks to people: the `tessera` command, the ways to run a federation, and federations of machines."""
