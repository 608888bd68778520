"""The commands `tessera runs ...`: a folder of runs, in the terminal and in a browser."""
