"""The ways a run ends early. Each reaches the user as one line on standard error."""

LOST_CONTACT = 75
"""Exit status of a process that stopped because another one did: EX_TEMPFAIL of sysexits.h."""


class UserError(Exception):
    """Something the user can mend: an option, a path, a data set. Exit status 2.

    The message says what is wrong, where it was found, and what to do, in one line.
    """


class RunError(Exception):
    """The run failed for a reason outside the command line: a full disk, a loss not finite. Exit status 1."""


class LostContact(RunError):
    """Another process of the run has ended or cannot be reached. Exit status `LOST_CONTACT`."""
