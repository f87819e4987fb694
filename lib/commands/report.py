"""`--report-only`: rewrites the report of a checkpoint's session from its files."""

from lib.commands.call import Call, open_images
from lib.commands.start import resumed_path
from lib.errors import UserError, not_none
from lib.report import Report
from lib.session.folder import SessionFolder, check_own_files


def report(call: Call) -> None:
    """Write report.html of the session.

    Raises:
        UserError: the checkpoint is in no session, or the images are not those of its run.
    """
    pipeline = open_images(call.options, call.world, call.process)
    if not call.world.is_first:
        return
    path = not_none(resumed_path(call.start))
    session = SessionFolder.of_checkpoint(path)
    if session is None:
        raise UserError(f"--report-only: {path} is not in a session's checkpoint folder, so there is no session")
    check_own_files(session)
    seconds = Report(session, pipeline.train, pipeline.fingerprint).write()
    pipeline.close()
    print(f"{session.report}: written in {seconds:.1f} s")
