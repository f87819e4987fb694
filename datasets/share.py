"""Which part of a batch, or of a whole set, is one process's."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of P `processes`: of B rows those from B * rank // P up to B * (rank + 1) // P.

    The parts of all processes, in the order of their ranks, are the whole. Their sizes differ by one row at most,
    and with fewer rows than processes some parts are empty.
    """

    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank {self.rank} of {self.processes} processes")

    def span(self, count: int) -> slice:
        """Where the part lies in `count` rows."""
        return slice(count * self.rank // self.processes, count * (self.rank + 1) // self.processes)

    def part(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a tensor."""
        return rows[self.span(len(rows))]


WHOLE = Share()
