"""Before anything imports torch: the environment that the command sets too."""

from deploy.environment import quieten

quieten()
