"""Links in a session's folder, which may come from somebody else."""

import os

from lib.config.names import shown
from lib.errors import UserError
from lib.session.folder import SessionFolder


def check_no_links(session: SessionFolder) -> None:
    """What is written into the folder must not land somewhere else.

    To be asked before anything is written into a session that was there before.

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
