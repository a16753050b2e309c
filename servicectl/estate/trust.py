"""Who may say what is in production: Ed25519 signatures (RFC 8032) of manifests and pointers.

A signed document is a JSON object in canonical form (sorted keys, no spaces) with one member more,

    "signature": {"algorithm": "ed25519", "key": "<16 hex>", "value": "<base64>"}

made over `servicectl <role> 1`, a line feed, and the canonical bytes of the object without that member. Bytes that are not
the canonical form of what they say are refused, so one document has one form. `key` is the head of the public key's SHA-256
and only picks among the keys of the local configuration: nothing that comes out of the artifact store adds trust.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from servicectl.config import TrustConfig, secret
from servicectl.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Role = Literal["manifest", "pointer"]
_PREFIX = "ed25519:"
_CURE = "it was not used; restore the right one, or sign with a key of [trust] public_keys"


@dataclass(frozen=True)
class Trust:
    """The local configuration's word on signatures. `keys` maps key ids to raw public keys of 32 bytes."""

    keys: Mapping[str, bytes]
    required: bool
    _private: Callable[[], str | None]

    @cached_property
    def signing_key(self) -> Ed25519PrivateKey | None:
        """Raises ConfigError for a file that holds no Ed25519 key."""
        text = self._private()
        if text is None:
            return None
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(text.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                "the signing key is not an unencrypted Ed25519 key in PEM form", cure="servicectl trust init makes one"
            )
        return key

    @property
    def own_key(self) -> str | None:
        """The public half of the signing key as the configuration writes it."""
        return public_text(self.signing_key) if self.signing_key else None

    def sealed(self, role: Role, content: bytes) -> bytes:
        """A JSON object's bytes with our signature; unchanged where we have no key. Equal content gives equal bytes."""
        if self.signing_key is None:
            return content
        tree = msgspec.json.decode(content)
        tree.pop("signature", None)
        key = hashlib.sha256(_raw(self.signing_key)).hexdigest()[:16]
        value = base64.b64encode(self.signing_key.sign(_signed(role, tree))).decode()
        return _canonical({**tree, "signature": {"algorithm": "ed25519", "key": key, "value": value}})

    def verify(self, role: Role, content: bytes, name: str) -> None:
        """Return if these bytes may be believed: signed by a trusted key, or unsigned where none is required.

        Raises IntegrityError.
        """
        try:
            tree = msgspec.json.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            tree = None
        signature = tree.get("signature") if isinstance(tree, dict) else None
        if signature is None and not self.required:
            return
        if not self.keys:
            return  # signed by another installation; without keys there is nothing to hold it against
        if not isinstance(tree, dict) or not isinstance(signature, dict):
            raise IntegrityError(f"{name} is not signed, and [trust] asks for a signature", cure=_CURE)
        raw = self.keys.get(str(signature.get("key")))
        if raw is None or signature.get("algorithm") != "ed25519":
            raise IntegrityError(f"{name} is signed with a key that is not in [trust] public_keys", cure=_CURE)
        if _canonical(tree) != content:
            raise IntegrityError(f"{name} does not have the form that was signed", cure=_CURE)
        del tree["signature"]
        if not _is_valid(raw, str(signature.get("value")), _signed(role, tree)):
            raise IntegrityError(f"the signature of {name} is wrong", cure=_CURE)


def from_config(config: TrustConfig) -> Trust:
    """Raises ConfigError for a public key that is none, and for asking for signatures without a key to check them by."""
    keys = {}
    for text in config.public_keys:
        raw = _public(text)
        keys[hashlib.sha256(raw).hexdigest()[:16]] = raw
    required = bool(keys) if config.require_signature is None else config.require_signature
    if required and not keys:
        raise ConfigError("[trust] require_signature needs public_keys", cure="servicectl trust init")
    return Trust(keys, required, lambda: secret("SERVICECTL_TRUST_SIGNING_KEY", config.signing_key_file, "signing-key"))


def generate() -> tuple[bytes, str]:
    """A new key pair: the private key in PEM form, and the public one as the configuration writes it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, public_text(key)


def public_text(key: Ed25519PrivateKey) -> str:
    return _PREFIX + base64.b64encode(_raw(key)).decode()


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _public(text: str) -> bytes:
    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raw = b""
    if not text.startswith(_PREFIX) or len(raw) != 32:
        raise ConfigError(
            f"[trust] public_keys: {text!r} is not a public key", cure=f"write {_PREFIX}<base64, 32 bytes>"
        )
    return raw


def _is_valid(raw: bytes, value: str, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(value, validate=True), signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(role: Role, tree: Mapping[str, Any]) -> bytes:
    # The role keeps a signed manifest from being shown as a pointer.
    return f"servicectl {role} 1\n".encode() + _canonical(tree)


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(tree, order="sorted")
