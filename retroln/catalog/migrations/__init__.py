"""Alembic migrations of the catalog; `Catalog.open` runs them."""
