"""Tasks of a host worker, and how its supervision tells what it did."""
