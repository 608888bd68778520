"""Files, locks, random numbers and devices: what nothing here is about, and everything uses."""
