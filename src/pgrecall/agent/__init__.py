"""The process beside a server: it archives, fetches ahead, receives, and keeps the schedule."""
