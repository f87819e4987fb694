"""TensorBoard files: one writer for the whole run, and one a round so that rounds can be laid over each other."""

from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from lib.method.neighbourhoods import Neighbourhoods


class Board:
    """Writes under `tfboard/run` against the epoch of the run, and under `tfboard/round-R` against that of the round.

    Args:
        folder: where the event files go, or None to write nothing.
        max_epoch: epochs in a round, for the steps of the whole run.
    """

    def __init__(self, folder: Optional[Path], max_epoch: int):
        self.folder = folder
        self.max_epoch = max_epoch
        self._writers: dict[str, Any] = {}

    def _writer(self, name: str) -> Any:
        from tensorboardX import SummaryWriter  # a second of import that --no-log-tfb need not pay

        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self.folder / name), flush_secs=30)
        return self._writers[name]

    def epoch(self, record: dict[str, Any], best_top1: Optional[float]) -> None:
        """The scalars of one epoch, from its line in metrics.jsonl."""
        if self.folder is None:
            return
        scalars = {
            "Train/Loss": record["loss"],
            "Train/Learning_Rate": record["lr"],
            "Train/Images_per_second": record["images_per_second"],
            "Evaluate/Rank-1": record["knn_top1"],
            "Evaluate/best_acc": best_top1,
        }
        steps = {
            "run": record["round"] * self.max_epoch + record["epoch"],
            f"round-{record['round']}": record["epoch"],
        }
        for name, step in steps.items():
            writer = self._writer(name)
            for tag, value in scalars.items():
                if value is not None:
                    writer.add_scalar(tag, value, step)
            writer.flush()

    def discovery(self, round_number: int, found: Neighbourhoods) -> None:
        """What a round starts from: number of anchors, consistency, and the histogram of entropies."""
        if self.folder is None:
            return
        for name in ("run", f"round-{round_number}"):
            writer = self._writer(name)
            writer.add_scalar("ANs/Number", len(found.anchor_indexes), round_number)
            if found.consistency is not None:
                writer.add_scalar("ANs/Consistency", found.consistency, round_number)
            if round_number > 0:
                entropy: Tensor = found.entropy
                writer.add_histogram("ANs/Entropy", entropy.cpu().numpy(), round_number)
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
