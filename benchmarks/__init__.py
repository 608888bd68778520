"""The benchmark harness, the centralised baselines, and a script for each figure, with its command on the first line.

`tessera bench GRID` runs a grid of methods, seeds and baselines from a YAML file; nothing else imports this package.
"""
