"""Whether this machine can run what it should: drivers, room, services, and what an intruder could use."""
