"""Runs a federation in one of three ways: in this process, on Ray workers, or as separate processes over gRPC."""
