"""The whole platform on one machine: every server and worker, without root and without containers."""
