"""How the server makes one out of many updates: by their sum, or so that a few hostile devices have little say."""
