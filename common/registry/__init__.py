"""What both sides must know of each backbone and of each method of training adapters."""
