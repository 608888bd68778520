"""What travels between server and devices: messages, their parts, and the formats of tensors on the wire."""
