"""How numbers are computed on the machine at hand."""
