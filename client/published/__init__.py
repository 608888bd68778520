"""The model that a server publishes: how a device gets it, and recommends by it without having taken part."""
