"""Plain files that others made, and that are taken in."""
