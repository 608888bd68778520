"""What `flwr run .` starts: the ServerApp that pyproject.toml names, for those who know Flower's own commands."""
