"""Prepares what must be there before a run begins: its dataset, each node's part of it, and towers."""
