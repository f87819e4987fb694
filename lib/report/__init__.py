"""report.html: one file that shows what a session came to, written at the end of each round.

`Report` is the way in. What the page needs it reads from the session's files, so a run that was stopped and gone on
with gets the same report as one that was not. Matplotlib and scikit-learn are loaded when the first page is made.
"""

from lib.report.report import Report

__all__ = ["Report"]
