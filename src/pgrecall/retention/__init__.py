"""What is kept, why, and what may go: expire decides and records, purge deletes."""
