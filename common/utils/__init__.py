"""Helpers that everything uses: files, tables, locks, random numbers, compute devices."""
