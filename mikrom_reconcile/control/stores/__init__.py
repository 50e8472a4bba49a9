"""Memory between runs: SQLite for one machine, Redis for a fleet; one contract."""
