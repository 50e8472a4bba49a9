"""Tasks of a host worker, and what is changed in Celery and gevent for it."""
