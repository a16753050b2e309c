"""Heavy work in a child process: the job's own process stays light, and what the child breaks dies with it.

The child is spawned, never forked under the threads of gRPC or DuckDB. Its request is JSON on stdin, its answer JSON
on stdout; what it tells while it works are marked lines on stderr, which the parent logs at once. It dies with its parent (PR_SET_PDEATHSIG) and knows no secret of the parent's environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeVar

import msgspec
from msgspec import Struct

from servicectl import errors, log
from servicectl.errors import ServicectlError, TryAgain

Result = TypeVar("Result")

# Everything else stays with the parent: connection strings and passwords are in its environment.
_INHERITED = {
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONWARNINGS",
    "SERVICECTL_CRASH_AT", "SERVICECTL_CRASH_TRACE", "TMPDIR", "TZ", "VIRTUAL_ENV",
}  # fmt: skip
in_child = False
_CRASHES = {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS}
_MARK = b"\x1e"  # ASCII's record separator: no library prints it
_LINES_KEPT = 100
WORKER = ("-P", "-m", "servicectl.training.worker")


class Limits(Struct, frozen=True, kw_only=True):
    """What a child may use. `memory_mb` bounds its private memory (RLIMIT_DATA), in MiB."""

    threads: int = 1
    memory_mb: int | None = None
    timeout_s: float | None = None
    memory_key: str = "training.memory_mb"  # what to call the limit, and where it is set


class Failure(Struct, frozen=True, kw_only=True):
    """An error on its way from a child: its class by name, its words, and for the log where it came from."""

    kind: str
    message: str
    cure: str = ""
    trace: str = ""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    result: msgspec.Raw = msgspec.Raw()
    failure: Failure | None = None


def environment(threads: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a child: no secrets, pinned threads, and hashes alike on every run."""
    kept = {name: value for name, value in inherited.items() if name in _INHERITED or name.startswith("LC_")}
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # Arrow's own allocator reserves 1 GiB at its first use, which a memory limit counts.
    return kept | pinned | {"ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


def run(
    task: str,
    request: object,
    result_type: type[Result],
    *,
    what: str,
    limits: Limits,
    program: Sequence[str] = WORKER,
) -> Result:
    """Run one task in a child and wait for its answer.

    `what` names the work in messages ("training Churn"). Raises the error that the child raised, of the same class;
    TryAgain if the child was killed from outside; ServicectlError if it met its memory or time limit or crashed.
    """
    command = [sys.executable, *program, task, str(os.getpid()), str(limits.memory_mb or 0)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(limits.threads),
    )
    complaints: deque[bytes] = deque(maxlen=_LINES_KEPT)
    assert child.stderr is not None
    listening = threading.Thread(target=_listen, args=(child.stderr, complaints), name="child's stderr", daemon=True)
    listening.start()
    stderr, child.stderr = child.stderr, None  # not for `communicate` to read
    try:
        output, _ = child.communicate(msgspec.json.encode(request), timeout=limits.timeout_s)
    except subprocess.TimeoutExpired:
        raise ServicectlError(
            f"{what} took longer than {limits.timeout_s:g} s and was stopped", cure="look at the model's size and kind"
        ) from None
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        listening.join()
        for pipe in (child.stdin, child.stdout, stderr):
            if pipe is not None:
                pipe.close()
    try:
        answer = msgspec.json.decode(output, type=Answer)
    except msgspec.MsgspecError:
        raise _died(what, child.returncode, limits, b"".join(complaints)) from None
    if answer.failure is not None:
        raise _raised(answer.failure)
    return msgspec.json.decode(answer.result, type=result_type)


def _listen(stderr: IO[bytes], complaints: deque[bytes]) -> None:
    for line in stderr:
        before, marked, told = line.partition(_MARK)
        if marked:
            log.working(told.decode(errors="replace").strip())
        if before.strip():
            complaints.append(before)


def tell(text: str) -> None:
    """The child's side: one line for the log, at once. Outside of a child it is logged here."""
    if not in_child:
        log.working(text)
        return
    # A parent that no longer listens has its reasons.
    with contextlib.suppress(OSError):
        os.write(2, _MARK + " ".join(text.splitlines()).encode() + b"\n")


def encoded(result: object) -> bytes:
    """The child's side: an answer that holds a result."""
    return msgspec.json.encode(Answer(result=msgspec.Raw(msgspec.json.encode(result))))


def encoded_failure(error: ServicectlError) -> bytes:
    """The child's side: an answer that holds an error of ours."""
    failure = Failure(kind=type(error).__name__, message=error.message, cure=error.cure)
    return msgspec.json.encode(Answer(failure=failure))


def _raised(failure: Failure) -> ServicectlError:
    from servicectl.training.servable import NotServable

    kinds: dict[str, Any] = {"NotServable": NotServable} | vars(errors)
    kind = kinds.get(failure.kind, ServicectlError)
    log.debug(failure.trace)
    # Not the constructor: some classes word their own message from other arguments.
    error = kind.__new__(kind)
    ServicectlError.__init__(error, failure.message, cure=failure.cure)
    assert isinstance(error, ServicectlError)
    return error


def _died(what: str, status: int, limits: Limits, complaints: bytes) -> ServicectlError:
    last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
    said = f"; its last words: {last}" if last else ""
    died_of = signal.Signals(-status) if status < 0 else None
    if limits.memory_mb and (died_of in _CRASHES or "bad_alloc" in said or "allocat" in said):
        name = died_of.name if died_of else f"exit status {status}"
        return out_of_memory(what, limits.memory_mb, f"it died by {name}{said}", limits.memory_key)
    if died_of is signal.SIGKILL:
        return TryAgain(
            f"{what} was killed (SIGKILL), most likely because the machine or its unit ran out of memory",
            cure="set training.memory_mb and training.max_rows, or give the unit a higher MemoryMax",
        )
    ended = f"died by {died_of.name}" if died_of else f"ended with status {status}"
    return ServicectlError(f"{what} {ended} without an answer{said}", cure="run it again with -v")


def out_of_memory(what: str, memory_mb: int, detail: str, key: str = "training.memory_mb") -> ServicectlError:
    return ServicectlError(
        f"{what} needs more memory than {key} = {memory_mb} (MiB) allows ({detail})",
        cure="raise training.memory_mb, or use fewer rows with training.max_rows, or a smaller estimator",
    )
