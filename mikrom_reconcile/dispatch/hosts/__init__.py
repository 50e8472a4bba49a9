"""The hosts of a fleet, in this process or over Celery: both are the port `Hosts` of control."""
