"""Random bad input of every kind ends in one line, never in a traceback. The seed is fixed."""

import dataclasses
import random
import string

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import datasets
from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.config import OPTIONS, Options, collect
from lib.distributed.world import World
from lib.errors import UserError
from lib.training.state import TrainingState
from main import main
from tests.helpers.checkpoints import complete
from tests.helpers.runs import ROOT, TINY, error_line

BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = [option.name for option in OPTIONS] + ["null", "true", "[", "]", "{", "}", ":", "- ", "&a", "*a", "<<", "\t"]
WORDS += ["!!python/object:os.system", "\n", "  ", "0x10", "1e999", "-1", "'", '"', "|", ">", "%YAML 1.2", "---"]
WORDS += ["\x00", "\ufeff", "\udcff", "😀"]


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


def only_user_errors(function, *arguments):
    """True if the input is accepted; lets every error pass but a UserError of one line."""
    try:
        function(*arguments)
    except UserError:
        return False
    except SystemExit:  # --help
        pass
    return True


@BOUNDED
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=25).map("".join))
def test_any_text_as_a_config_file(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape" if "\udcff" in text else "replace"))
    only_user_errors(collect, ["--cfgs", str(path)])


@BOUNDED
@given(st.binary(max_size=200))
def test_any_bytes_as_a_config_file(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    only_user_errors(collect, ["--cfgs", str(path)])


@BOUNDED
@given(st.lists(st.sampled_from([option.flag for option in OPTIONS]) | st.text(max_size=12), max_size=8))
def test_any_command_line(words):
    only_user_errors(collect, words)


@BOUNDED
@given(st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), ANY_VALUE, max_size=6))
def test_any_options_in_a_checkpoint(saved):
    only_user_errors(collect, [], saved)


VALUES = ["", "0", "-1", "1", "2", "3", "1e30", "nan", "inf", "null", "abc", "999999999999", "0.5", "1,2", "../.."]
VALUES += ["\x00", "\udcff", "ä"]


def test_random_values_of_options_in_real_calls(tmp_path, capsys, monkeypatch):
    """Calls of main.main; some accepted ones train an epoch on 12 images."""
    monkeypatch.chdir(tmp_path)
    chosen = random.Random(0)
    outcomes = []
    here = [str(ROOT / word) if word.startswith("configs/") else word for word in TINY]
    options = [option for option in OPTIONS if option.name != "debug_errors"]  # which asks for the traceback
    for number in range(200):
        some = chosen.sample(options, 2)
        words = [word for option in some for word in (option.flag, chosen.choice(VALUES))]
        if number % 20 == 0:  # some of them run
            words += ["--limit-train", "12", "--limit-test", "5", "--max-round", "1", "--max-epoch", "1", "--size", "8"]
            words += ["--network", "convnet", "--workers-num", "0", "--low-dim", "8", "--no-compile", "--debug"]
        else:
            words += ["--print-args"]
        outcomes.append(main([*here, *words]))
        said = capsys.readouterr().err
        if outcomes[-1]:
            assert outcomes[-1] == 2, words
            assert "unforeseen" not in error_line(said), words
    assert {0, 2} <= set(outcomes)


@pytest.fixture(scope="module")
def run():
    """Options, images and state of a run, and a checkpoint of it."""
    options = dataclasses.replace(Options(), dataset="digits", size=8, limit_train=20, limit_test=5, low_dim=8)
    options = dataclasses.replace(options, network="convnet")
    pipeline = Pipeline(datasets.load("digits", None, False), options, torch.device("cpu"))
    state = TrainingState.fresh(options, pipeline, World.alone(), None)
    state.history.start_round(0, 0, None)
    state.epoch = 1
    memory = state.bank.shard.gather_to_first(state.bank.memory)
    return options, pipeline, state, state.checkpoint(memory, options.as_dict(), "s", 0.5)


JUNK = [None, True, -1, 10**12, 1.5, float("nan"), "x", "../../x", [], [[]], {}, {"a": 1}]
JUNK += [torch.zeros(3), torch.zeros(2, 2), torch.zeros(20, dtype=torch.int64), torch.full((20,), 10**9)]
JUNK += [torch.zeros(0, 1, dtype=torch.int64)]


def places(value, path=()):
    """Paths to everything in a checkpoint, outer things first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in list(value.items())[:8]:
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*path, number))


def changed(value, path, new):
    """A copy with another value at a path, or without it."""
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = changed(value[key], rest, new)
    elif new is KeyError:
        del copy[key]
    else:
        copy[key] = new
    return copy


def test_checkpoints_with_random_values_at_random_keys(run, tmp_path):
    """A complete checkpoint with a correct checksum and junk at one key is refused with a message, or harmless."""
    options, pipeline, state, good = run
    chosen, refused = random.Random(0), 0
    everywhere = list(places(good))
    for number in range(150):
        bad = changed(good, chosen.choice(everywhere), chosen.choice([*JUNK, KeyError]))
        if number < 12:  # the same through a file; all of them would take a minute
            checkpoint.save(bad, tmp_path / "x.ckpt")
            if not only_user_errors(checkpoint.load, tmp_path / "x.ckpt"):
                refused += 1
                continue

        def restore(bad=bad):
            try:
                checkpoint.check_layout(bad)
            except ValueError as error:
                raise UserError(str(error)) from None
            collect([], bad["options"])
            state.resume(bad, "x.ckpt", options, pipeline)
            state.history.table({})

        refused += not only_user_errors(restore)
    assert 40 < refused < 150
    for bad in ({**good, "history": []}, changed(good, ("history", 0, "clusters"), float("nan"))):
        with pytest.raises(UserError, match="its history"):
            restore(bad)
    bad = {**good, "npc": {"memory": torch.full_like(good["npc"]["memory"], float("nan"))}}
    with pytest.raises(UserError, match="a number in its memory bank is not finite; take an earlier one"):
        state.resume(bad, "x.ckpt", options, pipeline)
    state.resume(good, "x.ckpt", options, pipeline)


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_the_optimiser_state_of_a_checkpoint_is_validated(run, kind):
    options, pipeline, _, _ = run
    options = dataclasses.replace(options, optimizer=kind)
    state = TrainingState.fresh(options, pipeline, World.alone(), None)
    state.history.start_round(0, 0, None)
    for parameter in state.embedder.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    good = state.checkpoint(state.bank.shard.gather_to_first(state.bank.memory), options.as_dict(), "s", 0.5)
    state.resume(good, "x.ckpt", options, pipeline)
    kept = good["optimizer"]["state"][0]
    for name, value in kept.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            for new in (torch.zeros(1), torch.full_like(value, float("nan"))):
                bad = changed(good, ("optimizer", "state", 0, name), new)
                with pytest.raises(UserError, match="its optimiser"):
                    state.resume(bad, "x.ckpt", options, pipeline)
        if kind != "sgd":
            with pytest.raises(UserError, match=f"(it|its optimiser's state) has no .*{name}"):
                state.resume(changed(good, ("optimizer", "state", 0, name), KeyError), "x.ckpt", options, pipeline)
    if "step" in kept:
        bad = changed(good, ("optimizer", "state", 0, "step"), torch.tensor(-1.0))
        with pytest.raises(UserError, match="fewer than 0 steps"):
            state.resume(bad, "x.ckpt", options, pipeline)


def test_files_with_random_damage(tmp_path):
    """Bytes changed, removed, duplicated or inserted: the file is never accepted."""
    path = tmp_path / "x.ckpt"
    checkpoint.save(complete(), path)
    whole = path.read_bytes()
    chosen = random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chosen.randint(1, 5)):
            start, length = chosen.randrange(len(data)), chosen.randint(1, 300)
            way = chosen.randrange(4)
            if way == 0:
                data[start : start + length] = chosen.randbytes(length)
            elif way == 1:
                del data[start : start + length]
            elif way == 2:
                data[start:start] = data[start : start + length]
            else:
                data[start:start] = chosen.choice(string.printable).encode() * length
            data = data or bytearray(b"x")
        path.write_bytes(data)
        assert bytes(data) == whole or not only_user_errors(checkpoint.load, path)


def test_damaged_checkpoints_in_real_calls(tmp_path, capsys):
    session = tmp_path / "s" / "checkpoint"
    session.mkdir(parents=True)
    chosen = random.Random(1)
    for content in (b"", b"PK\3\4", chosen.randbytes(3000), b"\0" * 100, b"\x80\x02}."):
        (session / "0000-00000.ckpt").write_bytes(content)
        for resume in ("last", str(tmp_path / "s"), str(session / "0000-00000.ckpt")):
            for more in ([], ["--test-only"], ["--restart"], ["--print-args"]):
                assert main(["--resume", resume, "--sess-dir", str(tmp_path), *more]) == 2
                assert "unforeseen" not in error_line(capsys.readouterr().err)


def test_an_unexpected_error_is_one_line_and_debug_errors_shows_its_traceback(monkeypatch, capsys):
    import lib.checkpoint.manager

    def broken(*arguments):
        raise LookupError("no such\nthing")

    monkeypatch.setattr(lib.checkpoint.manager, "open_checkpoint", broken)
    assert main(["--resume", "last"]) == 1
    assert error_line(capsys.readouterr().err) == (
        "error: unforeseen LookupError: no such thing; --debug-errors shows where it happened"
    )
    assert main(["--resume", "last", "--debug-errors"]) == 1
    assert capsys.readouterr().err.endswith("LookupError: no such\nthing\n")


def test_debug_errors_shows_the_traceback_of_an_oserror(monkeypatch, capsys):
    import lib.checkpoint.manager

    def broken(*arguments):
        raise PermissionError(13, "not yours", "somewhere")

    monkeypatch.setattr(lib.checkpoint.manager, "open_checkpoint", broken)
    assert main(["--resume", "last", "--debug-errors"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("PermissionError: [Errno 13] not yours: 'somewhere'\n")
