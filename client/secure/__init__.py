"""A device's part in secure sums (`tessera.common.secure`): what it keeps, what it answers, and what it masks."""
