"""The commands about a dataset that are groups of their own."""
