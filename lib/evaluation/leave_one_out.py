"""kNN accuracy where no image is kept apart: every training image is judged by all the others."""

from typing import Optional

import torch

from lib.distributed.shard import Shard
from lib.evaluation.bank_statistics import sample_rows
from lib.evaluation.knn import Accuracy, weighted_knn
from lib.evaluation.subject import Subject
from lib.evaluation.voting import Voting, one_class

LARGEST_SAMPLE = 10_000
"""Images that are judged; of more, so many at even distances. All vote."""


class LeaveOneOut(Voting):
    """As `Voting`, for training images of which some or all have labels and that have no test images beside them.

    Labels play no part in the training, so the images were not learnt with the answer; but they were learnt from, and
    another picture of the same moment may be among the others. Images without a label are not judged and do not vote.
    """

    title, note = "leave-one-out kNN", " (leave-one-out)"
    described = "leave-one-out: each labelled training image by the labels of its nearest others"

    def obstacle(self) -> Optional[str]:
        if len(self._labelled()) >= 2:
            return None
        nothing = f"{self.pipeline.name} has no labelled test images, nor labelled training images to do without"
        return one_class(self.pipeline) or nothing

    def accuracy(self, subject: Subject) -> Accuracy:
        """The vote of all labelled training images but itself on each that is judged."""
        rows, train = subject.train, self.pipeline.train  # (n, D), of this process
        everything, labelled = Shard(self.world, len(train)), self._labelled()
        shard = Shard.part_of(everything, labelled)
        here = labelled[shard.start : shard.stop] - everything.start
        database = rows[here.to(rows.device)]  # those with a label
        labels = torch.from_numpy(train.labels)[labelled].to(rows.device)
        judged = sample_rows(len(labels), LARGEST_SAMPLE)
        asked = Shard.part_of(shard, judged)
        own = database[(judged[asked.start : asked.stop] - shard.start).to(rows.device)]
        judged = judged.to(rows.device)
        return weighted_knn(
            self.world.gather_rows(own, asked.counts),
            labels[judged],
            database,
            labels,
            len(train.classes),
            self.k,
            self.sigma,
            self.backend,
            shard,
            own=judged,
        )

    def _labelled(self) -> torch.Tensor:
        """(L,) row numbers of the training images that have a label."""
        labels = self.pipeline.train.labels
        known = torch.empty(0) if labels is None else torch.from_numpy(labels)
        return torch.nonzero(known >= 0).flatten()
