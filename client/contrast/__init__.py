"""Looks at each view by itself: losses that hold views against one another, and how far one of them has collapsed."""
