"""Centralised peers: what recommenders reach that may see everybody's data at once, on the federation's split and metric."""
