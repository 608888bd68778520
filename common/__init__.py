"""What both sides must agree on: payloads, settings, the catalogue, interactions and metrics."""
