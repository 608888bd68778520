"""Settings of adapted towers."""
