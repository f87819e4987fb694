"""What all evaluation protocols have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from lib.evaluation.subject import Subject


def _no_files(folder: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class Findings:
    """What a protocol found out about a network.

    Attributes:
        scalars: numbers by their names in metrics.jsonl; accuracies are shares of 1.
        summary: the most important of them in one line.
        table: all of them for a person, several lines; empty if the summary says it all.
        write: writes files with more into a folder and returns their paths.
    """

    scalars: Mapping[str, Optional[float]]
    summary: str
    table: str = ""
    write: Callable[[Path], list[Path]] = field(default=_no_files, repr=False)


class Protocol(ABC):
    """One way of judging a network.

    Attributes:
        name: as `--protocol` names it.
        every: epochs of a round between evaluations while training, the last epoch of a round included; 0: none
            before the run is finished.
    """

    name: str
    every: int

    def obstacle(self) -> Optional[str]:
        """Why this data set cannot be judged so, in words that go on `--protocol NAME: `; None if it can."""
        return None

    @abstractmethod
    def judge(self, subject: Subject) -> Optional[Findings]:
        """The findings. All processes must call it; only the first one's answer counts, others may give None."""

    def is_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a line of metrics.jsonl has this protocol's findings, whose names begin with its own."""
        return any(key.startswith(f"{self.name}_") for key in record)

    def due(self, epoch: int, last: int) -> bool:
        """Whether to judge after this epoch of a round of `last` epochs, both counted from 1."""
        return self.every > 0 and (epoch % self.every == 0 or epoch == last)
