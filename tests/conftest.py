"""Before anything imports torch or rich: the environment that the command sets too, and lines that do not break."""

import os

from tessera.common.utils.torchvision_operators import define_missing_operators
from tessera.deploy.environment import quieten

quieten()
define_missing_operators()
os.environ["COLUMNS"] = "200"
