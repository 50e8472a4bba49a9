"""`mikrom` and `python -m mikrom_reconcile`: the one way out of the process. Nothing heavy is imported early."""

import gc
import os
import sys
from collections.abc import Sequence

from mikrom_reconcile import __version__
from mikrom_reconcile.cli.commands import COMMANDS, overview

BROKEN_PIPE = 141  # what a shell reports of a program whose reader went away: 128 and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command in `argv`, or in the arguments of this process."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # "?" for what a terminal cannot show, instead of a traceback
    try:
        code = _without_click(words)
        if code is None:
            code = _with_click(words)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:  # all others are answered where they happen
        _discard(sys.stdout.fileno())
        _say(f"error: standard output: {error.strerror}; what was done is in `mikrom history`\n")
        code = 1
    _say("")
    return code


def _without_click(words: list[str]) -> int | None:
    if "_MIKROM_COMPLETE" in os.environ:  # a shell asks what may come next, and its words are in the environment
        return None
    if words in ([], ["--help"], ["-h"]):
        sys.stdout.write(overview())
    elif words in (["version"], ["--version"]):
        sys.stdout.write(f"{__version__}\n")
    else:
        return None
    return 0


def _with_click(words: list[str]) -> int:
    import signal  # noqa: PLC0415 - it costs a tenth of Python's start

    from mikrom_reconcile.cli import entry  # noqa: PLC0415
    from mikrom_reconcile.output.run_result import LATE, USAGE  # noqa: PLC0415
    from mikrom_reconcile.times_and_sizes import RUNS  # noqa: PLC0415

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)  # answered, and kept in the history, as Ctrl-C is

    first = words[0] if words else ""  # a shell that asks what may come next gives no words
    if first in COMMANDS and COMMANDS[first][0] != "Services":
        gc.set_threshold(RUNS.gc_objects)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # else somebody wants it ignored, as nohup does
                signal.signal(number, interrupt)
    code = entry.run(words)
    if code == entry.INTERRUPTED:  # a second signal does not wait for what is under way
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    elif code & LATE and code < USAGE:  # threads with actions past the deadline would keep this process for as long
        sys.stdout.flush()
        _say("")
        os._exit(code)
    return code


def _open_closed_streams() -> None:
    """A stream that was closed (`>&-`) would leave its number to the next file, for every child to write into."""
    for fd, (name, flags) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, flags), fd)
            os.set_inheritable(fd, True)  # noqa: FBT003 - the function has no names
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8"))  # noqa: PTH123, SIM115 - a descriptor


def _say(text: str) -> None:
    """Write to stderr all that is to be written to it; that nobody hears it is no error."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr.fileno())


def _discard(fd: int) -> None:
    """Python flushes both streams once more when it ends; let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


if __name__ == "__main__":
    sys.exit(main())
