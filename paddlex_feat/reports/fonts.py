"""Which of the machine's fonts can draw a text: matplotlib's own has Latin, Greek and Cyrillic letters alone."""

from __future__ import annotations

from functools import cache

DEFAULT = "DejaVu Sans"  # comes with matplotlib
_MAX_FONTS = 2000  # of the machine that are looked into


@cache
def families(text: str) -> tuple[str, ...] | None:
    """Font families that draw a text together, the default first; None if the machine has none for a character."""
    missing = {ord(character) for character in text if not character.isspace()} - _characters(DEFAULT)
    if not missing:
        return (DEFAULT,)
    found = []
    for name in _installed():
        if covered := missing & _characters(name):
            found.append(name)
            missing -= covered
        if not missing:
            return (DEFAULT, *found)
    return None


@cache
def _installed() -> tuple[str, ...]:
    from matplotlib import font_manager

    return tuple(dict.fromkeys(font.name for font in font_manager.fontManager.ttflist[:_MAX_FONTS]))


@cache
def _characters(name: str) -> frozenset[int]:
    """The characters that a family has in its plain style."""
    from matplotlib import font_manager

    try:
        file = font_manager.findfont(font_manager.FontProperties(family=name), fallback_to_default=False)
        return frozenset(font_manager.get_font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged font file
        return frozenset()
