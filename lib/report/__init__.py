"""report.html: one file with the results of a session, written at the end of each round.

`Report` is the entry point. It reads all that the page needs from the session's files, so a run that was resumed
gets the same report as one that was not. Matplotlib and scikit-learn are loaded when the first page is made.
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
        session: whose files are read.
        images: the training images that its memory bank belongs to.
        fingerprint: of these images, as checkpoints hold it.
    """

    def __init__(self, session: "SessionFolder", images: "ImageSet", fingerprint: str):
        self.session, self.images, self.fingerprint = session, images, fingerprint
        self._pictures: Optional[Pictures] = None  # keeps its thumbnails
        self._kept: dict[Any, Any] = {}  # earlier rounds by file and time

    def write(self) -> float:
        """Write the page from the session's files; returns the seconds it took.

        Nothing of the run is touched: neither the network in training nor any random state.

        Raises:
            UserError: there is no checkpoint, it belongs to other images, or an image cannot be read.
            OSError: the file cannot be written; an older report is untouched.
        """
        from lib.report.page import assemble
        from lib.report.pictures import Pictures
        from lib.report.template import write

        started = time.perf_counter()
        if self._pictures is None:
            self._pictures = Pictures(self.images)
        write(assemble(self.session, self._pictures, self.fingerprint, self._kept), self.session.report)
        return time.perf_counter() - started

    def write_if_possible(self) -> None:
        """As `write`, but what goes wrong is a warning: a run that trains well must not end for its report."""
        try:
            seconds = self.write()
        except Exception as error:  # whatever it is, the run matters more
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "%s could not be written (%s: %s); the run goes on; --no-report leaves it out, and --resume %s "
                "--report-only tries again",
                self.session.report, type(error).__name__, reason, self.session.path,
            )  # fmt: skip
        else:
            log.info("report    %s, written in %.1f s", self.session.report, seconds)
