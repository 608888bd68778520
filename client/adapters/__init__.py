"""The adapters that a device puts on its tower (FedMosaic)."""

from tessera.common.utils.torchvision_operators import define_missing_operators

define_missing_operators()  # PEFT imports transformers, and that torchvision where it is installed
