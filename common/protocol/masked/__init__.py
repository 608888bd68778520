"""How secure sums travel: what of an answer is masked, and the messages that are no tasks (`tessera.common.secure`)."""
