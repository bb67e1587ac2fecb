"""Manifests and job templates for Kubernetes, and their check."""
