"""Alembic migrations of the catalog; `retroln.catalog.revisions` runs them."""
