"""What goes wrong below an action, and how it becomes the action's: of which VM, while what was done, worth another try
or not. Whoever finds a fault says what it is, and leaves the rest to `translate_errors`.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.system.download import FetchError

_PERMANENT_ERRORS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),  # somebody has to allow it
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),  # or mend a path
        *(errno.ENOEXEC, errno.EINVAL, errno.ENODEV, errno.ENXIO),  # or a program or a device
    }
)
_SHORTAGES = (
    *(errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.EBUSY, errno.ENFILE, errno.EMFILE),
    *(errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT),
)
_TEMPORARY_FAULT = re.compile(rf"\(os error ({'|'.join(map(str, _SHORTAGES))})\)")
"""Firecracker's faults end in the system's error, if one was the cause; without one the configuration is wrong."""


class VMMError(Exception):
    """A VMM did not do what it was asked."""


class FaultError(VMMError):
    """It refused, in its own words."""


class UnreachableError(VMMError):
    """Nobody listens at its socket, or not who should."""


class NoAnswerError(VMMError):
    """Somebody listens, and did not answer in time or not in the VMM's language."""


@contextmanager
def translate_errors(vm: str, doing: str) -> Iterator[None]:
    """Turn what is raised inside into a TemporaryError or PermanentError of `vm` "while `doing`"."""
    try:
        yield
    except ActionError as error:
        if error.step:
            raise
        raise type(error)(str(error), vm=vm, step=doing) from error
    except FetchError as error:
        kind = PermanentError if error.lasting else TemporaryError
        raise kind(str(error), vm=vm, step=doing) from error
    except FaultError as error:
        kind = TemporaryError if _TEMPORARY_FAULT.search(str(error)) else PermanentError
        raise kind(f"its VMM refused: {error}", vm=vm, step=doing) from error
    except VMMError as error:
        raise TemporaryError(f"its VMM failed: {error}", vm=vm, step=doing) from error
    except OSError as error:
        kind = PermanentError if error.errno in _PERMANENT_ERRORS else TemporaryError
        where = f"{error.filename}: " if error.filename else ""
        raise kind(f"{where}{error.strerror or error}", vm=vm, step=doing) from error
