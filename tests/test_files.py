"""What must survive power loss is on the disk before it gets the name that others look for, and the name is, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servicectl.clock import SYSTEM
from servicectl.files import write_atomically
from servicectl.store import Store
from servicectl.store_backup import backup, restore
from servicectl.store_file import wal_of
from servicectl.store_fold import fold_alone
from tests.parts.stores import store_of_version_1

Calls = list[tuple[str, str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Every fsync and rename of this process, as it is made: what, of what, to what."""
    made: Calls = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def seen_fsync(descriptor: int) -> None:
        fsync(descriptor)
        made.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), ""))

    def seen_rename(source: Path, target: Path) -> None:
        rename(source, target)
        made.append(("rename", str(source), str(target)))

    def seen_replace(source: Path, target: Path) -> None:
        replace(source, target)
        made.append(("rename", str(source), str(target)))

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    monkeypatch.setattr(os, "replace", seen_replace)
    return made


def not_durable(calls: Calls) -> list[str]:
    """Names given before the bytes were synced, or never synced themselves."""
    renamed: dict[str, str] = {}
    early = []
    for place, (what, source, target) in enumerate(calls):
        if what != "rename":
            continue
        before, after = calls[:place], calls[place + 1 :]
        first = renamed.get(source, source)  # a file that was synced under one name and moved twice
        renamed[target] = first
        if ("fsync", first, "") not in before:
            early.append(f"{source} -> {target}: its bytes were not synced")
        if ("fsync", str(Path(target).parent), "") not in after:
            early.append(f"{source} -> {target}: its name was not synced")
    return early


def _insert(store: Store, name: str) -> None:
    with store.transaction() as connection:
        connection.execute("INSERT INTO requests VALUES ('made', ?, uuid())", [name])


def test_a_file_is_written_whole(tmp_path: Path, calls: Calls) -> None:
    write_atomically(tmp_path / "file", b"content")

    assert [what for what, _, _ in calls] == ["fsync", "rename", "fsync"]
    assert [target for _, _, target in calls if target] == [str(tmp_path / "file")]
    assert calls[2][1] == str(tmp_path)


def test_a_store_is_made_and_folded_durably(tmp_path: Path, calls: Calls) -> None:
    store = Store(tmp_path)
    _insert(store, "first")
    made = len(calls)
    fold_alone(store.path)

    assert len(calls) > made
    assert not_durable(calls) == []


def test_a_store_is_migrated_and_copied_durably(tmp_path: Path, calls: Calls) -> None:
    store = Store(store_of_version_1(tmp_path / "old", with_wal=True).parent)
    _insert(store, "first")
    made = backup(store, tmp_path / "copy", SYSTEM)

    assert made.jobs == 2
    assert not_durable(calls) == []


def test_a_backup_takes_the_place_of_a_store_durably(tmp_path: Path, calls: Calls) -> None:
    store = Store(tmp_path / "state")
    _insert(store, "first")
    copy = backup(store, tmp_path / "copy", SYSTEM).file
    _insert(store, "second")
    calls.clear()
    restore(store, copy, SYSTEM, refuse=lambda _: None)

    # What it replaces is moved as it is: DuckDB synced it when it was committed.
    replaced = (str(store.path), str(wal_of(store.path)))
    assert [told for told in not_durable(calls) if not told.startswith(replaced)] == []
    assert calls[-1] == ("fsync", str(store.folder), "")
