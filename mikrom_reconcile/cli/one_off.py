"""`mikrom start`, `stop`, `pause`, `resume`, `restart` and `delete`: one deed on VMs by name, past the specs."""

from __future__ import annotations

from typing import Any

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.run_flow import carry_out, refuse_without_anybody_to_ask
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.output import formats

_names = click.argument("names", nargs=-1, required=True, metavar="VM...")
_NO_SPECS = SourceTree(revision="", files=())


def _carry_out(verb: Verb, form: str, *, yes: bool, **asked: Any) -> int:
    current = settings.load()
    request = request_for(verb, _NO_SPECS, current, verb=verb, **asked)
    return carry_out(wiring.open_engine(current), request, yes=yes, form=form)


def _command(verb: Verb, text: str) -> click.Command:
    """A command that does not ask: what it does can be undone."""

    @click.command(verb, help=f"{text}\n\nVM may hold * and ?. The next run undoes what the specs contradict.")
    @_names
    @options.timeout
    @options.forks
    @options.output(formats.RUN)
    def command(form: str, **asked: Any) -> int:
        return _carry_out(verb, form, yes=True, **asked)

    return command


start = _command("start", "Start VMs. A paused one is resumed, a parked one gets its attempts back.")
stop = _command("stop", "Stop VMs: Ctrl-Alt-Del, then kill. A paused guest is resumed for it.")
pause = _command("pause", "Let guests stand still. Their VMMs, and all that they have in memory, stay.")
resume = _command("resume", "Let paused guests go on where they were.")
restart = _command("restart", "Stop VMs and start them again. One that was ordered to be paused is paused again.")


@click.command()
@_names
@options.yes
@options.timeout
@options.forks
@options.output(formats.RUN)
def delete(form: str, *, yes: bool, **asked: Any) -> int:
    """Remove VMs and everything that was made for them. Asks first; `prevent_destroy` holds.

    VM may hold * and ?. The next run makes those anew that the specs want.
    """
    refuse_without_anybody_to_ask(yes=yes)
    return _carry_out("delete", form, yes=yes, **asked)
