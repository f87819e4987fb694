"""The ways a run ends early. Each reaches the user as one line on standard error."""


def one_line(text: object) -> str:
    """A text without line breaks and other things a terminal would act upon: names of files may hold anything."""
    return "".join(part if part.isprintable() else repr(part)[1:-1] for part in str(text))


PEER_FAILURE = 75
"""Exit status of a process that stopped because another one did: EX_TEMPFAIL of sysexits.h."""


class UserError(Exception):
    """Something the user can mend: an option, a path, a data set. Exit status 2.

    The message says what is wrong, where it was found, and what to do, in one line.
    """


class UnreadableImage(UserError):
    """An image file that cannot be read as one, which --skip-bad-images leaves out."""


class RunError(Exception):
    """The run failed for a reason outside the command line: a full disk, a loss not finite. Exit status 1."""


class Interrupted(Exception):
    """The run was asked to stop by a signal, and did. Exit status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
        message: where the run stopped and how to go on, in one line.
        by_all: whether all processes of the run have agreed on it, and each raises it.
    """

    def __init__(self, number: int, message: str, by_all: bool = False):
        super().__init__(message)
        self.status = 128 + number
        self.by_all = by_all


class PeerFailure(RunError):
    """Another process of the run has ended or cannot be reached. Exit status `PEER_FAILURE`."""
