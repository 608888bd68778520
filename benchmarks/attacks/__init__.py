"""Attacks on a federation, carried out in simulation: what each gets, and what a defence leaves of it."""
