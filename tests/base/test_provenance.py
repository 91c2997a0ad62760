"""What a result says of the saeval that computed it."""

from __future__ import annotations

import os
import subprocess

from saeval.base import provenance


def test_the_commit_is_read_without_touching_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "saeval").mkdir()
    own = tmp_path / "saeval" / "provenance.py"
    own.write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    os.utime(own, (1, 1))  # `git status` would write the index again, and lock it meanwhile
    index = tmp_path / ".git" / "index"
    before = index.read_bytes(), index.stat().st_mtime_ns
    monkeypatch.setattr(provenance, "__file__", str(own))
    found = provenance.commit.__wrapped__()
    assert len(found) == 40
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before
    own.write_text("changed")
    assert provenance.commit.__wrapped__() == f"{found}+"
