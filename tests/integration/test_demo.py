"""The demo, configs/digits.yaml as it is: anchors improve the features, in little time and space."""

import json

import pytest

import main


@pytest.mark.slow
def test_anchors_improve_the_features_in_a_session_of_at_most_40_megabytes(tmp_path):
    arguments = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu"]
    assert main.main([*arguments, "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    folder = tmp_path / "s"
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_round = {epoch["round"]: epoch["knn_top1"] for epoch in epochs}  # the last epoch of each round stays
    assert by_round[4] > by_round[0]
    assert json.loads((folder / "final.json").read_text())["top1"] >= 0.955
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(files.values()) <= 40e6  # a file that has two names counts once
