"""Redis and what travels over it: keys, heartbeats, calls and replies, signed orders, and what workers share."""
