"""Where in a TOML file a key stands, for messages about it."""

from __future__ import annotations

import re

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""


def _key_parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_KEY, dotted)]


def line_of(text: str, keys: list[str]) -> int:
    """The 1-based line where the deepest found key of a dotted path stands; 1 when nothing is found."""
    best, section = 1, []
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if header := re.match(r"\[+\s*([^\]]+?)\s*\]+", bare):
            section = _key_parts(header.group(1))
            here = section
        elif assignment := re.match(rf"({_KEY}(?:\s*\.\s*{_KEY})*)\s*=", bare):
            here = section + _key_parts(assignment.group(1))
        else:
            continue
        matched = next(
            (i for i, (a, b) in enumerate(zip(here, keys, strict=False)) if a != b), min(len(here), len(keys))
        )
        if matched == len(here) and matched > depth:
            best, depth = number, matched
    return best
