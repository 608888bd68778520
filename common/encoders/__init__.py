"""Encoders: pictures and texts in, features out. Offline tools; no app imports them."""
