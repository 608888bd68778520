"""Has devices answer in secure sums: the server learns what groups of them add up to (`tessera.common.secure`)."""
