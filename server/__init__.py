"""What the server does with a catalogue and with what devices return."""
