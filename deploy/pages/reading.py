"""What all pages read of a request, and the files that all of them give out."""

from pathlib import Path

from starlette.requests import Request

from tessera.common.errors import DataError

STATIC = Path(__file__).with_name("static")
LONGEST_FORM = 1 << 16
"""Bytes that a form may have."""


async def body(request: Request, most: int = LONGEST_FORM) -> bytes:
    """The request's body. Raises `DataError` for one of more than `most` bytes, of which no more is read."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise DataError(f"That is too large: at most {most >> 20 or 1} MB can be taken in here.")
    return bytes(content)
