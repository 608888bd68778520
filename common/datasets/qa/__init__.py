"""The benchmark of questions about items: ten clients' tasks, and tasks that nobody has seen."""
