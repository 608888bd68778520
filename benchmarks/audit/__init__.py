"""The attacks that a configuration is held against: what each gets, what it may get, and whether that holds.

`findings` is what an attack returns; `listening` carries out a run and hears all that its server could read. One file an
attack: `histories` with `separation`, `isolation`, `hostile_devices`, `foreign_code`. `run` has the table of them.
"""
