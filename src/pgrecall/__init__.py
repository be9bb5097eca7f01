"""pgrecall brings any PostgreSQL server back to any moment, and proves every day that it can."""

__version__ = "0.1.0"
