"""What a device does with its people's private data."""
