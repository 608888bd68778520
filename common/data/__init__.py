"""The data model: items, interactions, questions, and their split into training, validation and test."""
