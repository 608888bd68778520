"""Ranking metrics, their names, and the lines that a run writes about itself."""
