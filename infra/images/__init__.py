"""What the containers run that the local stack does not need."""
