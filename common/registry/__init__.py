"""Lists the components that can be chosen by name, each with what both sides must know of it."""
