"""Preparing a batch while the one before is still being computed with."""

from typing import Callable

import torch
from torch import Tensor


class SideStream:
    """Runs work on a CUDA device beside what the current stream is busy with; on a CPU it just runs it.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which may still be making what is read

    def run(self, make: Callable[..., tuple[Tensor, ...]], *arguments: object) -> tuple[Tensor, ...]:
        """`make(*arguments)`, for use on the current stream, which waits for it; this process does not."""
        if self._stream is None:
            return make(*arguments)
        with torch.cuda.stream(self._stream):
            made = make(*arguments)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)  # or its memory would be given to the next batch too early
        return made
