"""One HTML file about runs or a grid: what they were, how they went, whom they serve, what they cost."""
