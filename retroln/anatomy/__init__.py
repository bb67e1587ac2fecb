"""Vertebrae, the region referenced to L2, nodes and stations: the geometry of the patient."""
