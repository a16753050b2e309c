from __future__ import annotations

from pathlib import Path

import pytest

from servicectl.errors import ConfigError
from servicectl.listener.address import parsed
from tests.listener.listening import Refused, listening


@pytest.mark.parametrize(
    ("address", "bindable"),
    [
        ("127.0.0.1:50054", "127.0.0.1:50054"),
        ("127.8.9.1:50054", "127.8.9.1:50054"),
        ("localhost:50054", "127.0.0.1:50054"),
        ("[::1]:50054", "[::1]:50054"),
        ("unix:/run/servicectl/listen.sock", "unix:/run/servicectl/listen.sock"),
        ("unix:///run/servicectl/listen.sock", "unix:/run/servicectl/listen.sock"),
    ],
)
def test_addresses_of_this_machine_alone_are_known_as_such(address: str, bindable: str) -> None:
    found = parsed(address)

    assert (found.bindable, found.remote) == (bindable, False)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:50054", "[::]:50054", "10.0.0.7:50054", "host.example:50054", "[::ffff:0.0.0.0]:1", "*:50054", "1:50054"],
)
def test_an_address_other_machines_may_reach_is_known_as_such(address: str) -> None:
    assert parsed(address).remote


@pytest.mark.parametrize(
    "address", ["", ":50054", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "dns:///localhost:1", "a b:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        parsed(address)


def test_a_folder_that_everybody_may_enter_is_no_place_for_the_socket(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)

    with (
        pytest.raises(Refused, match=r"everybody on this machine may enter .*\(mode 0755\)") as caught,
        listening(tmp_path, address=f"unix:{folder}/listen.sock"),
    ):
        pass

    assert caught.value.status == 78
    assert f"chmod 750 {folder}" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match=r"the folder .*/absent/run of the socket cannot be used"),
        listening(tmp_path, address=f"unix:{tmp_path}/absent/run/listen.sock"),
    ):
        pass


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="at most 107 bytes"), listening(tmp_path, address=f"unix:{tmp_path}/{'x' * 100}"):
        pass
