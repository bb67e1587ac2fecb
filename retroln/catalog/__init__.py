"""What exists, what was done, what is left: SQLAlchemy models, queries and migrations."""
