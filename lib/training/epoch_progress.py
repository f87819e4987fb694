"""An epoch that has begun and not ended: what is to be known of it besides the state of the run."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Underway:
    """How far an epoch is.

    Attributes:
        step: batches learnt from.
        images: in these.
        batches: of the whole epoch.
        loss_sum: over these images.
        seconds: they took, in all processes that had a part in it, one after the other.
    """

    step: int = 0
    images: int = 0
    batches: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores under `underway`; the step has a key of its own."""
        return {
            "images": self.images,
            "batches": self.batches,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, step: int, state: dict[str, Any]) -> "Underway":
        """The inverse of `state`.

        Raises:
            TypeError, KeyError: something is missing, or is no number.
        """
        whole = {name: int(state[name]) for name in ("images", "batches")} if step else {}
        return cls(step, **whole, **{name: float(state[name]) for name in ("loss_sum", "seconds")}) if step else cls()

    def check_fits(self, batch_sizes: tuple[int, ...], iter_size: int) -> None:
        """Whether an epoch of these batches can be gone on with.

        Raises:
            ValueError: it began with other batches, or the next one would not begin an optimiser step.
        """
        if self.step == 0:
            return
        same = self.batches == len(batch_sizes) and self.images == sum(batch_sizes[: self.step])
        if not same or not 0 < self.step < self.batches or self.step % iter_size != 0:
            raise ValueError(
                f"it was written within an epoch, after {self.step} of {self.batches} batches, and the epoch cannot be "
                "gone on with in other ones: use the --batch-size and --iter-size it was made with (with "
                "--no-sync-bn as many processes, too), or a checkpoint from the end of an epoch"
            )
