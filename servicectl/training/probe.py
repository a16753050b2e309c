"""A stand-in for Service B, run alone: `python -I probe.py check PARENT_PID MEMORY_MB`, JSON in, JSON out.

It must not import servicectl (a model that needs it would seem to work), so it is standard library and the model's own
libraries only, and repeats what it needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import runpy
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_RULES = runpy.run_path(str(Path(__file__).with_name("pickles.py")))


class _Refused(Exception):
    def __init__(self, message: str, cure: str = "", kind: str = "NotServable") -> None:
        super().__init__(message)
        self.failure = {"kind": kind, "message": message, "cure": cure}


class _NoServicectl:
    """Makes this program unimportable, as it is where Service B runs."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name.partition(".")[0] == "servicectl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


class _Unpickler(pickle.Unpickler):
    """Opens only what the parent allowed, by name and by where the name leads, and of the built-in functions none."""

    roots: frozenset[str] = frozenset()
    allowed: tuple[str, ...] = ()

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in self.roots:
            raise _Refused(f"the model needs {module}.{name}, which is not allowed")
        if not _RULES["is_allowed"](module, name, self.allowed):
            raise _Refused(f"the model needs {module}.{name}, which is not on the allow-list")
        found = super().find_class(module, name)
        if module == "builtins" and not isinstance(found, type):
            raise _Refused(f"the model needs the built-in function {name}, which no estimator does")
        if str(getattr(found, "__module__", None) or module).partition(".")[0] not in self.roots:
            raise _Refused(f"the model needs {module}.{name}, which leads to {found.__module__}")
        return found


def main(arguments: list[str]) -> None:
    confine = runpy.run_path(str(Path(__file__).with_name("confine.py")))
    confine["die_with"](int(arguments[1]))
    confine["leave_signals_to_parent"]()
    answer = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    sys.meta_path.insert(0, _NoServicectl())
    confine["limit_memory"](int(arguments[2]))
    held = confine["no_files"]() + confine["no_network"]()
    outcome: dict[str, Any]
    try:
        outcome = {"result": {"predictions": _predictions(request), "confinement": held}}
    except _Refused as refusal:
        outcome = {"failure": refusal.failure}
    except MemoryError:
        outcome = {
            "failure": {"kind": "NotServable", "message": f"the model needs more than {arguments[2]} MiB to open"}
        }
    os.write(answer, json.dumps(outcome).encode())
    os._exit(0)


def _predictions(request: dict[str, Any]) -> list[float]:
    import pandas as pd

    features: list[str] = request["features"]
    model = _opened(request)
    columns = list(zip(*request["rows"], strict=True))
    in_order = pd.DataFrame({name: list(column) for name, column in zip(features, columns, strict=True)})
    numeric = in_order.columns[[all(not isinstance(value, str) for value in column) for column in columns]]
    in_order = in_order.astype(dict.fromkeys(numeric, "float64"))
    expected = _asked(model, in_order, "in order")
    confidence = _confidence(model, in_order)
    found = []
    for number, (row, order) in enumerate(zip(request["rows"], request["orders"], strict=True)):
        sent = {features[place]: _parsed(_text(row[place], whole=number % 2 == 0)) for place in order}
        frame = pd.DataFrame([sent])
        value = _number(_asked(model, frame, "one request, columns shuffled")[0])
        wanted = _number(expected[number])
        if not _equal(value, wanted, exact=request["classification"]):
            raise _differs(repr(value), repr(wanted))
        if confidence is not None:
            # Two dozen rows may well be of one class, whatever the order of the columns.
            pairs = zip(_confidence(model, frame)[0], confidence[number], strict=True)
            if not all(_equal(float(value), float(wanted), exact=False) for value, wanted in pairs):
                raise _differs("with another confidence", "with its own")
        found.append(value)
    _missing_column_is_an_error(model, sent)
    return found


def _confidence(model: Any, frame: Any) -> Any:
    """(rows, classes or 1): what a classifier answers before it rounds to a class; None where it does not say."""
    import numpy as np

    for name in ("predict_proba", "decision_function"):
        if hasattr(model, name):
            answered = np.asarray(getattr(model, name)(frame), dtype="float64")
            return answered.reshape(len(answered), -1)
    return None


def _differs(value: str, wanted: str) -> _Refused:
    return _Refused(
        f"the model answers {value} to a request whose columns are shuffled and whose numbers are text,"
        f" and {wanted} to the same row in order",
        "it must select its columns by name and take numbers for numbers",
    )


def _opened(request: dict[str, Any]) -> Any:
    content = Path(request["path"]).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != request["sha256"]:
        raise _Refused(
            f"the model {request['path']} has sha256 {digest}, on record is {request['sha256']}",
            "it was not opened; fetch or train it again",
            "IntegrityError",
        )
    unpickler = _Unpickler(io.BytesIO(content))
    unpickler.roots = frozenset(request["roots"])
    unpickler.allowed = tuple(request["allowed"])
    try:
        return unpickler.load()
    except (_Refused, MemoryError):
        raise
    except Exception as error:
        raise _Refused(f"the model cannot be opened: {type(error).__name__}: {error}") from error


def _asked(model: Any, frame: Any, how: str) -> Any:
    try:
        return model.predict(frame)
    except MemoryError:
        raise
    except Exception as error:
        raise _Refused(
            f"the model cannot predict ({how}): {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            "it must be a Pipeline that selects its columns by name",
        ) from error


def _missing_column_is_an_error(model: Any, sent: dict[str, Any]) -> None:
    import pandas as pd

    for name in sent:
        frame = pd.DataFrame([{other: value for other, value in sent.items() if other != name}])
        try:
            model.predict(frame)
        except Exception:  # noqa: BLE001, S112 -- any error will do: it reaches the caller as an error message
            continue
        raise _Refused(f"the model answers a request without {name!r} as if nothing were missing")


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _Refused(f"the model answers {value!r}, not a number", "train it on numbers as labels") from None
    if not math.isfinite(number):
        raise _Refused(f"the model answers {number}")
    return number


def _equal(value: float, wanted: float, *, exact: bool) -> bool:
    # One row and many rows go through different matrix kernels.
    return value == wanted if exact else math.isclose(value, wanted, rel_tol=1e-7, abs_tol=1e-9)


def _text(value: float | str | None, *, whole: bool) -> str:
    if value is None:
        return "nan"
    if isinstance(value, str):
        return value
    return str(int(value)) if whole and value.is_integer() else repr(value)


def _parsed(text: str) -> float | int | str:
    """Service B's own rules."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # they have no reader here
    main(sys.argv[1:])
