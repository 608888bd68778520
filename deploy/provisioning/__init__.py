"""What must be there before a run begins: its dataset, each node's share of it, and towers."""
