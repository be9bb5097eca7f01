"""The postgres room."""
