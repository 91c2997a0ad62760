"""What an interrupted run leaves: a checkpoint that belongs to its pass alone, and no half-written files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from edited_files import changed
from saeval.base import whole_files
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some

ROWS = tiny_tokens(rows=24)


class Interrupted(TinyModel):
    """Stops the first run at its ninth batch."""

    stop = 8

    def capture(self, *arguments, **named):
        if sum(self.passes.values()) == self.stop:
            self.stop = -1
            raise KeyboardInterrupt
        return super().capture(*arguments, **named)


def run(out, model, metrics=("l0", "density"), **options):
    options = {"rows": ROWS, "key": "k", "batch_size": 2, "saes": {"a": TinySAE()}, **options}
    return evaluate_tiny([*metrics], model=model, out=out, **options)


@pytest.fixture
def interrupted(tmp_path):
    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model)
    store = Store(tmp_path / "evaluate")
    (checkpoint,) = store.checkpoints()
    assert store.checkpoint(checkpoint)[0]["place"]["row"] == 16
    return store, model, checkpoint


def resumed(store, model):
    """The passes that the interrupted run takes to its end."""
    before = sum(model.passes.values())
    found = run(store.folder.parent, model)
    assert [r.values for r in found] == [r.values for r in run(None, TinyModel())]
    assert store.checkpoints() == []
    return sum(model.passes.values()) - before


@pytest.mark.parametrize(
    "other", [{"limit": 2}, {"metrics": ["l0"], "limit": 4}, {"rows": tiny_tokens(rows=6, seed=3)}]
)
def test_another_run_in_the_same_folder_keeps_a_checkpoint(interrupted, other):
    store, model, checkpoint = interrupted
    run(store.folder.parent, model, **other)
    assert store.checkpoints() == [checkpoint]
    assert resumed(store, model) == 4  # 24 rows, 16 of them summed before


def test_a_checkpoint_goes_when_its_cells_have_been_computed_in_other_passes(interrupted):
    store, model, checkpoint = interrupted
    for metric in ("l0", "density"):
        assert store.checkpoints() == [checkpoint]
        run(store.folder.parent, model, [metric])
    assert store.checkpoints() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot sync a folder")
def test_results_are_on_the_disk_before_their_checkpoint_goes(interrupted, monkeypatch):
    store, model, checkpoint = interrupted
    folder, events, fsync, unlink = store.folder.stat().st_ino, [], os.fsync, Path.unlink

    def synced(handle):
        events.append("folder" if os.fstat(handle).st_ino == folder else "file")
        fsync(handle)

    def unlinked(path, **options):
        events.append(path.stem)
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    run(store.folder.parent, model)
    assert events.index("folder") < events.index(checkpoint)
    assert events.count("folder") == 1  # once a run: a folder takes as long as a file


def test_a_checkpoint_that_nobody_resumes_is_forgotten_after_a_month(interrupted):
    store, model, checkpoint = interrupted
    file = store.folder / "passes" / f"{checkpoint}.npz"
    for days, kept in ((29, [checkpoint]), (31, [])):
        os.utime(file, (time.time() - 86400 * days,) * 2)
        run(store.folder.parent, model, limit=2)
        assert store.checkpoints() == kept


def test_a_damaged_checkpoint_is_named_and_its_pass_begins_again(interrupted, caplog):
    store, model, checkpoint = interrupted
    file = store.folder / "passes" / f"{checkpoint}.npz"
    whole = file.read_bytes()
    for damage in some([lambda file: file.write_bytes(b""), lambda file: file.write_bytes(whole[:-40]), changed]):
        file.write_bytes(whole)
        damage(file)
        caplog.clear()
        assert store.checkpoint(checkpoint) is None
        (line,) = [r.getMessage() for r in caplog.records]
        assert line.startswith(f"{file}: damaged (")
        store = Store(store.folder)
    caplog.clear()
    assert resumed(store, model) == 12
    assert sum("it is computed again" in r.getMessage() for r in caplog.records) == 1


def test_the_checkpoint_of_another_pass_is_not_resumed(interrupted, tmp_path):
    store, model, checkpoint = interrupted
    file = store.folder / "passes" / f"{checkpoint}.npz"
    shutil.move(file, file.with_stem("0" * 24))
    assert store.checkpoint("0" * 24) is None
    (store.folder / "passes" / ("0" * 24 + ".npz")).unlink()
    assert resumed(store, model) == 12


def test_what_killed_runs_left_half_written_is_removed_and_what_is_being_written_stays(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    run(tmp_path, TinyModel())
    folder = tmp_path / "evaluate"
    left = [folder / ".a.part", folder / "passes" / ".b.part", folder / "folds" / ".c.part"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    living = folder / ".living.part"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(tmp_path, TinyModel())
        assert [path for path in left if path.exists()] == []
        assert living.exists()
    run(tmp_path, TinyModel())
    assert not living.exists()


def test_a_file_that_was_tidied_away_before_its_lock_is_made_again(tmp_path, monkeypatch):
    """The moment between the making of a temporary file and its lock."""
    real, taken = whole_files._locked, []

    def locked(handle):
        if not taken:
            (path,) = tmp_path.glob(".*.part")
            path.unlink()
            taken.append(path)
        return real(handle)

    monkeypatch.setattr(whole_files, "_locked", locked)
    whole_files.write_whole(tmp_path / "x", b"content", "")
    assert taken
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_without_locks_only_what_is_old_is_removed(tmp_path, monkeypatch):
    """As on Windows, where an open file cannot be renamed or removed anyway."""
    monkeypatch.setattr(whole_files, "fcntl", None)
    monkeypatch.setattr(whole_files, "_LOCKS", False)
    whole_files.write_whole(tmp_path / "x", b"content", "")
    assert (tmp_path / "x").read_bytes() == b"content"
    for name, age in (("young", 10), ("old", 100)):
        (tmp_path / f".{name}.part").write_bytes(b"half")
        os.utime(tmp_path / f".{name}.part", (time.time() - age,) * 2)
    whole_files.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".young.part", "x"]
