"""The adapters that a device puts on its tower (FedMosaic)."""
