"""The nodes of a federation: what each is asked, and which catalogue each holds."""
