"""Models of other people as towers: a device class is any encoder of texts or causal language model that is on this machine."""
