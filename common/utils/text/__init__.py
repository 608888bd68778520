"""What people are shown: words and tables."""
