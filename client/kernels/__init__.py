"""The operations that training spends its time in, written for the processor."""
