"""What runs the servers around RetroLN: throwaway ones for tests, lasting ones for a local stack."""
