"""Pages that open offline: figures by matplotlib, templates by jinja2, everything in one file. No PyTorch here.

matplotlib is imported and used as it ships, whatever the environment and the user's matplotlibrc say.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def _import_matplotlib() -> ModuleType:
    """Without MPLBACKEND. A notebook hands it to all that it starts, and without its backend the import fails."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib

        return matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


matplotlib = _import_matplotlib()


@contextmanager
def as_shipped() -> Iterator[None]:
    """Figures made and drawn within it have matplotlib's own settings: a user's may ask for LaTeX or other fonts."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
