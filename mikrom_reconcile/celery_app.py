"""The target of `celery -A mikrom_reconcile.celery_app …`: the app of workers, Beat and Flower on this machine."""

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.core.model.errors import MikromError

try:
    settings.refuse_misspelt()
    app = wiring.fleet_app(settings.load())
except MikromError as error:
    raise SystemExit(f"mikrom: {error}") from error
