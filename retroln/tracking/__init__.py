"""The only MLflow imports: runs and the model registry."""
