"""The commands `tessera device ...` that are about a person on the device."""
