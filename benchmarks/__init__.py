"""What reproduces each figure, with the command on its first line, and the centralised baselines."""
