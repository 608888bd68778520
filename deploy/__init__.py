"""All that starts processes: the command and the executors."""
