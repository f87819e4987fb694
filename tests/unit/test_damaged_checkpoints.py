"""Checkpoints that are damaged, of another version, or malicious."""

import contextlib
import io
import os
import pickle
import pickletools
import shutil
import struct
import tarfile
import zipfile

import pytest
import torch

from lib import compat
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import CheckpointSaver, Position, open_checkpoint
from lib.checkpoint.unpickler import _OLD_START
from lib.errors import UserError
from lib.session.folder import SessionFolder
from tests.helpers.checkpoints import Planted, complete, restricted_load


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.ckpt"
    checkpoint.save(complete(), path)
    return path


def test_any_flipped_bit_is_noticed(file):
    """All over the file, at every byte of its end and of the checksum."""
    whole = file.read_bytes()
    for place in (*range(0, len(whole) - 200, 5), *range(len(whole) - 200, len(whole))):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(UserError) as error:
            checkpoint.load(file)
        assert str(error.value).startswith(f"checkpoint {file} ")
        assert "\n" not in str(error.value)


def test_any_length_is_noticed(file):
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"checkpoint .*x\.ckpt "):
            checkpoint.load(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="checksum is damaged"):
        checkpoint.load(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 5000, "begins with zeros: its content never reached the disk"),
        (b"PK\3\4 and then nothing", "cut short or its end is damaged, after 21 bytes"),
        (b"hello", "not written by torch.save"),
    ],
)
def test_the_error_names_what_is_wrong(file, content, reason):
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        checkpoint.load(file)


def test_a_newer_layout_is_refused_before_anything_is_read(file, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    checkpoint.save(complete(format=7, odd={1, 2}), file)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has layout 7; this version reads up to 2: update the code"):
        checkpoint.load(file)


def test_torch_load_reads_the_file(file):
    arguments = {} if compat.TORCH_RELEASE < (1, 13) else {"weights_only": True}
    assert torch.load(file, **arguments)["epoch"] == 1
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"AND checkpoint, format 2, sha256 ")


def test_a_checkpoint_without_its_checksum_is_refused(file):
    torch.save(complete(format=2), file)
    with pytest.raises(UserError, match="has lost its checksum"):
        checkpoint.load(file)


def test_resume_falls_back_to_the_previous_checkpoint(tmp_path):
    """Round 0 is complete, round 1 is under way; then file after file is damaged."""
    session = SessionFolder.create(str(tmp_path), "s")
    kept = CheckpointSaver(session, keep=3)
    places = [Position(0, 1, 0), Position(1, 0, 2), Position(1, 0, 4), Position(1, 1, 0)]
    for place in places:
        state = complete(round=place.round, epoch=place.epoch, step=place.step, format=2)
        kept.save(state, place, 10 * place.round, is_best=place.step == 0)
    names = ["0001-00010.ckpt", "0001-00010-e0000-s000004.ckpt", "0001-00010-e0000-s000002.ckpt", "0000-00000.ckpt"]
    best = {"0000-00000-best.ckpt", "0001-00010-best.ckpt"}
    assert {path.name for path in session.checkpoints.iterdir()} == best.union(names)
    damages = [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:300] + b"?" + data[301:]]
    for count, damage in enumerate(damages, start=1):
        path = session.checkpoints / names[count - 1]
        path.write_bytes(damage(path.read_bytes()))  # the best is the same file and goes with it
        for resume in ("last", str(session.path)):
            found = open_checkpoint(resume, str(tmp_path))
            assert found.source.name == names[count]
            assert len(found.unreadable) >= count
            assert names[0] in found.unreadable[0]
            assert f"resuming from an earlier one, {found.source}" in found.unreadable[0]
    with pytest.raises(UserError, match="empty"):  # a file that is named is that file
        open_checkpoint(str(session.checkpoints / names[0]), str(tmp_path))
    for path in session.checkpoints.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 6 checkpoints in .* can be read; .*the file is empty"):
        open_checkpoint("last", str(tmp_path))


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_keep_bounds_checkpoints_and_the_last_and_best_of_each_round_stay(tmp_path, keep):
    session = SessionFolder.create(str(tmp_path), "s")
    kept = CheckpointSaver(session, keep)
    for round_number in range(3):
        for epoch in range(5):
            place = Position(round_number, epoch, 0)
            state = complete(round=round_number, epoch=epoch, format=2)
            kept.save(state, place, 10 * round_number, is_best=epoch in (0, 2))
    found = {path.name for path in session.checkpoints.iterdir()}
    for round_number in range(3):
        for suffix, epoch in (("", 4), ("-best", 2)):
            name = f"{round_number:04d}-{10 * round_number:05d}{suffix}.ckpt"
            assert checkpoint.load(session.checkpoints / name)["epoch"] == epoch
            found.remove(name)
    assert found == {f"0002-00020-e{epoch:04d}-s000000.ckpt" for epoch in range(4 - (keep - 1), 4)}


def test_checkpoints_are_copied_on_a_file_system_without_links(tmp_path, monkeypatch):
    def no_links(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_keep_bounds_checkpoints_and_the_last_and_best_of_each_round_stay(tmp_path, 2)


# --- harm


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def archive(path, pickled, extra=(), compression=zipfile.ZIP_STORED):
    """A file of torch.save's, put together by hand."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for name, content in extra:
            file.writestr(name, content)


def harmful(trap):
    """Pickles that make a folder when they are executed, by many ways, and what else pickles can do."""
    make = f"{trap}".encode()
    inner = pickle.dumps(Planted(trap))
    legacy = io.BytesIO()
    torch.save(Planted(trap), legacy, _use_new_zipfile_serialization=False)
    return {
        "reduce": inner,
        "reduce in a dict": pickle.dumps(complete(extra=[{"deep": Planted(trap)}])),
        "protocol 0": pickle.dumps(Planted(trap), 0),
        "protocol 4, STACK_GLOBAL": pickle.dumps(Planted(trap), 4),
        "eval": pickle.dumps(Call(eval, f"__import__('os').mkdir({str(trap)!r})")),
        "a pickle in a pickle": pickle.dumps(Call(pickle.loads, inner)),
        "torch.load again": pickle.dumps(Call(torch.load, io.BytesIO(inner))),
        "a storage from bytes": pickle.dumps(Call(torch.storage._load_from_bytes, legacy.getvalue())),
        "INST": b"(S'" + make + b"'\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\nS'" + make + b"'\no.",
        "NEWOBJ": b"\x80\x02cos\nmkdir\n(S'" + make + b"'\nt\x81.",
        "getattr through a name that is known": pickle.dumps(Call(getattr, torch.Size, "__class__")),
        "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x0fserialization.os\x93.",
        "BUILD on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(U\x04nameU\x01xub.",
        "BUILD on a class": b"\x80\x02ctorch\nFloatStorage\nN}(U\x03newctorch\nSize\nu\x86b.",
        "REDUCE of a class that is only named": b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.",
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"Pstorage\n.",
        "a persistent id of anything": b"\x80\x02U\x07storageQ.",
        "nothing": b"",
        "no end": b"\x80\x02}",
        "deep": b"(" * 200_000 + b".",
    }


def test_plain_unpickling_would_execute_the_payload(tmp_path):
    """An ordinary reader falls into these traps, so that the tests below show something."""
    caught = []
    for name, pickled in harmful(tmp_path / "trap").items():
        with contextlib.suppress(Exception):
            pickle.loads(pickled)
        if (tmp_path / "trap").exists():
            (tmp_path / "trap").rmdir()
            caught.append(name)
    everywhere = {"reduce", "reduce in a dict", "protocol 0", "protocol 4, STACK_GLOBAL", "eval", "INST", "OBJ"}
    assert everywhere | {"a pickle in a pickle"} <= set(caught)


WAYS = ["torch's own", "ours for torch before 1.13"]


def load(path, way, monkeypatch):
    return checkpoint.load(path) if way == WAYS[0] else restricted_load(path, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
def test_no_pickle_is_executed(tmp_path, monkeypatch, way):
    trap, path = tmp_path / "trap", tmp_path / "x.ckpt"
    before = torch._utils._rebuild_tensor_v2.__dict__.copy(), dict(vars(torch.FloatStorage))
    for name, pickled in harmful(trap).items():
        archive(path, pickled)
        with pytest.raises(UserError) as error:
            load(path, way, monkeypatch)
        assert "\n" not in str(error.value), name
        assert not trap.exists(), name
        # the same without an archive, which is how old releases wrote
        path.write_bytes(pickled)
        with pytest.raises(UserError):
            load(path, way, monkeypatch)
        assert not trap.exists(), name
    assert before == (torch._utils._rebuild_tensor_v2.__dict__, dict(vars(torch.FloatStorage)))


@pytest.mark.parametrize("way", WAYS)
def test_archives_of_another_kind_are_not_opened(tmp_path, monkeypatch, way):
    trap, path = tmp_path / "trap", tmp_path / "x.ckpt"
    good = io.BytesIO()
    torch.save(complete(), good)
    with zipfile.ZipFile(good) as whole:
        pickled = next(whole.read(name) for name in whole.namelist() if name.endswith("data.pkl"))
    inner = pickle.dumps(Planted(trap))
    attacks = {
        "TorchScript": {"extra": [("archive/constants.pkl", inner), ("archive/code/x.py", b"")]},
        "a second pickle": {"extra": [("archive/other.pkl", inner)]},
        "a second folder": {"extra": [("other/data.pkl", inner)]},
        "a path that leads out": {"extra": [("archive/../../trap", b"x")]},
        "an absolute path": {"extra": [(str(trap), b"x")]},
        "compressed, to any size": {
            "extra": [("archive/data/9", b"\0" * 10_000_000)],
            "compression": zipfile.ZIP_DEFLATED,
        },
    }
    for name, arguments in attacks.items():
        archive(path, pickled, **arguments)
        with pytest.raises(UserError, match="cannot be read"):
            load(path, way, monkeypatch)
        assert not trap.exists(), name

    class Module(torch.nn.Module):
        def forward(self, x):
            return x

    torch.jit.script(Module()).save(str(path))
    with pytest.raises(UserError, match="which is not plain data"):
        load(path, way, monkeypatch)
    for kind in (tarfile.REGTYPE, tarfile.FIFOTYPE):  # a FIFO would be waited on for ever
        with tarfile.open(path, "w") as tar:
            for member in ("storages", "tensors", "pickle"):
                entry = tarfile.TarInfo(member)
                entry.type, entry.size = kind, len(inner) if kind == tarfile.REGTYPE else 0
                tar.addfile(entry, io.BytesIO(inner))
        with pytest.raises(UserError, match="not written by torch.save"):
            load(path, way, monkeypatch)
    assert not trap.exists()


@pytest.mark.parametrize("way", WAYS)
def test_payloads_within_a_tensor_are_not_executed(tmp_path, monkeypatch, way):
    """The call that rebuilds a tensor, with a function where its storage should be."""
    trap, path = tmp_path / "trap", tmp_path / "x.ckpt"
    good = io.BytesIO()
    torch.save(torch.ones(3), good)
    with zipfile.ZipFile(good) as whole:
        pickled = next(whole.read(name) for name in whole.namelist() if name.endswith("data.pkl"))
    assert any(opcode.name == "BINPERSID" for opcode, _, _ in pickletools.genops(pickled))
    text = str(trap).encode()
    call = b"cos\nmkdir\nX" + struct.pack("<I", len(text)) + text + b"\x85R"
    place = pickled.index(b"ctorch\nFloatStorage\n")
    archive(path, pickled[:place] + call + pickled[place + len(b"ctorch\nFloatStorage\n") :])
    with pytest.raises(UserError, match="cannot be read"):
        load(path, way, monkeypatch)
    assert not trap.exists()


def test_values_of_a_checkpoint_cannot_lead_out_of_the_session(tmp_path):
    for changes in ({"round": "../../x"}, {"round": -1}, {"epoch": True}, {"step": 10**12}, {"round": 1.5}):
        path = tmp_path / "x.ckpt"
        checkpoint.save(complete(**changes), path)
        with pytest.raises(UserError, match="is not a count"):
            checkpoint.load(path)


def test_a_checkpoint_does_not_decide_where_to_write(tmp_path, monkeypatch):
    from lib.config import collect

    settings = collect([], {"sess_dir": str(tmp_path / "elsewhere"), "session": "../../x", "seed": 3})
    assert settings.options.sess_dir == "sessions"
    assert settings.options.session is None
    assert settings.options.seed == 3
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)


def test_a_tar_file_that_begins_like_an_old_checkpoint_is_not_opened(tmp_path):
    """PyTorch tries tar first; a FIFO in it would be waited on for ever."""
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for member in (_OLD_START.decode("latin-1"), "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(member)
            entry.type = tarfile.FIFOTYPE
            tar.addfile(entry)
    assert path.read_bytes().startswith(_OLD_START)
    with pytest.raises(UserError, match="not written by torch.save|not a zip archive"):
        checkpoint.read_data(path, old_releases=True)
