"""What can happen to any file."""

from __future__ import annotations


def flipped(data: bytes, bit: int) -> bytes:
    """One bit turned over."""
    turned = bytearray(data)
    turned[bit // 8] ^= 1 << bit % 8
    return bytes(turned)


def cut(data: bytes, size: int) -> bytes:
    """The first `size` bytes; of a negative size all but so many."""
    return data[:size]


def longer(data: bytes, more: bytes) -> bytes:
    """More bytes at the end."""
    return data + more
