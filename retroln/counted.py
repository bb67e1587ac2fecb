"""Numbers of things in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`; for nouns whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
