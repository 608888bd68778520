"""The machinery of `tessera bench`: grids of runs, the tables made of them, and how sure a difference is."""
