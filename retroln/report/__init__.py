"""Figures and case pages."""
