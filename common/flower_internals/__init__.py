"""Uses what of Flower 1.39 is not public API, so that a move to a later Flower is a change of this folder.

Nothing else imports from `flwr` what is neither in `flwr.app`, `flwr.clientapp`, `flwr.serverapp` nor `flwr.simulation`. What
such a move would mean is in docs/federations.md. Flower is imported late: each process loads only what it uses.
"""
