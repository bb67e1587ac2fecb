"""Volumes, geometry, NIfTI and phantoms."""
