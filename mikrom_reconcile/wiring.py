"""The composition root: it alone knows every adapter. It imports in functions: a command pays for what it uses."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mikrom_reconcile.core.model.errors import SetupError, SourceError, UsageError
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system.files import make_folder
from mikrom_reconcile.system.time_limits import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mikrom_reconcile.control.ports import Engine, Hosts, RunStore
    from mikrom_reconcile.control.sources.last_good import LastGood
    from mikrom_reconcile.core.model.documents import SourceTree
    from mikrom_reconcile.dispatch.app import FleetApp
    from mikrom_reconcile.host.agent import HostAgent
    from mikrom_reconcile.host.drivers.select import Choice
    from mikrom_reconcile.host.ports import Driver
    from mikrom_reconcile.host.resources.images import ImageCache
    from mikrom_reconcile.system.approvals import Approvers

KINDS = ("Project", "Inventory", "Image", "Network", "Fleet", "Refactor")  # documents, each kind with a schema


@cache
def schemas() -> dict[str, str]:
    """Kind to the text of its JSON Schema."""
    return {kind: schema_text(kind.lower()) for kind in KINDS}


def schema_text(name: str) -> str:
    """The text of a JSON Schema: from the package, or from the checkout."""
    packaged = Path(__file__).with_name("schemas")  # importlib.resources would take 5 ms
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "schemas"
    return (folder / f"{name}.schema.json").read_text(encoding="utf-8")


def read_tree(settings: Settings, paths: Sequence[str], known: SourceTree | None = None) -> SourceTree:
    """The specs at `paths`, MIKROM_SPECS or ./specs; `known` is not fetched again. Raises SourceError, UsageError."""
    chosen = list(paths) or [settings.chosen_specs()]
    if not all(chosen):
        raise UsageError("an empty PATH names no specs; leave it out, or write . for this folder")
    if any(path.startswith("git+") for path in chosen):
        from mikrom_reconcile.control.sources.git import GitSource, Signers

        if len(chosen) > 1:
            raise UsageError("specs from git are one source: give one git+ address and nothing else")
        signers = Signers(ssh=settings.git_allowed_signers, gpg=settings.git_gnupghome)
        return GitSource.of(chosen[0], signers=signers).read(known)
    if not paths and settings.specs and (settings.git_allowed_signers or settings.git_gnupghome):
        raise UsageError("commits are to be signed, and MIKROM_SPECS is no git+ address: nothing of a folder is signed")
    from mikrom_reconcile.control.sources.files import around, read_files, refuse_left_out, refuse_part

    places = [Path(path) for path in chosen]
    try:
        tree = read_files(places)
    except SourceError as error:
        raise (UsageError(str(error)) if paths else error) from error
    refuse_part(tree.files, around(places))
    refuse_left_out(tree, places)
    return tree


def make_source(settings: Settings) -> LastGood:
    """MIKROM_SPECS as scheduled runs use it, with the last good revision below the state folder."""
    from mikrom_reconcile.control.sources.git import Signers
    from mikrom_reconcile.control.sources.last_good import LastGood
    from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs

    return LastGood(
        settings.specs or "",
        read=lambda known: read_tree(settings, (), known),
        check=lambda tree: render_all(validate_specs(tree, schemas(), here=settings.host), here=settings.host),
        identity=Signers(ssh=settings.git_allowed_signers, gpg=settings.git_gnupghome).identity,
        folder=settings.state_dir / "source",
    )


def open_engine(settings: Settings) -> Engine:
    """The engine that commands drive: through the broker if there is one, else in this process, the only host."""
    broker_url = broker_of(settings)
    if broker_url is not None:
        from mikrom_reconcile.dispatch.transport.broker import signing_key_of_up

        if settings.broker_url is None and settings.signing_key is None:
            settings = replace(settings, signing_key=signing_key_of_up(settings))
        return remote_engine(settings, broker_url)
    from mikrom_reconcile.control.stores.files import FileStore
    from mikrom_reconcile.dispatch.hosts.local import LocalHosts

    # outcomes are shown as progress; without a handler Python would print them on stderr, too
    logging.getLogger("mikrom_reconcile.host").addHandler(logging.NullHandler())
    store = FileStore(settings.state_dir / "store", settings.state_dir / "locks")
    return make_reconciler(settings, LocalHosts(make_host_agent(settings)), store, alone=True)


def broker_of(settings: Settings) -> str | None:
    """The broker to use: as set, else that of a `mikrom up` running here, else None: embedded."""
    from mikrom_reconcile.dispatch.transport.broker import find_up

    return settings.broker_url or find_up(settings)


def place_of(settings: Settings) -> tuple[str, str]:
    """Which hosts are meant here, as an id and in words: those of a fleet, or this machine with its state folder."""
    if settings.broker_url:
        from mikrom_reconcile.control.stores.redis import translate_broker_errors
        from mikrom_reconcile.dispatch.transport.broker import fleet_id, without_password

        with translate_broker_errors():
            return fleet_id(settings), f"the fleet of {without_password(settings.broker_url)}"
    from mikrom_reconcile.dispatch.transport.shared_state import machine_id

    try:
        make_folder(settings.state_dir)
        here = machine_id(settings.state_dir)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}; set MIKROM_STATE_DIR to a writable folder") from error
    return here, f"{settings.state_dir} on {os.uname().nodename}"


def remote_engine(settings: Settings, broker_url: str) -> Engine:
    """A control worker of the fleet. Raises SetupError within 3 s when its broker is away."""
    from mikrom_reconcile.control.stores.redis import RedisStore
    from mikrom_reconcile.dispatch.app import make_app
    from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts, RemoteEngine
    from mikrom_reconcile.dispatch.transport.broker import connect

    app, redis = make_app(replace(settings, broker_url=broker_url)), connect(broker_url)
    return RemoteEngine(app, redis, hosts=CeleryHosts(app, redis), store=RedisStore(redis, prefix=app.keys.prefix))


def fleet_app(settings: Settings) -> FleetApp:
    """The app of the workers, Beat and Flower on this machine, with its tasks. Connects to nothing."""
    from mikrom_reconcile.control.snapshot import Snapshots
    from mikrom_reconcile.control.stores.redis import RedisStore
    from mikrom_reconcile.dispatch.app import make_app
    from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
    from mikrom_reconcile.dispatch.process import FleetProcess

    settings = replace(settings, broker_url=broker_of(settings))
    app = make_app(settings)
    hosts, store = CeleryHosts(app, app.redis), RedisStore(app.redis, prefix=app.keys.prefix)
    agent, engine = cache(lambda: make_host_agent(settings)), cache(lambda: make_reconciler(settings, hosts, store))
    snapshots = Snapshots(engine, schemas(), settings.host)
    FleetProcess(app, agent=agent, engine=engine, source=make_source(settings), store=store, snapshots=snapshots)
    return app


def make_reconciler(
    settings: Settings, hosts: Hosts, store: RunStore, *, alone: bool = False, clock: Clock | None = None
) -> Engine:
    """The engine that plans and applies in this process, over any hosts and store; `alone` reaches no other host."""
    from mikrom_reconcile.control.policy import Policy
    from mikrom_reconcile.control.reconcile import Reconciler

    policy, clock = Policy(command=settings.policy, approvers=approvers_of(settings)), clock or Clock()
    return Reconciler(
        here=settings.host, hosts=hosts, store=store, clock=clock, schemas=schemas(), alone=alone, policy=policy
    )


def approvers_of(settings: Settings) -> Approvers:
    """Who has to approve what takes data away, on this machine."""
    from mikrom_reconcile.system.approvals import Approvers

    return Approvers(file=settings.approvers, needed=settings.approvals)


def make_host_agent(settings: Settings) -> HostAgent:
    """This machine as a host, with the driver that the settings choose."""
    from mikrom_reconcile.host.agent import HostAgent
    from mikrom_reconcile.host.drivers.select import choice_of
    from mikrom_reconcile.host.records import Records

    choice = choice_of(settings)
    driver, records, images = make_driver(settings, choice), Records(settings.state_dir), _images(settings)
    agent = HostAgent(settings.host, driver=driver, records=records, clock=Clock(), images=images, note=choice.note)
    agent.require(approvers_of(settings))
    return agent


def _images(settings: Settings) -> ImageCache:
    from mikrom_reconcile.host.resources.images import ImageCache

    return ImageCache(
        settings.state_dir,
        folders=settings.image_dirs,
        max_mib=settings.image_max_mib,
        registry_auth=settings.registry_auth,
        registry_mirrors=dict(settings.registry_mirrors),
    )


def digest_of_tag(settings: Settings, image: str, *, deadline_s: float) -> str:
    """The digest, in hexadecimal, of what a registry has now under `registry/name:tag`. Raises FetchError."""
    from mikrom_reconcile.host.oci.sources import registry_of

    registry = registry_of(image, settings.registry_auth, dict(settings.registry_mirrors))
    return registry.digest_of(image, give_up_at=time.monotonic() + deadline_s)


def make_driver(settings: Settings, choice: Choice) -> Driver:
    """The chosen driver."""
    state_dir, run_dir = settings.state_dir, settings.run_dir
    if choice.driver == "simulated":
        from mikrom_reconcile.host.drivers.simulated import SimulatedDriver

        return SimulatedDriver(state_dir)
    from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner, Secrets

    images, secrets = _images(settings), Secrets(settings.secret_dirs, settings.secret_env)
    provisioner = ResourceProvisioner(state_dir, images=images, secrets=secrets, drive_dirs=settings.drive_dirs)
    if choice.driver == "qemu":
        from mikrom_reconcile.host.drivers.qemu import QemuDriver

        return QemuDriver(choice.binary, state_dir=state_dir, run_dir=run_dir, provisioner=provisioner)
    from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver

    return FirecrackerDriver(
        choice.binary, jailer=choice.jailer, state_dir=state_dir, run_dir=run_dir, provisioner=provisioner
    )
