"""The child's side: `python -P -m servicectl.training.worker TASK PARENT_PID MEMORY_MB`, JSON in, JSON out."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from servicectl.errors import ServicectlError, TryAgain
from servicectl.training import child, confine, floor

_LEAST_FREE_MB = 64


def _warm(memory_mb: int) -> None:
    """Load the numeric libraries before memory is bounded, then say at once if nothing would be left to work with.

    OpenBLAS takes its work buffers at the first product, and where the kernel refuses them it tries again for ever.
    """
    import numpy as np
    import scipy.linalg
    import sklearn.linear_model  # noqa: F401 -- its own libraries count towards what is taken

    square = np.ones((512, 512))
    np.linalg.solve(square @ square + np.eye(512), square[0])
    scipy.linalg.lu_factor(square + np.eye(512))
    taken_mb = confine.private_memory_mb()
    if taken_mb + _LEAST_FREE_MB > memory_mb:
        raise child.out_of_memory("training", memory_mb, f"the libraries alone take {taken_mb} MiB of private memory")


def _describe(request: floor.DescribeRequest) -> object:
    from servicectl.training.frame import describe

    return describe(request)


def _train(request: floor.TrainRequest) -> object:
    from servicectl.training.fit import train

    return train(request)


def _judge(request: floor.JudgeRequest) -> object:
    confine.no_network()
    from servicectl.training.judge import judge

    return judge(request)


def _decay(request: floor.DecayRequest) -> object:
    confine.no_network()
    from servicectl.training.decay import decay

    return decay(request)


def _check(request: floor.CheckRequest) -> object:
    from servicectl.training.servable import check

    return check(request)


_TASKS: dict[str, tuple[type[Any], Callable[[Any], object]]] = {
    "describe": (floor.DescribeRequest, _describe),
    "train": (floor.TrainRequest, _train),
    "judge": (floor.JudgeRequest, _judge),
    "decay": (floor.DecayRequest, _decay),
    "check": (floor.CheckRequest, _check),
}


def main(arguments: list[str]) -> None:
    task, parent, memory_mb = arguments[0], int(arguments[1]), int(arguments[2])
    confine.die_with(parent)
    confine.leave_signals_to_parent()
    child.in_child = True
    # Libraries that print must not spoil the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    request_type, work = _TASKS[task]
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=request_type)
    with os.fdopen(answer, "wb") as out:
        out.write(_answered(work, request, f"{task} of {request.spec.model_id}", memory_mb))
    # Neither libraries' threads nor their exit handlers have anything to save.
    os._exit(0)


def _answered(work: Callable[[Any], object], request: object, what: str, memory_mb: int) -> bytes:
    try:
        if memory_mb:
            _warm(memory_mb)
        confine.limit_memory(memory_mb)
        return child.encoded(work(request))
    except ServicectlError as error:
        return child.encoded_failure(error)
    except MemoryError as error:
        return child.encoded_failure(child.out_of_memory(what, memory_mb, str(error) or "MemoryError"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _unforeseen(what, error)
        return child.encoded_failure(TryAgain(f"{what}: {error.strerror} ({error.filename})", cure="free some space"))
    except Exception as error:  # noqa: BLE001 -- the process ends here; the parent raises it with its words
        if memory_mb and "alloc" in str(error).lower():
            return child.encoded_failure(child.out_of_memory(what, memory_mb, str(error).splitlines()[0]))
        return _unforeseen(what, error)


def _unforeseen(what: str, error: Exception) -> bytes:
    words = f"{what} failed: {type(error).__name__}: {error}"
    failure = child.Failure(
        kind="ServicectlError", message=words, cure="run it again with -vv", trace=traceback.format_exc()
    )
    return msgspec.json.encode(child.Answer(failure=failure))


if __name__ == "__main__":
    main(sys.argv[1:])
