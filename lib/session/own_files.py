"""Links in a session's folder, which may come from somebody else."""

import os

from lib.config.names import shown
from lib.errors import UserError
from lib.session.folder import SessionFolder


def check_no_links(session: SessionFolder) -> None:
    """Going on writes into the folder; a link would have us write somewhere else.

    Raises:
        UserError: something in it is a link.
    """
    for folder, folders, files in os.walk(session.path):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(folder, name)):
                raise UserError(
                    f"session {session.path}: {shown(os.path.join(folder, name))} is a link; a run writes into its own "
                    "folder alone: put there what it leads to, or remove it"
                )
