"""Encoders that a device adapts to its people, and the adapters (FedMosaic). Needs the extra `clip`; no command imports it."""
