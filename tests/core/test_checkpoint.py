"""Checkpoints come back bit by bit, or say what is wrong with them; nothing in them is executed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys

import pytest
import torch

from driftworks.core.checkpoint import FORMAT, load, save, write_atomically
from driftworks.errors import UserError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def some(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(7, 5, generator=generator),
        "half": torch.randn(11, generator=generator).half(),
        "count": torch.arange(9),
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A folder with a good checkpoint."""
    save(tmp_path / "run", some(), {"step": 1})
    return tmp_path / "run"


def reseal(folder, blob):
    """Put other bytes in place of the tensors, with a JSON that vouches for them."""
    (folder / "model.safetensors").write_bytes(blob)
    meta = json.loads((folder / "model.json").read_text())
    meta["sha256"] = hashlib.sha256(blob).hexdigest()
    (folder / "model.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_by_bit(dtype, tmp_path):
    raw = torch.randint(0, 256, (6, 5, 8), generator=torch.Generator().manual_seed(1))
    raw = raw.to(torch.uint8)
    x = raw.bool() if dtype == torch.bool else raw.view(dtype)  # NaN patterns and all
    save(tmp_path, {"x": x}, {})
    back = load(tmp_path)[0]["x"]
    assert back.dtype == dtype and back.shape == x.shape
    assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


def test_scalars_empty_strided_shared_and_trained_tensors_come_back(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "column": base[:, 1],
        "slice": base[1:],
        "tied": base,
        "expanded": torch.ones(1, 4).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    save(tmp_path, tensors, {})
    back, _ = load(tmp_path)
    assert back.keys() == tensors.keys()
    for name, x in tensors.items():
        assert back[name].shape == x.shape and not back[name].requires_grad
        assert torch.equal(back[name].nan_to_num(7), x.detach().nan_to_num(7))
    back["tied"].zero_()  # what was shared is now everyone's own
    assert back["transposed"].sum() == base.sum() == 66


def test_metadata_comes_back_and_the_hash_is_that_of_the_tensor_file(tmp_path):
    meta = {"config": {"width": 32, "rates": [1e-3, 0.1]}, "name": "Ångström ß", "none": None}
    digest = save(tmp_path / "a" / "b", some(), meta)
    tensors, back = load(str(tmp_path / "a" / "b"))
    assert same(tensors, some())
    assert back == {**meta, "format": FORMAT, "sha256": digest}
    blob = (tmp_path / "a" / "b" / "model.safetensors").read_bytes()
    assert digest == hashlib.sha256(blob).hexdigest()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    first = save(tmp_path / "a", some(), {"b": 1, "a": 2})
    again = save(tmp_path / "b", some(), {"a": 2, "b": 1})
    assert first == again != save(tmp_path / "c", some(1), {"a": 2, "b": 1})
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_metadata_that_was_loaded_can_be_saved_with_other_tensors(folder):
    _, meta = load(folder)
    save(folder, some(1), meta)
    tensors, again = load(folder)
    assert same(tensors, some(1)) and again["step"] == 1 and again["sha256"] != meta["sha256"]


def test_checkpoints_of_two_names_share_a_folder(folder):
    save(folder, some(1), {"step": 2}, name="best")
    assert same(load(folder)[0], some()) and same(load(folder, "best")[0], some(1))
    assert listing(folder) == ["best.json", "best.safetensors", "model.json", "model.safetensors"]


@pytest.mark.parametrize("meta", [{"loss": float("nan")}, {"x": object()}, {"x": torch.ones(1)}])
def test_metadata_that_json_does_not_know_touches_nothing(folder, meta):
    with pytest.raises((TypeError, ValueError)):
        save(folder, some(1), meta)
    tensors, back = load(folder)
    assert same(tensors, some()) and back["step"] == 1
    assert listing(folder) == ["model.json", "model.safetensors"]


def test_a_flipped_bit_of_the_tensors_is_found_wherever_it_is(folder):
    path = folder / "model.safetensors"
    blob = path.read_bytes()
    rng = random.Random(0)
    positions = [0, 8 * len(blob) - 1, *(rng.randrange(8 * len(blob)) for _ in range(200))]
    for position in positions:
        flipped = bytearray(blob)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"damaged: model\.safetensors fails its SHA-256"):
            load(folder)
    path.write_bytes(blob)
    assert same(load(folder)[0], some())


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_truncated_file_is_found_wherever_it_ends(folder, name):
    path = folder / name
    content = path.read_bytes()
    text = len(content.rstrip())
    for length in {0, 1, 7, 8, 9, 30, text // 2, text - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged|not JSON"):
            load(folder)
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match="damaged|not JSON"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"no checkpoint at .*{name} is missing"):
        load(folder)


def test_a_folder_that_is_no_checkpoint_is_a_user_error(tmp_path, folder):
    with pytest.raises(UserError, match="no checkpoint at"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        load(folder / "model.json")
    (tmp_path / "odd" / "model.json").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(tmp_path / "odd")


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "null", "{}", '{"format": "1"}', '{"format": null}', "{", "\x00", "[" * 100_000,
     '{"format": ' + "9" * 5000 + "}"],
    ids=["list", "null", "empty", "string", "none", "open", "zero", "deep", "huge"],
)  # fmt: skip
def test_a_json_of_another_kind_is_a_user_error(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match="not a driftworks checkpoint|not JSON"):
        load(folder)


def test_bytes_that_are_no_text_are_a_user_error(folder):
    (folder / "model.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not JSON"):
        load(folder)


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 5], ids=str)
def test_a_json_without_the_right_hash_is_a_user_error(folder, digest):
    meta = json.loads((folder / "model.json").read_text())
    meta.pop("sha256")
    (folder / "model.json").write_text(json.dumps(meta | ({"sha256": digest} if digest else {})))
    with pytest.raises(UserError, match="fails its SHA-256"):
        load(folder)


def test_a_newer_format_asks_for_an_update_even_if_its_files_have_other_names(folder):
    meta = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(meta | {"format": FORMAT + 1}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}.*update driftworks"):
        load(folder)


class Evil:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_is_never_executed(folder, tmp_path):
    marker = tmp_path / "executed"
    evil = pickle.dumps(Evil(marker))
    torch.save({"weight": Evil(marker)}, tmp_path / "evil.pt")
    for blob in (evil, (tmp_path / "evil.pt").read_bytes()):
        reseal(folder, blob)
        with pytest.raises(UserError, match="damaged"):
            load(folder)
    (folder / "model.json").write_bytes(evil)
    with pytest.raises(UserError, match="not JSON"):
        load(folder)
    assert not marker.exists()
    pickle.loads(evil).close()  # noqa: S301
    assert marker.exists()  # the bait is live


def test_tensor_files_that_lie_about_themselves_are_damaged(folder):
    good = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(good[:8], "little")
    lies = {
        "empty": b"",
        "header longer than the file": (1 << 40).to_bytes(8, "little") + good[8:],
        "header shorter than it is": (header - 3).to_bytes(8, "little") + good[8:],
        "data missing": good[:-10],
        "data to spare": good + b"\0" * 16,
        "unknown dtype": good.replace(b'"F32"', b'"F31"'),
        "shape too large": good.replace(b"[7,5]", b"[9,9]"),
        "overlapping tensors": good.replace(b'"data_offsets":[0', b'"data_offsets":[8'),
    }
    for name, blob in lies.items():
        assert blob != good, name
        reseal(folder, blob)
        with pytest.raises(UserError, match="damaged"):
            load(folder)


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    for content in (b"first", b"", b"second" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content and listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["a.txt"]
    with pytest.raises(UserError, match="run cannot be written: No space left on device"):
        save(tmp_path / "run", some(), {})
    assert listing(tmp_path / "run") == []


def test_a_folder_that_cannot_be_written_is_a_user_error(folder, tmp_path):
    for place in (folder / "model.json", folder / "model.json" / "deeper"):
        with pytest.raises(UserError, match="cannot be written"):
            save(place, some(), {})
    (tmp_path / "odd" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match="odd cannot be written: Is a directory"):
        save(tmp_path / "odd", some(), {})
    assert listing(tmp_path / "odd") == ["model.safetensors"]
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "odd").chmod(0o500)
        with pytest.raises(UserError, match="cannot be written: Permission denied"):
            save(tmp_path / "odd" / "new", some(), {})


KILLED = """
import os, signal, sys, torch

from driftworks.core.checkpoint import save

def dies(call, when, after):
    # SIGKILL at the ``when``-th call of os.<call>, before or after it is done.
    true, seen = getattr(os, call), 0
    def patched(*arguments):
        nonlocal seen
        seen += 1
        if seen == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = true(*arguments)
        if seen == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(os, call, patched)

for job in sys.argv[1:]:
    folder, call, when, moment = job.rsplit(" ", 3)
    child = os.fork()
    if child == 0:
        dies(call, int(when), moment == "after")
        save(folder, {"weight": torch.full((3,), 2.0)}, {"step": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, job
"""

KILLS = {
    "fsync 1 before": "old",  # the numbers are written to the temporary file, not to the disk
    "fsync 1 after": "old",
    "replace 1 before": "old",
    "replace 1 after": "broken",  # new numbers, old words
    "fsync 3 before": "broken",  # the words are in their temporary file
    "replace 2 before": "broken",
    "replace 2 after": "new",
    "fsync 4 before": "new",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_at_any_point_leaves_the_old_the_new_or_a_detectably_broken_one(tmp_path):
    jobs = {}
    for k, point in enumerate(KILLS):
        jobs[tmp_path / f"fresh{k}"] = point
        save(tmp_path / f"over{k}", {"weight": torch.full((3,), 1.0)}, {"step": 1})
        jobs[tmp_path / f"over{k}"] = point
    command = [sys.executable, "-c", KILLED, *(f"{path} {point}" for path, point in jobs.items())]
    subprocess.run(command, check=True, timeout=120)
    for path, point in jobs.items():
        outcome = KILLS[point]
        if outcome == "broken" or (outcome == "old" and path.name.startswith("fresh")):
            with pytest.raises(UserError, match="damaged|missing"):
                load(path)
        else:
            tensors, meta = load(path)
            step = 2 if outcome == "new" else 1
            assert meta["step"] == step and tensors["weight"].tolist() == [step] * 3, point
        # What is left can be written over.
        save(path, {"weight": torch.full((3,), 3.0)}, {"step": 3})
        assert load(path)[1]["step"] == 3
