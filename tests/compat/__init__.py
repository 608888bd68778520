"""Copies of the client's half as it was when a protocol version was introduced."""
