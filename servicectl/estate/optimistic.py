"""Optimistic transactions on the estate's Redis: WATCH, look, MULTI, change, EXEC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from servicectl.errors import BadAnswer, Busy, ConfigError, PartyUnavailable

if TYPE_CHECKING:
    import redis

PARTY = "Redis"
Pipe: TypeAlias = Any  # redis-py's Pipeline: its annotations leave out watch() and mix in the asynchronous answers

_ATTEMPTS = 20
_CONNECT_S = 5.0

Outcome = TypeVar("Outcome")


class OptimisticRedis:
    """A connection made when first used; nothing is ever repeated behind the caller's back."""

    def __init__(self, url: str, password: str | None, timeout_s: float) -> None:
        self._url = url
        self._password = password
        self._timeout_s = timeout_s

    @cached_property
    def client(self) -> redis.Redis:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            return redis.Redis.from_url(
                self._url,
                password=self._password,
                protocol=2,  # one answer shape over all supported client and server versions
                retry=Retry(NoBackoff(), 0),  # redis-py's own retries repeat a write whose answer was lost
                socket_timeout=self._timeout_s,
                socket_connect_timeout=min(self._timeout_s, _CONNECT_S),
                encoding_errors="surrogateescape",  # a foreign name that is not UTF-8 survives being read and removed
            )
        except ValueError as error:
            raise ConfigError(f"redis.url cannot be used: {error}", cure="write it as redis://host:6379/0") from None

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()
            del self.__dict__["client"]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say Redis' failures in the operator's words."""
        from redis import exceptions

        try:
            yield
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
            cure = "set the password in $SERVICECTL_REDIS_PASSWORD or redis.password_file; servicectl needs its ACL"
            raise ConfigError(f"Redis refuses us: {error}", cure=cure) from error
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            cure = "start Redis, or correct redis.url"
            raise PartyUnavailable(PARTY, str(error) or type(error).__name__, cure=cure) from error
        except exceptions.ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise BadAnswer(
                    f"a Redis key of the serving contract is of a foreign type: {error}",
                    cure="look with `redis-cli --scan` and `redis-cli type KEY`, and remove what is not the estate's",
                ) from error
            raise PartyUnavailable(PARTY, f"it refuses: {error}", cure="see its log and its memory limit") from error
        except exceptions.RedisError as error:
            raise PartyUnavailable(PARTY, str(error) or type(error).__name__, cure="servicectl doctor") from error

    def transaction(self, what: str, attempt: Callable[[Pipe], Outcome]) -> Outcome:
        """Given a function that watches, looks, and changes in one MULTI/EXEC, run it until nobody interfered.

        Raises Busy, naming `what`, when somebody always does.
        """
        from redis.exceptions import ConnectionError as Disconnected
        from redis.exceptions import TimeoutError as TimedOut
        from redis.exceptions import WatchError
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

        def once() -> Outcome:
            with self.client.pipeline(transaction=True) as pipe:
                try:
                    return attempt(pipe)
                except WatchError as error:
                    # redis-py words a broken connection as a WatchError too; another attempt would only wait again.
                    if isinstance(error.__context__, Disconnected | TimedOut):
                        raise error.__context__ from None
                    raise

        again = Retrying(
            retry=retry_if_exception_type(WatchError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random(0, 0.02),
            reraise=True,
        )
        with self.told():
            try:
                return again(once)
            except WatchError as error:
                raise Busy(f"the Redis keys of {what} keep changing", cure="find their other writer") from error
