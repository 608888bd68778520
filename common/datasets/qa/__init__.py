"""Makes the benchmark of questions about items: ten clients' tasks, and tasks that no client has."""
