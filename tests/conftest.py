"""Before anything imports torch or rich: the environment that the command sets too, lines that do not break, and one thread a
process: tables are small, and tests are shared out to as many processes as there are cores."""

import os

import torch

from tessera.common.utils.torchvision_operators import define_missing_operators
from tessera.deploy.environment import quieten

quieten()
define_missing_operators()
os.environ["COLUMNS"] = "200"
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
