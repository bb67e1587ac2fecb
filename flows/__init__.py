"""Prefect flows: each tells one stage of the way of the data, in the order the data moves."""
