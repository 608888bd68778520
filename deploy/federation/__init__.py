"""A federation on real machines: certificates, registered nodes, and Flower's own processes."""
