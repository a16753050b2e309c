"""Everything an action may touch, made when first used: one object per outside party, from one configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl.clock import SYSTEM, Clock
from servicectl.config import Config, secret
from servicectl.jobs.runner import Retries, Runner

if TYPE_CHECKING:
    from servicectl.estate.alarms import Alarms
    from servicectl.estate.analytics import AnalyticsClient
    from servicectl.estate.artifacts.protocol import ArtifactStore
    from servicectl.estate.queue import HandlerQueue
    from servicectl.estate.registry import Registry
    from servicectl.estate.serving import ServingClient
    from servicectl.estate.serving_keys import ServingKeys
    from servicectl.estate.trust import Trust


@dataclass(frozen=True)
class World:
    config: Config
    clock: Clock = field(default=SYSTEM)
    trigger: str = "operator"

    @cached_property
    def runner(self) -> Runner:
        from servicectl.actions.kinds import kinds

        jobs = self.config.jobs
        return Runner(
            self.config.state_folder,
            kinds(self),
            retries=Retries(jobs.max_attempts, jobs.retry_base_s, jobs.retry_cap_s),
            clock=self.clock,
            lock_wait_s=jobs.lock_wait_s,
        )

    @cached_property
    def queue(self) -> HandlerQueue:
        from servicectl.estate.queue import HandlerQueue

        handler = self.config.handler
        return HandlerQueue(
            self.config.redis.url,
            password=self._redis_password,
            timeout_s=handler.timeout_s,
            statement_deadline_s=handler.statement_deadline_s,
            clock_skew_s=handler.clock_skew_s,
            clock=self.clock,
        )

    @cached_property
    def registry(self) -> Registry:
        from servicectl.estate.registry import Registry

        return Registry(self.queue)

    @cached_property
    def keys(self) -> ServingKeys:
        from servicectl.estate.serving_keys import ServingKeys

        return ServingKeys(self.config.redis.url, self._redis_password, timeout_s=self.config.redis.timeout_s)

    @cached_property
    def analytics(self) -> AnalyticsClient:
        from servicectl.estate.analytics import AnalyticsClient

        return AnalyticsClient(self.config.analytics.address)

    @cached_property
    def serving(self) -> ServingClient:
        from servicectl.estate.serving import ServingClient

        return ServingClient(self.config.serving.address, self.config.serving.timeout_s)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        from servicectl.estate.artifacts import open_store

        file = self.config.artifacts.connection_string_file
        connection = secret("AZURE_STORAGE_CONNECTION_STRING", file, "azure-connection-string")
        return open_store(self.config.artifacts_url, connection)

    @cached_property
    def trust(self) -> Trust:
        from servicectl.estate.trust import from_config

        return from_config(self.config.trust)

    @cached_property
    def alarms(self) -> Alarms:
        from servicectl.estate.alarms import Alarms
        from servicectl.store import Store

        store = Store(self.config.state_folder, clock=self.clock, lock_wait_s=self.config.jobs.lock_wait_s)
        return Alarms(store, self.clock)

    @cached_property
    def _redis_password(self) -> str | None:
        return secret("SERVICECTL_REDIS_PASSWORD", self.config.redis.password_file, "redis-password")

    def located(self, stored_path: str) -> Path:
        """A stored product path, which is relative to the state folder unless it lies outside it."""
        return self.config.state_folder / stored_path
