"""Drivers: each knows one kind of VMM and obeys the port in `host/ports.py` and its contract tests."""
