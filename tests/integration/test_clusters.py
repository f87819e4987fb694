"""The clusters of a round: the tables, TensorBoard, the report, --export and --embed show the same ones."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import main
from lib.checkpoint import io as checkpoint
from tests.helpers.processes import run
from tests.helpers.runs import checkpoints
from tests.helpers.sessions import read_table

RUN = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--limit-train", "800", "--limit-test",
       "50", "--max-round", "2", "--tfb-projector", "800", "--knn-k", "5"]  # fmt: skip
"""Large enough that the features of the last round fall into several clusters."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def session(request, tmp_path_factory):
    """The folder of a run, and what it printed."""
    base = tmp_path_factory.mktemp("clusters")
    out = run(request.param, [*RUN, "--sess-dir", base, "--session", "s"]).stdout
    return base / "s", out


def kept(session):
    return checkpoint.load(session / "checkpoint" / checkpoints(session)[-1])


def sizes_of(session):
    """Cluster sizes computed from the bank and the centres in the last checkpoint."""
    saved = kept(session)
    nearest = (saved["npc"]["memory"] @ saved["clusters"]["centres"].t()).argmax(dim=1)
    return torch.bincount(nearest).tolist(), nearest


def reported(session):
    return (session / "report.html").read_text(encoding="utf-8")


def sizes_reported(session):
    return [int(size) for size in re.findall(r"(\d+) images, cosine with the centre", reported(session))]


def test_table_tensorboard_report_and_export_show_the_same_clusters(session, tmp_path):
    from google.protobuf import text_format
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    folder, out = session
    sizes, assignments = sizes_of(folder)
    assert len(sizes) >= 2
    assert sum(sizes) == 800
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["clusters"] == sizes
    last_row = out.split("entropy: mean over all images")[0].splitlines()[-2]
    assert f"{len(sizes)} ({min(sizes)} to {max(sizes)})" in last_row
    board = folder / "tfboard" / "run"
    counts = [event.value for event in EventAccumulator(str(board)).Reload().Scalars("Clusters/Number")]
    assert counts == [len(line["clusters"]) for line in lines if line["clusters"]]
    config = text_format.Parse((board / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (metadata,) = (board / each.metadata_path for each in config.embeddings if "after-round-1" in each.tensor_name)
    rows = [line.split("\t") for line in metadata.read_text().splitlines()]
    assert [int(row[rows[0].index("cluster")]) for row in rows[1:]] == assignments.tolist()
    assert sizes_reported(folder) == sizes[:12]
    assert main.main(["--resume", str(folder), "--export", str(tmp_path / "e")]) == 0
    assert np.array_equal(np.load(tmp_path / "e" / "centres.npy"), kept(folder)["clusters"]["centres"].numpy())
    exported = [int(row["cluster"]) for row in read_table(tmp_path / "e" / "images.csv")[:800]]
    assert np.mean(np.array(exported) == assignments.numpy()) > 0.5  # of features that are not those of the bank


@pytest.mark.parametrize("session", [1], indirect=True)
def test_they_stay_when_the_run_is_resumed(session, tmp_path):
    folder = shutil.copytree(session[0], tmp_path / "s")
    before, page = kept(folder)["clusters"], sizes_reported(folder)
    (folder / "report.html").unlink()
    assert main.main(["--resume", str(folder), "--report-only"]) == 0
    assert sizes_reported(folder) == page
    assert main.main(["--resume", str(folder)]) == 0
    assert torch.equal(kept(folder)["clusters"]["centres"], before["centres"])
    assert sizes_reported(folder) == page


@pytest.mark.parametrize("session", [1], indirect=True)
def test_another_number_of_clusters_is_computed_again_and_the_report_says_so(session, tmp_path):
    folder = shutil.copytree(session[0], tmp_path / "s")
    assert main.main(["--resume", str(folder), "--export", str(tmp_path / "e"), "--num-clusters", "17"]) == 0
    assert len(np.load(tmp_path / "e" / "centres.npy")) == 17
    assert "there are 17" not in reported(folder)
    assert main.main(["--resume", str(folder), "--num-clusters", "17", "--protocol", "knn", "cluster"]) == 0
    told = "In the recomputed features of all training images (--protocol cluster) there are 17."
    assert told in reported(folder)
    assert sizes_reported(folder) == sizes_of(folder)[0][:12]
