"""`mikrom adopt`: takes over a microVM that somebody started by hand, and writes the documents that describe it."""

from pathlib import Path

import click
import yaml
from msgspec.structs import replace

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options, queries, run_flow
from mikrom_reconcile.cli.entry import show
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.documents import SourceFile
from mikrom_reconcile.core.model.errors import MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.observed import Described, ObserveQuery
from mikrom_reconcile.output.text import Document
from mikrom_reconcile.settings import load
from mikrom_reconcile.system.files import write_named


@click.command()
@click.argument("vm", metavar="HOST/VM")
@options.paths
@click.option("--socket", required=True, metavar="FILE", help="The API socket of its Firecracker, on HOST.")
@click.option("--out", metavar="FILE", callback=options.no_dash, help="Take it over, and write the documents here.")
@click.option("--check", is_flag=True, help="Only show the documents with which apply would take it over.")
def adopt(vm: str, paths: tuple[str, ...], socket: str, out: str | None, *, check: bool) -> int:
    """Take over the microVM that somebody started by hand on HOST, as VM of the specs in PATH: it goes on as it is.

    The documents that describe it belong into the specs then, and the next plan is empty. What the specs have no words
    for is refused by name before anything is changed. Exits as `mikrom apply`.

    \b
      mikrom adopt hv01/web specs/ --socket /run/foo.sock --out specs/web.yml
    """  # noqa: D301 - click's mark for lines that stay as they are
    host, _, name = vm.partition("/")
    is_new = bool(out and Path(out).parent.is_dir() and not Path(out).exists())
    if not (host and name and socket.startswith("/") and check != bool(out) and check != is_new):
        raise UsageError("write HOST/VM, the whole path of the socket, and either --check or --out with a new FILE")
    settings = load()
    specs, engine = queries.specs_in(settings, paths), wiring.open_engine(settings)
    found, is_ours = _described(engine, host, name, socket)
    place, template = {"host": host} if specs.inventory.hosts else {}, {"image": name} | found.template
    documents = [("Image", found.image), ("Fleet", {"instances": {name: place}, "template": template})]
    text = _text(name, *documents, ("Refactor", {"import": [{"to": name, "host": host, "socket": socket}]}))
    tree = replace(specs.tree, files=(*specs.tree.files, SourceFile(path=out or "what was found", text=text)))
    request = run_flow.request_for("adopt", tree, settings, limit=name)
    if not out:
        if not is_ours:
            engine.plan(request)  # which says what speaks against it
        show(text)
        return 0
    if not is_ours and (code := run_flow.run_flow(engine, request, yes=True, form="text")):
        return code
    try:
        write_named(out, _text(name, *documents).encode())
    except OSError as error:
        raise SourceError(f"{out}: {error.strerror}; {name} is taken over, and the same again writes it") from error
    show(f"{out} describes it, as pid {found.pid}: the next run removes it if that is not in the specs.\n")
    return 0


def _described(engine: Engine, host: str, name: str, socket: str) -> tuple[Described, bool]:
    """What describes it, and whether it was taken over before. Raises UsageError for a name or a VMM of another VM."""
    seen = queries.views_of(engine, ask=lambda each: ObserveQuery(socket=socket if each == host else ""), also=[host])
    views = {view.host: view for view in seen}
    if (report := views[host].report) is None or (found := report.described) is None:
        raise MikromError(f"{host} cannot be asked: {views[host].error or 'its release is earlier'}. Nothing was done.")
    if found.problem:
        raise MikromError(f"{name} on {host} cannot be taken over: {found.problem}. Nothing was done.")
    rows = [row for each in views.values() if each.report for row in each.report.vms]
    for row in rows:
        if (row.name == name) != ((row.host, row.pid) == (host, found.pid)):
            raise UsageError(f"{row.name} on {row.host} (pid {row.pid}) is there already. Nothing was done.")
    return found, name in {row.name for row in rows}


def _text(name: str, *parts: tuple[str, Document]) -> str:
    head = {"apiVersion": "mikrom/v1", "kind": "", "metadata": {"name": name}}
    return yaml.safe_dump_all(
        [head | {"kind": kind, "spec": spec} for kind, spec in parts], sort_keys=False, width=1000
    )
