"""Words that depend on numbers."""


def number_of(n: int, one: str, many: str = "") -> str:
    """How many there are of what is called `one`, and otherwise `many`, or `one` with an s: "1 person", "2 people"."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
