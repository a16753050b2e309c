from __future__ import annotations

import json
from pathlib import Path

import pytest

from servicectl.config import TrustConfig
from servicectl.errors import ConfigError, IntegrityError
from servicectl.estate.trust import Trust, from_config, generate

DOCUMENT = b'{"b":[1,2.5,1e300],"a":"\xc3\xa9"}'


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    private, public = generate()
    (tmp_path / "key.pem").write_bytes(private)
    return str(tmp_path / "key.pem"), public


def both(pair: tuple[str, str], **more: bool) -> Trust:
    return from_config(TrustConfig(signing_key_file=pair[0], public_keys=(pair[1],), **more))


def test_what_was_sealed_is_believed_and_sealing_again_gives_the_same_bytes(pair: tuple[str, str]) -> None:
    trust = both(pair)
    sealed = trust.sealed("manifest", DOCUMENT)
    trust.verify("manifest", sealed, "m")
    assert trust.sealed("manifest", sealed) == sealed
    assert json.loads(sealed)["signature"]["algorithm"] == "ed25519"


def test_every_changed_byte_is_noticed(pair: tuple[str, str]) -> None:
    trust = both(pair)
    sealed = trust.sealed("manifest", DOCUMENT)
    believed = []
    for place in range(len(sealed)):
        for changed in (
            sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :],
            sealed[:place] + sealed[place + 1 :],
        ):
            try:
                trust.verify("manifest", changed, "m")
                believed.append(changed)
            except IntegrityError:
                pass
    assert believed == []


@pytest.mark.parametrize(
    "form",
    [b" %s", b"%s\n", b'{"c":1,%s'],
    ids=["space before", "line feed behind", "a member twice or more"],
)
def test_another_form_of_the_same_document_is_refused(pair: tuple[str, str], form: bytes) -> None:
    trust = both(pair)
    sealed = trust.sealed("manifest", DOCUMENT)
    with pytest.raises(IntegrityError):
        trust.verify("manifest", form % (sealed[1:] if form.startswith(b"{") else sealed), "m")


def test_a_manifest_is_not_a_pointer(pair: tuple[str, str]) -> None:
    trust = both(pair)
    with pytest.raises(IntegrityError, match="signature of p is wrong"):
        trust.verify("pointer", trust.sealed("manifest", DOCUMENT), "p")


def test_a_foreign_key_is_refused_also_under_the_name_of_a_trusted_one(pair: tuple[str, str], tmp_path: Path) -> None:
    trust = both(pair)
    (tmp_path / "foreign.pem").write_bytes(generate()[0])
    foreign = from_config(TrustConfig(signing_key_file=str(tmp_path / "foreign.pem")))
    sealed = foreign.sealed("manifest", DOCUMENT)
    with pytest.raises(IntegrityError, match="not in"):
        trust.verify("manifest", sealed, "m")
    ours = json.loads(trust.sealed("manifest", DOCUMENT))["signature"]["key"]
    theirs = json.loads(sealed)["signature"]["key"]
    with pytest.raises(IntegrityError, match="wrong"):
        trust.verify("manifest", sealed.replace(theirs.encode(), ours.encode()), "m")


def test_a_missing_signature_is_refused_unless_the_configuration_says_otherwise(pair: tuple[str, str]) -> None:
    with pytest.raises(IntegrityError, match="not signed"):
        both(pair).verify("manifest", DOCUMENT, "m")
    both(pair, require_signature=False).verify("manifest", DOCUMENT, "m")
    keyless = from_config(TrustConfig())
    keyless.verify("manifest", DOCUMENT, "m")
    assert keyless.sealed("manifest", DOCUMENT) == DOCUMENT


def test_unusable_keys_are_told(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(ConfigError, match="not an unencrypted Ed25519 key"):
        from_config(TrustConfig(signing_key_file=str(tmp_path / "key.pem"))).sealed("manifest", b"{}")
    for text in ("ed25519:AAAA", "ed25519:???", "AAAA"):
        with pytest.raises(ConfigError, match="not a public key"):
            from_config(TrustConfig(public_keys=(text,)))
    with pytest.raises(ConfigError, match="needs public_keys"):
        from_config(TrustConfig(require_signature=True))
