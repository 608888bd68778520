"""Centralised baselines: recommenders that see all users' data in one place, on the federation's split and metric."""
