"""The standby room."""
