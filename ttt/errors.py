"""Base classes of the errors that are shown to users; messages say what was wrong, what is allowed and what to do.

Modules define subclasses of their own for errors that only their callers distinguish (HubFileMissing, Busy ...).

TTTError
├── InvalidInput        a prompt, a parameter or a configuration out of its range (also a ValueError)
├── CheckpointError     a file of weights that cannot be used; names the key or the file
│   └── UnsafeCheckpoint   reading it would run code; names `ttt convert --trust-pickle`
├── BundleError         a folder or Hub repository that is not a complete bundle
├── DataError           a data set that cannot be read, or does not fit the model
├── SwarmError          training together cannot start or continue
└── Cancelled           the caller stopped the work
"""

from __future__ import annotations


class TTTError(Exception):
    """Base of all errors that may be shown to a user as they are.

    hint: what the user can do, where that is longer than the message should be; shown below it.
    """

    def __init__(self, *args: object, hint: str = "") -> None:
        super().__init__(*args)
        self.hint = hint


class InvalidInput(TTTError, ValueError):
    """A value out of its range; the message states the range."""


class CheckpointError(TTTError):
    """Weights that do not fit the model; the message names the key or the file."""


class UnsafeCheckpoint(CheckpointError):
    """A file that cannot be read without running the code in it."""


class BundleError(TTTError):
    """A model bundle that is missing, incomplete or broken."""


class DataError(TTTError):
    """A data set that cannot be read or written, or does not fit the model."""


class SwarmError(TTTError):
    """Training together cannot start or continue; the message says what to do."""


class Cancelled(TTTError):
    """The work was stopped on request."""
