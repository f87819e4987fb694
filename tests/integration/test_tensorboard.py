"""TensorBoard files of a short run, read back."""

import io

import numpy as np
import pytest
from PIL import Image

import main
from lib.checkpoint import io as checkpoint
from lib.logger.tensorboard import SPRITE_SIDE, Projector
from tests.helpers.runs import TINY


@pytest.fixture(scope="module")
def events(digits_session):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(digits_session / "tfboard" / "run"), {"images": 0, "histograms": 0}).Reload()


def test_the_overview_is_only_in_the_whole_run(digits_session, events):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overview = [tag for tag in events.Tags()["scalars"] if tag.startswith("1_Overview/")]
    names = ("1_Loss", "2_kNN_accuracy", "3_Nearest_neighbour_kept", "4_Cosine_to_nearest", "5_Entropy")
    names += ("6_Entropy_of_anchors", "7_Consistency", "8_Clusters")
    assert sorted(overview) == [f"1_Overview/{name}" for name in names]
    assert [e.value for e in events.Scalars("1_Overview/1_Loss")] == [e.value for e in events.Scalars("Train/Loss")]
    one_round = EventAccumulator(str(digits_session / "tfboard" / "round-1")).Reload()
    assert not any(tag.startswith("1_") for tag in one_round.Tags()["scalars"])


def test_histograms_of_every_epoch(events):
    assert [e.step for e in events.Histograms("3_Images/Entropy")] == [1, 2, 3, 4, 5, 6]
    distances = events.Histograms("3_Images/Distance_to_nearest")[-1].histogram_value
    assert distances.num == 60
    assert -1e-5 <= distances.min <= distances.max <= 2


def test_three_pictures_of_anchors_a_round(events):
    for number, part in enumerate(("lowest", "middle", "highest"), 1):
        pictures = events.Images(f"2_Anchors/{number}_{part}_entropy")
        assert [e.step for e in pictures] == [2, 4]
        picture = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert colours & {(0, 140, 60), (205, 30, 40)}  # digits have labels


def test_the_projector_has_the_bank_of_every_round(digits_session):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    run = digits_session / "tfboard" / "run"
    config = text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [e.tensor_name for e in config.embeddings] == [f"00{n}-after-round-{3 - n}" for n in (1, 2, 3)]
    memory = checkpoint.load(digits_session / "checkpoint" / "0002-00030.ckpt")["npc"]["memory"].numpy()
    shown = np.arange(25) * 60 // 25
    assert np.loadtxt(run / config.embeddings[0].tensor_path) == pytest.approx(memory[shown], rel=1e-3, abs=1e-5)
    lines = (run / config.embeddings[0].metadata_path).read_text().splitlines()
    assert lines[0] == "image\tentropy\tcluster\tlabel"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(row) for row in shown]
    sheet = Image.open(run / config.embeddings[0].sprite.image_path)
    assert sheet.size == (5 * 48, 5 * 48)


def test_pictures_can_be_switched_off(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    off = ["--tfb-anchors", "0", "--tfb-projector", "0", "--max-round", "2", "--max-epoch", "1"]
    assert main.main([*TINY, "--log-tfb", *off, "--sess-dir", str(tmp_path), "--session", "x"]) == 0
    run = tmp_path / "x" / "tfboard" / "run"
    assert EventAccumulator(str(run)).Reload().Tags()["images"] == []
    assert not list(run.glob("projector*"))


def test_a_projector_with_another_number_of_images_keeps_the_earlier_thumbnails(tmp_path):
    """After a resumption with another --tfb-projector."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    for name, count in (("one", 9), ("two", 4)):
        board = Projector(tmp_path, np.zeros((count, SPRITE_SIDE, SPRITE_SIDE, 3), np.uint8))
        board.add(name, np.zeros((count, 2)), {"image": ["x"] * count, "label": ["y"] * count})
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    sheets = {entry.metadata_path: entry.sprite.image_path for entry in config.embeddings}
    assert sheets == {
        "projector/one-about.tsv": "projector/thumbnails-9.png", "projector/two-about.tsv": "projector/thumbnails-4.png"
    }  # fmt: skip
    assert all((tmp_path / sheet).is_file() for sheet in sheets.values())
