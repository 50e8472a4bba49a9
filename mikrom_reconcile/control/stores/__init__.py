"""Memory between runs: files for one machine, Redis for a fleet; one contract."""
