"""What a pickle may name, read from its opcodes before anything is unpickled. Standard library only: the isolated
probe runs this file by its path.

A pickle is a program whose only way out is by names: GLOBAL, INST and STACK_GLOBAL fetch a module's member, which later
opcodes call. So the names are held against an allow-list of types, twice: as text before opening (`refused`), and again by
an unpickler in a confined process that also sees where a name really leads (`Unpickler`). A name that the text does not
show plainly is refused. Whole packages were rejected as a list: `numpy.testing` alone runs any text as a program.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

# Modules and members that a fitted scikit-learn pipeline names. A member of sklearn must look like a class.
_MEMBERS: dict[str, frozenset[str]] = {
    "builtins": frozenset(
        {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"}
        | {"set", "slice", "str", "tuple"}
    ),
    "_codecs": frozenset({"encode"}),
    "collections": frozenset({"Counter", "OrderedDict", "defaultdict", "deque"}),
    "copyreg": frozenset({"_reconstructor", "__newobj__"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "fractions": frozenset({"Fraction"}),
    "numpy": frozenset(
        {"bool", "bool_", "bytes_", "complex128", "complex64", "datetime64", "dtype", "float16", "float32", "float64"}
        | {
            "int16",
            "int32",
            "int64",
            "int8",
            "longlong",
            "ndarray",
            "object_",
            "str_",
            "timedelta64",
            "uint16",
            "uint32",
        }
        | {"uint64", "uint8"}
    ),
    "numpy.random.bit_generator": frozenset({"SeedSequence", "__pyx_unpickle_SeedSequence"}),
    "numpy.random._mt19937": frozenset({"MT19937"}),
    "numpy.random._pcg64": frozenset({"PCG64"}),
    "numpy.random._pickle": frozenset({"__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"}),
    "pandas.core.indexes.base": frozenset({"Index", "_new_Index"}),
    "scipy._lib.array_api_compat.numpy._aliases": frozenset({"asarray"}),
    "scipy.interpolate._bsplines": frozenset({"BSpline"}),
    "scipy.interpolate._interpolate": frozenset({"interp1d"}),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _MEMBERS[f"{_core}.multiarray"] = frozenset({"_reconstruct", "scalar"})
    _MEMBERS[f"{_core}.numeric"] = frozenset({"_frombuffer"})

# Of a library whose members are known, the name alone allows these and not the whole package.
_OF_LIBRARIES: dict[str, dict[str, frozenset[str]]] = {
    "xgboost": {
        "xgboost.core": frozenset({"Booster"}),
        "xgboost.sklearn": frozenset({"XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor"}),
    }
}

_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # what protocols below 3 write
_SPARSE = re.compile(r"scipy\.sparse\._\w+")
_SPARSE_NAME = re.compile(r"[a-z]{3}_(?:matrix|array)")
_CLASS = re.compile(r"_*[A-Z]\w*|__pyx_unpickle_\w+")
# Functions that estimators hold by reference or that rebuild a compiled tree.
_FUNCTIONS = frozenset(
    {
        "_passthrough_scorer",
        "chi2",
        "f_classif",
        "f_regression",
        "mutual_info_classif",
        "mutual_info_regression",
        "newObj",
    }
    | {"r_regression"}
)
_NOT_OF_A_MODEL = frozenset({"_testing", "conftest", "datasets", "externals", "tests"})  # of sklearn's packages
_ROOTS = frozenset({name.partition(".")[0] for name in _MEMBERS} | {"sklearn", "scipy"})

_TEXT = frozenset({"BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE"})
_INTO_MEMO = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"})
_OUT_OF_MEMO = frozenset({"BINGET", "GET", "LONG_BINGET"})
_NEVER = frozenset({"BINPERSID", "EXT1", "EXT2", "EXT4", "PERSID"})  # names kept outside the pickle
_HIDDEN = ("?", "a name that is not plain text")
# What holds a model's numbers, by how its length is written, and the texts beside it that could be as long.
_LONG = {"BINBYTES": "<I", "BINBYTES8": "<Q", "BYTEARRAY8": "<Q", "BINUNICODE": "<I", "BINUNICODE8": "<Q"}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_LONGEST_READ = 1 << 16  # bytes; a longer text is no name


class Forbidden(Exception):
    """A pickle names something that is not on the allow-list."""


def names_in(pickled: bytes | BinaryIO) -> set[tuple[str, str]]:
    """Every (module, member) that a pickle names, without running it; ("?", why) for one that cannot be told.

    A file is read from where it stands, in pieces: memory does not grow with the arrays in it. Raises ValueError for
    bytes that are not a pickle.
    """
    found: set[tuple[str, str]] = set()
    memo: dict[int, str | None] = {}
    # The text on top of the stack and the one below it, known only right after they were pushed.
    top: str | None = None
    below: str | None = None
    for name, argument in _opcodes(io.BytesIO(pickled) if isinstance(pickled, bytes) else pickled):
        if name in _INTO_MEMO:
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = top
            continue
        if name == "FRAME":
            continue
        if name in ("GLOBAL", "INST"):
            module, _, member = str(argument).partition(" ")
            found.add((module, member))
        elif name == "STACK_GLOBAL":
            found.add((below, top) if below is not None and top is not None else _HIDDEN)
        elif name in _NEVER:
            found.add(("?", f"what the opcode {name} stands for"))
        pushed = memo.get(int(str(argument))) if name in _OUT_OF_MEMO else argument if name in _TEXT else None
        top, below = None if pushed is None else str(pushed), top
    return found


def _opcodes(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """As pickletools.genops, but what is long is passed over unread, its argument None."""
    end = os.fstat(file.fileno()).st_size if not isinstance(file, io.BytesIO) else len(file.getbuffer())
    while code := file.read(1):
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"it has the unknown opcode {code!r}")
        argument = None
        if opcode.arg is not None and not _passed_over(file, opcode.name, end):
            argument = opcode.arg.reader(file)
        yield opcode.name, argument
        if opcode.name == "STOP":
            return
    raise ValueError("it has no end")


def _passed_over(file: BinaryIO, name: str, end: int) -> bool:
    form = _LONG.get(name)
    if form is None:
        return False
    start = file.tell()
    head = file.read(struct.calcsize(form))
    (length,) = struct.unpack(form, head) if len(head) == struct.calcsize(form) else (0,)
    if length <= _LONGEST_READ:
        file.seek(start)
        return False
    if file.tell() + length > end:
        raise ValueError(f"it breaks off within {name}")
    file.seek(length, io.SEEK_CUR)
    return True


def is_allowed(module: str, member: str, also: Iterable[str] = ()) -> bool:
    """Whether a model may name this member. `also`: packages, modules or members beyond a scikit-learn model's own."""
    if not all(part.isidentifier() for part in module.split(".")) or not member.isidentifier():
        return False  # a dotted member walks through attributes to anything its module has imported
    module = _OF_PYTHON_2.get(module, module)
    full = f"{module}.{member}"
    for entry in also:
        if entry in _OF_LIBRARIES:
            if member in _OF_LIBRARIES[entry].get(module, ()):
                return True
        elif full == entry or full.startswith(f"{entry}."):
            return True
    if member in _MEMBERS.get(module, ()):
        return True
    package = module.split(".")
    if package[0] == "sklearn":
        return not _NOT_OF_A_MODEL & set(package) and bool(_CLASS.fullmatch(member) or member in _FUNCTIONS)
    return bool(_SPARSE.fullmatch(module) and _SPARSE_NAME.fullmatch(member))


def refused(pickled: bytes | BinaryIO, also: Iterable[str] = ()) -> list[str]:
    """What a pickle names beyond the allow-list, in words; empty if all is well. A file as `names_in`."""
    known = tuple(also)
    try:
        names = names_in(pickled)
    except Exception as error:  # noqa: BLE001 -- hostile bytes make the reader of opcodes fail in many ways
        return [f"bytes that are not a pickle ({(str(error).splitlines() or [type(error).__name__])[0]})"]
    return sorted(_words(module, member) for module, member in names if not is_allowed(module, member, known))


def _words(module: str, member: str) -> str:
    if module == "?":
        return member
    return f"the built-in function {member}" if module in ("builtins", "__builtin__") else f"{module}.{member}"


class Unpickler(pickle.Unpickler):
    """Opens only what is allowed, by name and by where the name leads. Raises Forbidden."""

    def __init__(self, content: bytes, also: Iterable[str] = ()) -> None:
        super().__init__(io.BytesIO(content))
        self._also = tuple(also)

    def find_class(self, module: str, name: str) -> Any:
        if not is_allowed(module, name, self._also):
            raise Forbidden(f"it names {_words(module, name)}, which no model may")
        found = super().find_class(module, name)
        origin = str(getattr(found, "__module__", None) or module).partition(".")[0]
        # An allowed module may itself have imported what is not.
        if origin not in _ROOTS | {entry.partition(".")[0] for entry in self._also}:
            raise Forbidden(f"it names {module}.{name}, which is {origin}'s")
        return found
