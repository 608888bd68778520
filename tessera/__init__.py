"""Tessera, a federated recommender that understands images and text.

The folders of this repository are its packages: `tessera.server`, `tessera.client`, `tessera.common`, `tessera.deploy` and
`tessera.benchmarks`.
"""
