from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from servicectl import log
from servicectl.errors import BadData, ServicectlError, TryAgain
from servicectl.training import child, floor
from servicectl.training.child import Limits
from tests.training.making import bank_spec


def run(code: str, limits: Limits | None = None) -> object:
    return child.run("task", {"x": 1}, dict[str, str], what="the work", limits=limits or Limits(), program=("-c", code))


def test_the_floor_is_light_to_import() -> None:
    code = (
        "import sys, servicectl.training.floor, servicectl.training.source, servicectl.training.package;"
        "print([name for name in ('numpy', 'pandas', 'sklearn', 'scipy', 'duckdb') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_a_child_knows_no_secret_and_has_its_threads_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "secret")
    monkeypatch.setenv("SERVICECTL_REDIS_PASSWORD", "secret")
    found = run("import os, json; print(json.dumps({'result': dict(os.environ)}))", Limits(threads=3))

    assert isinstance(found, dict)
    assert "secret" not in found.values()
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"], found["PYTHONHASHSEED"]) == ("3", "3", "0")
    assert found["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert found["PATH"] == os.environ["PATH"]


def test_a_killed_child_can_be_tried_again() -> None:
    with pytest.raises(TryAgain, match="the work was killed"):
        run("import os; os.kill(os.getpid(), 9)")


@pytest.mark.parametrize("number", [9, 11])
def test_a_child_that_dies_under_a_memory_limit_names_the_limit(number: int) -> None:
    with pytest.raises(ServicectlError, match=r"training\.memory_mb = 512") as raised:
        run(f"import os; os.kill(os.getpid(), {number})", Limits(memory_mb=512))

    assert not raised.value.retryable


def test_a_child_that_says_nothing_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ServicectlError, match="ended with status 1 without an answer; its last words: ValueError: oh"):
        run("raise ValueError('oh')")


def test_what_a_child_tells_is_logged_while_it_works_and_is_not_among_its_last_words(tmp_path: Path) -> None:
    heard: list[str] = []
    code = (
        "import os, sys, time\nfrom servicectl.training import child\nchild.in_child = True\n"
        "print('a complaint', file=sys.stderr, flush=True)\nchild.tell('half way')\n"
        f"while not os.path.exists({str(tmp_path / 'heard')!r}): time.sleep(0.01)\n"
    )

    def show(text: str) -> None:
        heard.append(text)
        (tmp_path / "heard").touch()

    log.on_progress(show)
    try:
        with pytest.raises(ServicectlError, match="its last words: a complaint"):
            run(code, Limits(timeout_s=30))
    finally:
        log.on_progress(None)

    assert heard == ["half way"]


def test_a_child_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(ServicectlError, match=r"longer than 0\.2 s"):
        run("import time; time.sleep(600)", Limits(timeout_s=0.2))


def test_an_error_arrives_as_the_same_kind_with_its_cure() -> None:
    answer = child.encoded_failure(BadData("no rows", cure="get some")).decode()

    with pytest.raises(BadData, match="no rows") as raised:
        run(f"print({answer!r})")

    assert raised.value.cure == "get some"


def test_what_the_child_did_not_foresee_is_told_in_one_line(tmp_path: Path, bank_before: Path) -> None:
    with pytest.raises(ServicectlError, match="train of Bank failed: FileNotFoundError"):
        floor.train(bank_spec(), bank_before, tmp_path / "no such folder")


_PARENT = """
import sys
from servicectl.training import child
code = '''
import os, sys, time
from servicectl.training import confine
confine.die_with(int(sys.argv[2]))
print(os.getpid(), file=open(%r, "w"), flush=True)
time.sleep(600)
''' % sys.argv[1]
child.run("task", {}, dict, what="x", limits=child.Limits(), program=("-c", code))
"""


def test_a_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(told)])
    try:
        _until(lambda: told.exists() and told.read_text().endswith("\n"))
        pid = int(told.read_text())
        assert _alive(pid)
    finally:
        parent.kill()
        parent.wait()

    _until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
