"""The backup room."""
