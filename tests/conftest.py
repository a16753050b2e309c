from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.parts.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def _redis_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_part(_redis_of_the_session: RedisServer) -> RedisServer:
    """A running, empty Redis."""
    with _redis_of_the_session.client() as client:
        client.flushall()
    return _redis_of_the_session


def pytest_configure() -> None:
    """A run started in the background ignores SIGINT and hands that on: the commands under test must not inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
