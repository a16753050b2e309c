"""Authorities and certificates made by openssl, as an administrator would make them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.parts import program


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


def authority(folder: Path, name: str) -> Pair:
    pair = _pair(folder, name)
    _openssl("req", "-x509", *_NEW_KEY, *_out(pair), "-days", "2", "-subj", f"/CN={name}")
    return pair


def signed(by: Pair, folder: Path, name: str) -> Pair:
    """A certificate for localhost and 127.0.0.1, good for servers and clients."""
    pair = _pair(folder, name)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    signer = ("-CA", str(by.certificate), "-CAkey", str(by.key))
    _openssl("req", "-x509", *signer, *_NEW_KEY, *_out(pair), "-days", "2", "-subj", f"/CN={name}", "-addext", names)
    return pair


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _pair(folder: Path, name: str) -> Pair:
    return Pair(folder / f"{name}.pem", folder / f"{name}.key")


def _out(pair: Pair) -> tuple[str, ...]:
    return ("-keyout", str(pair.key), "-out", str(pair.certificate))


def _openssl(*words: str) -> None:
    subprocess.run([program("openssl"), *words], check=True, capture_output=True)
