"""Before anything imports torch or rich: the environment that the command sets too, and lines that do not break."""

import os

from tessera.deploy.environment import quieten

quieten()
os.environ["COLUMNS"] = "200"
