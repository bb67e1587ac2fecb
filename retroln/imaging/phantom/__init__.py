"""Analytic abdomens with known answers: CT, vertebrae, vessels and lymph nodes of any seed and grid."""

from __future__ import annotations

from retroln.imaging.phantom.make import make_phantom
from retroln.imaging.phantom.spec import Phantom, PhantomNode, PhantomSpec, shifted_names

__all__ = ["Phantom", "PhantomNode", "PhantomSpec", "make_phantom", "shifted_names"]
