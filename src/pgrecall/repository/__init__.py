"""The repository room."""
