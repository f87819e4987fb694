"""The two ways a run ends early. Both reach the user as one line on standard error."""


class UserError(Exception):
    """Something the user can mend: an option, a path, a data set. Exit status 2.

    The message says what is wrong, where it was found, and what to do, in one line.
    """


class RunError(Exception):
    """The run failed for a reason outside the command line: a full disk, a loss not finite. Exit status 1."""
