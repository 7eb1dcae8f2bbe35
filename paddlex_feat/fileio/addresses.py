"""What counts as an address, and how one is shown."""

from __future__ import annotations

import re


def is_url(text: str) -> bool:
    """Whether the text starts with http:// or https://, in lower or upper case."""
    return text[:8].lower().startswith(("http://", "https://"))


def without_password(text: str) -> str:
    """A text in which addresses, and urllib's messages about them, do not show user and password."""
    return re.sub(r"(//|\bnetloc )[^/?#\s]*@", r"\1", text)
