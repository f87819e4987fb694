"""report.html: one file with the results of a session, written at the end of each round.

`Report` is the entry point. It reads all its data from the session's files, so a resumed run gets the same report
as an uninterrupted one. Matplotlib and scikit-learn are imported when the first page is made.
"""

import logging
import time
from typing import TYPE_CHECKING, Any, Optional

from lib.logger.console import LOGGER

if TYPE_CHECKING:
    from datasets.image_set import ImageSet
    from lib.report.pictures import Pictures
    from lib.session.folder import SessionFolder

log = logging.getLogger(LOGGER)


class Report:
    """Writes `report.html` of a session.

    Args:
        session: the session folder whose files are read.
        images: the training images that its memory bank belongs to.
        fingerprint: of these images, as checkpoints hold it.
    """

    def __init__(self, session: "SessionFolder", images: "ImageSet", fingerprint: str):
        self.session, self.images, self.fingerprint = session, images, fingerprint
        self._pictures: Optional[Pictures] = None  # a cache of thumbnails
        self._cache: dict[Any, Any] = {}  # earlier rounds by file and time

    def write(self) -> float:
        """Write the page from the session's files; returns the seconds it took.

        The run does not change: neither the network in training nor any random state.

        Raises:
            UserError: there is no checkpoint, it belongs to other images, or an image cannot be read.
            OSError: the file cannot be written; an older report is untouched.
        """
        from lib.report.page import assemble
        from lib.report.pictures import Pictures
        from lib.report.template import write_page

        started = time.perf_counter()
        if self._pictures is None:
            self._pictures = Pictures(self.images)
        write_page(assemble(self.session, self._pictures, self.fingerprint, self._cache), self.session.report)
        return time.perf_counter() - started

    def write_if_possible(self) -> None:
        """As `write`, but an error becomes a warning: a run must not end because of its report."""
        try:
            seconds = self.write()
        except Exception as error:  # of any kind: the run matters more
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "%s could not be written (%s: %s); the run continues; --no-report leaves it out, and --resume %s "
                "--report-only tries again",
                self.session.report, type(error).__name__, reason, self.session.path,
            )  # fmt: skip
        else:
            log.info("report    %s, written in %.1f s", self.session.report, seconds)
