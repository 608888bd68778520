"""Offline work before a federation begins: towers trained on the public catalogue, and adapters aligned between them."""
