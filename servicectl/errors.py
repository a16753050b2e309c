"""Every error an operator can meet, and the exit status it ends in.

ServicectlError                 1   something failed; the message says what, `cure` says what to type
├── ConfigError                78   the configuration is missing or wrong
├── UsageError                  2   an unknown model, job or command-line value
├── NotMeasured                 3   a question could not be answered; never the same as "nothing found"
├── CannotJudge                 3   a challenger could not be compared
├── TryAgain                   75   nothing is wrong with the request; the job stays resumable
│   ├── PartyUnavailable       75   Redis, the handler, Service B or C, or the artifact store does not answer
│   ├── OutcomeUnknown         75   a statement was sent and may or may not have run
│   └── Busy                   75   somebody else holds the scope
├── Superseded                  1   a newer generation is in production; the older work stops
├── BadAnswer                   1   another service answered something outside its contract
├── BadData                     1   the data cannot be trained on or judged (one class, no rows, ...)
├── IntegrityError              1   bytes do not match the digest on record
└── StoreError                  1   the job store is of a newer program, on a network file system, or of no use otherwise
    ├── StoreDamaged           65   its file or its WAL is damaged, foreign, or no job store
    ├── StoreFull              74   its disk has no room, or fails
    └── StoreDenied            77   this user may not use it, or its file system is read-only
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a finished command means to a timer, a script or an operator."""

    OK = 0  # done, or nothing was due
    FAILED = 1
    USAGE = 2
    NOT_MEASURED = 3
    DRIFT_FOUND = 10  # only with --detailed-exitcode
    REJECTED = 11  # only with --detailed-exitcode
    NEEDS_OPERATOR = 12  # only with --detailed-exitcode
    STORE_DAMAGED = 65  # 65, 74, 75, 77 and 78 are those of sysexits.h
    STORE_FULL = 74
    TRY_AGAIN = 75
    STORE_DENIED = 77
    CONFIG = 78


class ServicectlError(Exception):
    """An error worded for the operator.

    `message` says what is wrong and where; `cure` is the next thing to type or change. `retryable` tells the
    job engine whether running the same step later can help.
    """

    exit_status = ExitStatus.FAILED
    retryable = False

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))

    def __str__(self) -> str:
        return f"{self.message} ({self.cure})" if self.cure else self.message


def _rebuild(kind: type[ServicectlError], attributes: dict[str, object]) -> ServicectlError:
    error = kind.__new__(kind)
    Exception.__init__(error, attributes["message"])
    error.__dict__.update(attributes)
    return error


class ConfigError(ServicectlError):
    exit_status = ExitStatus.CONFIG


class UsageError(ServicectlError):
    exit_status = ExitStatus.USAGE


class NotMeasured(ServicectlError):
    exit_status = ExitStatus.NOT_MEASURED


class CannotJudge(ServicectlError):
    exit_status = ExitStatus.NOT_MEASURED


class TryAgain(ServicectlError):
    exit_status = ExitStatus.TRY_AGAIN
    retryable = True


class PartyUnavailable(TryAgain):
    """`party` is one of the estate's names: Redis, the handler, Service B, Service C, the artifact store."""

    def __init__(self, party: str, detail: str, *, cure: str = "") -> None:
        super().__init__(f"{party} is not available: {detail}", cure=cure)
        self.party = party


class OutcomeUnknown(TryAgain):
    pass


class Busy(TryAgain):
    pass


class Superseded(ServicectlError):
    pass


class BadAnswer(ServicectlError):
    pass


class BadData(ServicectlError):
    pass


class IntegrityError(ServicectlError):
    pass


class StoreError(ServicectlError):
    pass


class StoreDamaged(StoreError):
    exit_status = ExitStatus.STORE_DAMAGED


class StoreFull(StoreError):
    exit_status = ExitStatus.STORE_FULL
    retryable = True


class StoreDenied(StoreError):
    exit_status = ExitStatus.STORE_DENIED
