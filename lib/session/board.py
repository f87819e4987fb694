"""TensorBoard files: one writer for the whole run, and one a round so that rounds can be laid over each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from lib.method.neighbourhoods import Neighbourhoods


class Board:
    """Writes under `tfboard/run` against the epoch of the run, and under `tfboard/round-R` against that of the round.

    Args:
        folder: where the event files go, or None to write nothing.
        max_epoch: epochs in a round, for the steps of the whole run.
        after: (round, epoch) that was completed before; what older files say of later steps is dropped from view.
    """

    def __init__(self, folder: Optional[Path], max_epoch: int, after: tuple[int, int] = (0, 0)):
        self.folder = folder
        self.max_epoch = max_epoch
        self._after = after
        self._writers: dict[str, Any] = {}

    def _writer(self, name: str) -> Any:
        from tensorboardX import SummaryWriter  # a second of import that --no-log-tfb need not pay

        if name not in self._writers:
            path = self.folder / name
            purge_step = self._first_step(name) if path.exists() else None
            self._writers[name] = SummaryWriter(str(path), flush_secs=30, purge_step=purge_step)
        return self._writers[name]

    def _first_step(self, name: str) -> int:
        """The first step that a writer gets to write after going on."""
        round_number, epoch = self._after
        if name == "run":
            return round_number * self.max_epoch + epoch + 1
        return epoch + 1 if name == f"round-{round_number}" else 0

    def epoch(self, record: dict[str, Any], best_of_round: Optional[float], best_of_run: Optional[float]) -> None:
        """The scalars of one epoch, from its line in metrics.jsonl, and the best accuracies so far."""
        if self.folder is None:
            return
        scalars = {
            "Train/Loss": record["loss"],
            "Train/Learning_Rate": record["lr"],
            "Train/Images_per_second": record["images_per_second"],
            "Evaluate/Rank-1": record["knn_top1"],
        }
        run_step = record["round"] * self.max_epoch + record["epoch"]
        for name, step, best in (
            ("run", run_step, best_of_run),
            (f"round-{record['round']}", record["epoch"], best_of_round),
        ):
            writer = self._writer(name)
            for tag, value in {**scalars, "Evaluate/best_acc": best}.items():
                if value is not None:
                    writer.add_scalar(tag, value, step)
            writer.flush()

    def scalars(self, round_number: int, epoch: int, values: Mapping[str, Optional[float]]) -> None:
        """More numbers of an epoch, each as Evaluate/NAME."""
        if self.folder is None:
            return
        run_step = round_number * self.max_epoch + epoch
        for name, step in (("run", run_step), (f"round-{round_number}", epoch)):
            writer = self._writer(name)
            for key, value in values.items():
                if value is not None:
                    writer.add_scalar(f"Evaluate/{key}", value, step)
            writer.flush()

    def discovery(self, round_number: int, found: Neighbourhoods) -> None:
        """What a round starts from: number of anchors, consistency, and the histogram of entropies."""
        if self.folder is None:
            return
        for name, step in (("run", round_number * self.max_epoch), (f"round-{round_number}", 0)):
            writer = self._writer(name)
            writer.add_scalar("ANs/Number", len(found.anchor_indexes), step)
            if found.consistency is not None:
                writer.add_scalar("ANs/Consistency", found.consistency, step)
            if round_number > 0:
                writer.add_histogram("ANs/Entropy", found.entropy.cpu().numpy(), step)
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
