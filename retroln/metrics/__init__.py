"""Overlap, detection, strata, intervals, and the promotion gate as a pure rule."""
