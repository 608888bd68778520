"""Centralised baselines: what recommenders reach that may see everybody's data at once, on the same split and metric."""
