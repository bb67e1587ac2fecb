"""Prefect tasks: one call into `retroln.steps` each, plus retries, timeout and concurrency policy."""
