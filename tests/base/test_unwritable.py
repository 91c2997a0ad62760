"""Full disks, read-only folders, files in the way: reports are refused in one sentence, caches are done without."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from documents import build, corpus
from saeval import SaevalError, cli
from saeval.base.fingerprint import sha256_file
from saeval.base.whole_files import Unwritable, write_whole
from saeval.results.pages import write_pages
from saeval.results.report import Report
from saeval.testing import evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some


def failing(code):
    def fail(*arguments, **named):
        raise OSError(code, os.strerror(code))

    return fail


FAULTS = {
    "a full disk": ("os.fsync", errno.ENOSPC, "No space left on device"),
    "a read-only folder": ("tempfile.mkstemp", errno.EACCES, "Permission denied"),
    "a broken disk": ("os.replace", errno.EIO, "Input/output error"),
}


PLUGIN = """
from saeval import hookimpl
from saeval.results.report import Report

@hookimpl
def saeval_reports():
    return [Report("mine", pages=lambda results: {"a.md": "# a", "b.csv": "a,b", "c.png": b"png"})]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The words that make a report of a run."""
    out = tmp_path_factory.mktemp("out")
    evaluate_tiny(["l0"], rows=tiny_tokens(rows=4), out=out)
    (out / "plugin.py").write_text(PLUGIN)
    return ["report", str(out / "evaluate"), "--plugin", str(out / "plugin.py"), "--format", "mine"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_report_that_cannot_be_written_is_one_sentence(results, tmp_path, monkeypatch, capsys, fault):
    call, code, words = FAULTS[fault]
    to = tmp_path / "to"
    assert cli.main([*results, "--to", str(to)]) == 0
    pages = {path.name: path.read_bytes() for path in to.iterdir()}
    assert sorted(pages) == [".saeval-report.json", "a.md", "b.csv", "c.png", "index.html"]
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(call, failing(code))
        assert cli.main([*results, "--to", str(to)]) == 2
        assert cli.main([*results, "--to", str(tmp_path / "new")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert every(f"cannot be written ({words}); free some space or choose another --to" in line for line in lines)
    assert {path.name: path.read_bytes() for path in to.iterdir()} == pages
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []


def test_a_report_into_a_file_is_one_sentence(results, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for to in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert cli.main([*results, "--to", str(to)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{to}/")
        assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_pages_of_one_report_are_made_before_any_is_written(tmp_path):
    def pages(results):
        yield from ()
        raise RuntimeError("planted")

    both = [Report("good", pages=lambda results: {"a.md": "a"}), Report("bad", pages=pages)]
    written, failed = write_pages(both, [], tmp_path)
    assert [path.name for path in written] == ["a.md"]
    assert len(failed) == 1


def test_from_python_it_is_an_error_of_saevals(tmp_path):
    (tmp_path / "file").write_text("")
    report = Report("r", pages=lambda results: {"a.md": "a"})
    with pytest.raises(Unwritable, match="cannot be written"):
        write_pages([report], [], tmp_path / "file")


def test_other_writers_say_the_same(tmp_path, monkeypatch, capsys):
    call, code, words = FAULTS["a full disk"]
    monkeypatch.setattr("saeval_testbed.preferences.preference_pairs", lambda *arguments: iter([{"chosen": "a"}]))
    monkeypatch.setattr(call, failing(code))
    assert cli.main(["testbed", "preferences", "--out", str(tmp_path / "p.jsonl"), "--pairs", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'p.jsonl'}: cannot be written ({words}); free some space or choose another --out"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def used(file):
    """Tokens and a hash, as a run has them."""
    if file.stat().st_mtime != 1:  # settled; its change time stays as it is afterwards
        os.utime(file, (1, 1))
    return build(corpus(), sequences=12).fingerprint, build(corpus(), sequences=3).fingerprint, sha256_file(file)


@pytest.mark.parametrize("fault", [*FAULTS, "a file in the way", "no home"])
def test_a_run_goes_on_without_a_cache_and_says_so_once(own_cache, tmp_path, monkeypatch, caplog, fault):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    with monkeypatch.context() as patched:
        patched.setenv("SAEVAL_CACHE", str(tmp_path / "another"))
        expected = used(file)
    if fault == "a file in the way":
        own_cache.write_text("")
    elif fault == "no home":
        monkeypatch.setattr("saeval.base.cache._WARNED", set())  # the warning does not name the folder
        monkeypatch.delenv("SAEVAL_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", failing_home)
    else:
        monkeypatch.setattr(FAULTS[fault][0], failing(FAULTS[fault][1]))
    caplog.clear()
    assert used(file) == expected
    (line,) = [r.getMessage() for r in caplog.records]
    assert "tokens and hashes are computed again in every run: set SAEVAL_CACHE to" in line
    assert "\n" not in line
    assert not own_cache.is_dir() or not [path for path in own_cache.rglob("*") if path.is_file()]


def failing_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_run_from_the_command_line_goes_on_too(own_cache, tmp_path, capsys, caplog):
    own_cache.write_text("")
    (tmp_path / "text.txt").write_text("a text of some words " * 40)
    suite = tmp_path / "s.yaml"
    suite.write_text(
        f"suite: s\nmodel: testbed\ndata: {{use: text, path: {tmp_path / 'text.txt'}, context: 16, sequences: 2}}\n"
        "saes: [testbed/relu-3]\nmetrics: [l0]\n"
    )
    assert cli.main(["run", str(suite), "--out", str(tmp_path)]) == 0
    assert sum("SAEVAL_CACHE" in r.getMessage() for r in caplog.records) == 1


def damages(file):
    whole = file.read_bytes()
    yield b"[" * 100_000
    yield b"null"
    yield b"[]"
    if file.suffix == ".json":
        record = json.loads(whole)
        yield json.dumps({**record, "sha256": "x", "cluster_names": 5}).encode()
        yield whole.replace(b'"state"', b'"State"').replace(b'"excluded"', b'"Excluded"')


def test_damaged_caches_are_named_and_made_again(own_cache, tmp_path, caplog):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    expected = used(file)
    files = [path for path in own_cache.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".json", ".json", ".npy", ".npy"]
    for one in some(files):
        whole = one.read_bytes()
        for damaged in some(damages(one)):
            one.write_bytes(damaged)
            caplog.clear()
            assert used(file) == expected
            (line,) = [r.getMessage() for r in caplog.records]
            assert line.startswith(f"{one}: ")
            assert line.endswith("; it is rebuilt")
            assert one.read_bytes() == whole


def test_the_cache_of_another_name_is_not_taken(own_cache, tmp_path, caplog):
    file, another = tmp_path / "weights", tmp_path / "other"
    for path in (file, another):
        path.write_bytes(path.name.encode())
        used(path)
    tokens = {stem: json.loads((own_cache / "tokens" / f"{stem}.json").read_text()) for stem in {
        path.stem for path in (own_cache / "tokens").iterdir()}}  # fmt: skip
    small, large = sorted(tokens, key=lambda stem: len(tokens[stem]["clusters"]))
    for suffix in (".json", ".npy"):
        shutil.copy(own_cache / "tokens" / f"{small}{suffix}", own_cache / "tokens" / f"{large}{suffix}")
    assert len(build(corpus(), sequences=12)) == 12
    assert any("it belongs to another file name" in r.getMessage() for r in caplog.records)


def test_what_killed_processes_left_in_the_cache_is_removed(own_cache):
    (own_cache / "tokens").mkdir(parents=True)
    (own_cache / "tokens" / ".x.part").write_bytes(b"half")
    build(corpus(), sequences=12)
    assert sorted(path.suffix for path in (own_cache / "tokens").iterdir()) == [".json", ".npy"]


def test_a_folder_that_has_the_files_name_is_named(tmp_path):
    with pytest.raises(SaevalError, match=r"cannot be written \(a folder has this name\); move it away"):
        write_whole(tmp_path, b"content", "free some space")
    assert not list(tmp_path.parent.glob(".*.part"))
