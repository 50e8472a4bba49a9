"""The target of `celery -A mikrom_reconcile.celery_app …`: the app of workers, Beat and Flower on this machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from mikrom_reconcile import settings as settings_module
from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.dispatch.app import FleetApp, make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.registry import register


def _make() -> FleetApp:
    try:
        settings_module.refuse_misspelt()
        settings = settings_module.load()
        settings = replace(settings, broker_url=wiring.broker_of(settings))
        made = make_app(settings)
    except MikromError as error:
        raise SystemExit(f"mikrom: {error}") from error
    store = RedisStore(made.redis, prefix=made.keys.prefix)
    hosts = CeleryHosts(made, made.redis)
    register(
        made,
        agent=cache(lambda: wiring.make_host_agent(settings)),
        engine=cache(lambda: wiring.make_reconciler(settings, hosts, store)),
        source=wiring.make_source(settings),
    )
    return made


app = _make()
