"""Each person's gradients of what was sent, apart from everybody else's, for all people of a cohort at once."""
