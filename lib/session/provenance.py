"""What a run should be able to say about itself: versions, revision, machine."""

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
    """Names and versions of what computed the numbers."""
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
        return importlib.metadata.version("faiss-cpu")  # importing it would take a fifth of a second at the start
    except importlib.metadata.PackageNotFoundError:  # conda's is called otherwise
        import faiss

        return faiss.__version__


def git_revision() -> str:
    """The commit of the code, marked if the files differ from it; `unknown` outside a checkout."""
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
    """The command as it was typed, near enough to paste."""
    import shlex

    return " ".join(shlex.quote(part) for part in ["python3", *sys.argv])
