"""Flower apps that do a round when they are told to and say how long it took: what `tessera.benchmarks.grpc_round` measures."""
