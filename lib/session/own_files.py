"""What is no file or folder of ours in a session's folder, which may come from somebody else."""

import os

from lib.errors import UserError, shown
from lib.session.folder import SessionFolder


def check_own_files(session: SessionFolder) -> None:
    """What is written into the folder must not land somewhere else, nor wait for a reader that never comes.

    To be asked before anything is written into a session that was there before.

    Raises:
        UserError: something in it is a link, a pipe or the like, or a folder that has the name of a file.
    """
    texts = (session.log, session.config, session.metrics, session.starts, session.final)
    for file in (*texts, session.report, session.features):
        if file.is_dir():
            raise UserError(f"session {session.path}: {file} is a folder where a file belongs; move it away")
    for folder, folders, files in os.walk(session.path):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                raise UserError(
                    f"session {session.path}: {shown(path)} is a link; a run writes into its own folder alone: put "
                    "there what it leads to, or remove it"
                )
            # a file that has gone while we look is no matter
            if not os.path.isdir(path) and not os.path.isfile(path) and os.path.lexists(path):
                raise UserError(f"session {session.path}: {shown(path)} is no ordinary file; remove it")
