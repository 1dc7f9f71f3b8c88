"""What keeps the house in order: run by `make check`, not installed."""
