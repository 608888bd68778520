"""The operator's page: which devices are online, how runs go, what is published; nothing of a person is on it."""
