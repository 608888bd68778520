"""Settings: their types, and how they are read from YAML."""
