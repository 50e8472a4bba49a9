"""The processes of a fleet: `mikrom up`, and the commands behind worker, Beat and Flower."""
