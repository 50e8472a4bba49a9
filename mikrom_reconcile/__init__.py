"""mikrom reconcile: Firecracker microVM fleets from YAML, made so and kept so.

This module only names the version. It imports nothing, because `mikrom --help` and the gevent worker both
pass through here before anything else may be loaded.
"""

__version__ = "0.1.0"
