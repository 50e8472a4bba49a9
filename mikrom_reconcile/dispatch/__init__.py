"""How control reaches hosts: a thread pool in this process, or Celery over Redis. The only place that knows Celery."""
