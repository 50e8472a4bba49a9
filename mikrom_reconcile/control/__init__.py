"""One run: read, observe, plan, send orders, collect outcomes, verify. The same code for CLI, Beat and pipeline."""
