from __future__ import annotations

import os
from pathlib import Path

import pytest

from servicectl.training import mode
from servicectl.training.machine import memory_bytes
from tests.training.making import bank_spec

MIB = 1 << 20


def machine(folder: Path, membership: str, files: dict[str, str]) -> int:
    (folder / "cgroup").write_text(membership)
    for name, content in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return memory_bytes(folder / "cgroup", folder / "fs") // MIB


def test_a_units_own_limit_is_seen_and_a_parents_where_it_is_less(tmp_path: Path) -> None:
    unit = {"system.slice/x.service/memory.max": str(96 * MIB), "system.slice/memory.max": "max"}
    own = machine(tmp_path, "0::/system.slice/x.service\n", unit)
    parents = machine(tmp_path, "0::/system.slice/x.service\n", {"system.slice/memory.max": str(64 * MIB)})
    high = machine(tmp_path, "0::/system.slice/x.service\n", {"system.slice/x.service/memory.high": str(32 * MIB)})

    assert (own, parents, high) == (96, 64, 32)


@pytest.mark.parametrize("group", ["/system.slice/x.service", "/docker/0123"])
def test_a_limit_of_cgroup_v1_is_seen_also_where_only_the_mounts_root_has_it(tmp_path: Path, group: str) -> None:
    membership = f"8:pids:/elsewhere\n4:memory:{group}\n0::/\n"
    files = {
        "memory/system.slice/x.service/memory.limit_in_bytes": str(48 * MIB),
        "memory/memory.limit_in_bytes": str(80 * MIB),
        "pids/elsewhere/memory.limit_in_bytes": str(MIB),
    }

    assert machine(tmp_path, membership, files) == (48 if "system" in group else 80)


def test_without_a_limit_it_is_the_machines_memory(tmp_path: Path) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    unlimited = machine(tmp_path, "4:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": str((1 << 63) - 4096)})

    assert unlimited == total
    assert memory_bytes(tmp_path / "absent", tmp_path) // MIB == total


def test_the_estimate_is_held_against_half_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "memory_bytes", lambda: 900 * MIB)

    assert mode.limit_mb(bank_spec()) == 450
    assert mode.limit_mb(bank_spec(memory_mb=77)) == 77
