"""Lets `python -m tessera` be the command `tessera`."""

from tessera.deploy.cli.main import main

if __name__ == "__main__":
    main()
