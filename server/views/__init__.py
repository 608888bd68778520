"""The fused views: built from the catalogue and the item embeddings, by operators, from a start of their own."""
