"""The dump room: logical copies, by PostgreSQL's own tools, and their way back."""
