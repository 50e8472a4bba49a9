"""Where tests keep what they make: memory where there is some, since a busy disk is no part of what they test."""

from __future__ import annotations

import os

SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else "/tmp"
"""Short either way: a socket path has at most 107 bytes."""
