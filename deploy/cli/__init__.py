"""The `tessera` command, a file for each group of commands."""
