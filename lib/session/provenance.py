"""The provenance of a run: package versions, git revision, system, command line."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import torchvision

ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute, and the system."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "faiss": _faiss_version(),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _faiss_version() -> str:
    try:
        return importlib.metadata.version("faiss-cpu")  # importing faiss takes a fifth of a second
    except importlib.metadata.PackageNotFoundError:  # conda's package has another name
        import faiss

        return faiss.__version__


def git_revision() -> str:
    """The commit of the code, `with local changes` if files differ from it; `unknown` outside a checkout."""
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision} with local changes" if changed else revision


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def command_line() -> str:
    """The command of this process, quoted for a shell."""
    import shlex

    return " ".join(shlex.quote(part) for part in ["python3", *sys.argv])
