"""Who may call: TLS with client certificates, a token, or, on this machine alone, whoever can connect."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from servicectl import log
from servicectl.config import ListenConfig, secret
from servicectl.errors import ConfigError
from servicectl.listener.address import Address

_LEAST_TOKEN = 16


@dataclass(frozen=True)
class Protection:
    """`credentials` None: no TLS. `token` None: none is asked for."""

    credentials: grpc.ServerCredentials | None = None
    token: str | None = field(default=None, repr=False)


def protection(listen: ListenConfig, folder: Path, address: Address, *, insecure: bool) -> Protection:
    """What the configuration says, if that is enough for the address. Raises ConfigError.

    Relative file names are relative to `folder`. `insecure` lifts the demands on addresses that other machines reach.
    """
    token = _token(listen, folder)
    credentials = None if address.path else _credentials(listen, folder)
    if address.remote:
        lacking = _lacking(credentials is not None, authenticated=bool(listen.client_ca or token))
        if lacking and not insecure:
            raise ConfigError(
                f"listen.address {address.bindable} can be reached from other machines, and there is {lacking}",
                cure="use 127.0.0.1:50054 or unix:/run/servicectl/listen.sock, or set [listen] tls_certificate and "
                "tls_key with client_ca or token_file (docs/listener.md)",
            )
        if lacking:
            log.alert(f"--insecure: listening on {address.bindable} with {lacking}")
    return Protection(credentials, token)


def _lacking(encrypted: bool, *, authenticated: bool) -> str:
    what = "" if encrypted else "no TLS: whoever is on the way can read and change every call"
    who = "" if authenticated else "no check of the caller: everybody who reaches it may start jobs"
    return ", and ".join(text for text in (what, who) if text)


def _credentials(listen: ListenConfig, folder: Path) -> grpc.ServerCredentials | None:
    if not (listen.tls_certificate or listen.tls_key or listen.client_ca):
        return None
    if not (listen.tls_certificate and listen.tls_key):
        raise ConfigError("[listen] tls_certificate and tls_key go together", cure="set both, or none and no client_ca")
    certificate, key = _located(folder, listen.tls_certificate), _located(folder, listen.tls_key)
    authority = _located(folder, listen.client_ca) if listen.client_ca else None
    _private(key, "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # gRPC would tell of a wrong file only to each caller, as a failed handshake.
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        if authority:
            context.load_verify_locations(authority)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"the TLS files of [listen] cannot be used: {error}",
            cure=f"openssl x509 -noout -subject -in {certificate}; openssl pkey -noout -in {key}; is client_ca PEM too?",
        ) from None
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=authority.read_bytes() if authority else None,
        require_client_auth=authority is not None,
    )


def _no_password() -> str:
    raise ValueError("tls_key has a password, which nobody could type")


def _token(listen: ListenConfig, folder: Path) -> str | None:
    file = _located(folder, listen.token_file) if listen.token_file else None
    if file is not None and file.exists():
        _private(file, "token_file")
    token = secret("SERVICECTL_LISTEN_TOKEN", str(file) if file else None, "listen-token")
    if token is None:
        return None
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"the listener's token needs at least {_LEAST_TOKEN} printable ASCII characters",
            cure="openssl rand -hex 32 > /etc/servicectl/listen-token",
        )
    return token


def _private(file: Path, key: str) -> None:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"[listen] {key}: {file} cannot be read: {error.strerror}") from None
    if mode & 0o007:
        raise ConfigError(f"[listen] {key}: everybody on this machine may read {file}", cure=f"chmod 640 {file}")


def _located(folder: Path, text: str) -> Path:
    return folder / Path(text).expanduser()
