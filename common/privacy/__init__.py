"""Differential privacy of whole people: what a run's noise is worth, and the whole-number noise that goes under masks."""
