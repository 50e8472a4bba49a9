"""mikrom reconcile: Firecracker microVM fleets from YAML, made so and kept so. It imports nothing, on purpose."""

__version__ = "0.1.0"
