"""The person's page: what is recommended and why, what they had, what left their device, and what it answers."""
