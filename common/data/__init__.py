"""Items, interactions, questions, and how they are split into training, validation and test."""
