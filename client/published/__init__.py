"""What a server gives to all alike: its published model, and later versions of the catalogue."""
