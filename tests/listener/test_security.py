from __future__ import annotations

from pathlib import Path

import pytest

from servicectl.config import ListenConfig
from servicectl.errors import ConfigError
from servicectl.listener.address import parsed
from servicectl.listener.security import Protection, protection
from tests.listener.certificates import Pair, authority, signed
from tests.listener.listening import Refused, listening

REMOTE = parsed("0.0.0.0:50054")
LOCAL = parsed("127.0.0.1:50054")
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    ours = authority(folder, "ours")
    return ours, signed(ours, folder, "server")


def tls(pairs: tuple[Pair, Pair], **more: str) -> ListenConfig:
    _, server = pairs
    return ListenConfig(tls_certificate=str(server.certificate), tls_key=str(server.key), **more)


def refusal(listen: ListenConfig, folder: Path, address: str = "0.0.0.0:50054") -> str:
    with pytest.raises(ConfigError) as caught:
        protection(listen, folder, parsed(address), insecure=False)
    return caught.value.message


def test_this_machine_alone_needs_neither_tls_nor_token(tmp_path: Path) -> None:
    for address in (LOCAL, parsed(f"unix:{tmp_path}/x.sock")):
        assert protection(ListenConfig(), tmp_path, address, insecure=False) == Protection()


def test_others_are_not_let_in_without_tls_and_a_check_of_the_caller(
    tmp_path: Path, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no TLS" in refusal(ListenConfig(), tmp_path)
    assert "no check of the caller" in refusal(ListenConfig(), tmp_path)
    assert "no check of the caller" in refusal(tls(pairs), tmp_path)
    monkeypatch.setenv("SERVICECTL_LISTEN_TOKEN", TOKEN)
    only_token = refusal(ListenConfig(), tmp_path)
    assert "no TLS" in only_token
    assert "check of the caller" not in only_token


def test_others_are_let_in_with_tls_and_client_certificates_or_a_token(
    tmp_path: Path, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pairs
    checked = protection(tls(pairs, client_ca=str(ours.certificate)), tmp_path, REMOTE, insecure=False)
    assert (checked.credentials is not None, checked.token) == (True, None)
    monkeypatch.setenv("SERVICECTL_LISTEN_TOKEN", TOKEN)
    with_token = protection(tls(pairs), tmp_path, REMOTE, insecure=False)
    assert (with_token.credentials is not None, with_token.token) == (True, TOKEN)
    assert TOKEN not in repr(with_token)


def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    ours, server = pairs
    half = ListenConfig(tls_certificate=str(server.certificate))
    other_key = ListenConfig(tls_certificate=str(server.certificate), tls_key=str(ours.key))
    absent = ListenConfig(tls_certificate="absent.pem", tls_key="absent.key")

    assert "go together" in refusal(half, tmp_path)
    assert "go together" in refusal(ListenConfig(client_ca=str(ours.certificate)), tmp_path, "127.0.0.1:1")
    assert "cannot be used" in refusal(other_key, tmp_path)
    assert f"{tmp_path}/absent.key cannot be read" in refusal(absent, tmp_path)
    assert "cannot be used" in refusal(tls(pairs, client_ca=str(server.key)), tmp_path)


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    _, server = pairs
    key = tmp_path / "open.key"
    key.write_bytes(server.key.read_bytes())
    key.chmod(0o644)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)

    assert "everybody on this machine may read" in refusal(
        ListenConfig(tls_certificate=str(server.certificate), tls_key="open.key"), tmp_path
    )
    assert "everybody on this machine may read" in refusal(tls(pairs, token_file="token"), tmp_path)


@pytest.mark.parametrize("token", ["", "short", "0123456789abcdef\n0123456789abcdef", "é" * 20])
def test_a_token_that_is_too_short_or_cannot_be_sent_is_refused(tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(0o600)

    assert "at least 16 printable ASCII" in refusal(ListenConfig(token_file="token"), tmp_path, "127.0.0.1:1")


def test_an_open_door_is_refused_by_the_command_and_insecure_says_what_is_lacking(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match="can be reached from other machines") as caught,
        listening(tmp_path, address="0.0.0.0:0"),
    ):
        pass
    assert caught.value.status == 78

    with listening(tmp_path, "--insecure", address="0.0.0.0:0", env={"JOURNAL_STREAM": "1:1"}) as listener:
        [loud] = [line for line in listener.stderr.splitlines() if "--insecure" in line]
        assert listener.trigger("drift-check")

    assert loud.startswith("<1>--insecure: listening on 0.0.0.0:0 with no TLS")
    assert "everybody who reaches it may start jobs" in loud
