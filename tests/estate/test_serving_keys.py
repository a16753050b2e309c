from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import redis

from servicectl.errors import BadAnswer, BadData, ConfigError, PartyUnavailable, UsageError
from servicectl.estate.serving_keys import Current, Projected, Projection, ServingKeys, candidate_name, candidate_sha256
from tests.parts import free_port
from tests.parts.redis import RedisServer


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def registry_row(**members: Any) -> dict[str, Any]:
    return {
        "model_id": "Loan",
        "artifact_type": "pkl",
        "version": "0.0.0",
        "trained_date": "2026-11-22",
        "model_drift_score": None,
        "status": "production",
        "azure_location": "Model_Loan/",
        "expected_features": [
            {"index": 0, "name": "age", "type": "float", "drift_score": None},
            {"index": 1, "name": "job", "type": "int", "drift_score": 0.125},
        ],
    } | members


def projection(generation: int = 1, content: bytes = b"model one", **members: Any) -> Projection:
    made = Projection(
        model_id="Loan",
        generation=generation,
        version=f"0.1.{generation}",
        sha256=digest(content),
        name=f"Model_Loan/Model_Loan_0.1.{generation}.pkl",
        job_id=f"job-{generation}",
        metadata=registry_row(),
        artifacts={"pkl": content},
    )
    return replace(made, **members)


@pytest.fixture
def keys(redis_part: RedisServer) -> Iterator[ServingKeys]:
    with ServingKeys(redis_part.url, None) as made:
        yield made


@pytest.fixture
def client(redis_part: RedisServer) -> Iterator[redis.Redis]:
    with redis_part.client() as made:
        yield made


def metadata(client: redis.Redis, model_id: str = "Loan") -> dict[str, Any]:
    return json.loads(client.get(f"model_metadata:{model_id}"))


def events(client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"event"]) for _, fields in client.xrange("model_events")]


# ---- projecting


def test_a_projection_writes_the_name_the_metadata_and_the_artifact(keys: ServingKeys, client: redis.Redis) -> None:
    outcome = keys.project(projection())

    assert outcome is Projected.WRITTEN
    assert client.smembers("prod_models") == {b"Loan"}
    assert client.get("model:Loan:pkl") == b"model one"
    assert client.ttl("model:Loan:pkl") == client.ttl("model_metadata:Loan") == -1
    assert metadata(client) == {
        "model_id": "Loan",
        "artifact_type": "pkl",
        "version": "0.1.1",
        "trained_date": "2026-11-22",
        "model_drift_score": 0.0,
        "status": "production",
        "azure_location": "Model_Loan/",
        "expected_features": [
            {"index": 0, "name": "age", "type": "float", "drift_score": 0.0},
            {"index": 1, "name": "job", "type": "int", "drift_score": 0.125},
        ],
        "generation": 1,
        "sha256": digest(b"model one"),
        "artifacts": {"pkl": digest(b"model one")},
    }


def test_the_event_says_what_to_load_and_what_to_drop(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(1))
    keys.project(projection(2, b"model two"))

    first, second = events(client)

    assert first == {
        "version": 1,
        "model": "Loan",
        "generation": 1,
        "load": {
            "version": "0.1.1",
            "sha256": digest(b"model one"),
            "name": "Model_Loan/Model_Loan_0.1.1.pkl",
        },
        "drop": None,
        "job": "job-1",
    }
    assert second["drop"] == {"version": "0.1.1", "sha256": digest(b"model one")}
    assert second["load"]["version"] == "0.1.2"


def test_the_event_is_published_as_well_after_the_keys_hold_the_new_model(
    keys: ServingKeys, client: redis.Redis
) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("model_events")
        listener.get_message(timeout=5)
        keys.project(projection())

        message = next(told for _ in range(50) if (told := listener.get_message(timeout=1)))

    assert json.loads(message["data"]) == events(client)[0]


def test_repeating_a_projection_changes_nothing_and_sends_no_second_event(
    keys: ServingKeys, client: redis.Redis
) -> None:
    keys.project(projection())
    before = client.mget("model_metadata:Loan", "model:Loan:pkl")

    assert keys.project(projection()) is Projected.UNCHANGED
    assert client.mget("model_metadata:Loan", "model:Loan:pkl") == before
    assert len(events(client)) == 1


def test_a_lower_generation_is_refused(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(5, b"new"))

    assert keys.project(projection(4, b"old")) is Projected.SUPERSEDED
    assert client.get("model:Loan:pkl") == b"new"
    assert metadata(client)["generation"] == 5
    assert len(events(client)) == 1


def test_a_rollback_is_a_higher_generation_of_an_older_version(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(1, b"one"))
    keys.project(projection(2, b"two"))

    assert keys.project(projection(3, b"one", version="0.1.1")) is Projected.WRITTEN
    assert client.get("model:Loan:pkl") == b"one"
    assert events(client)[-1]["drop"] == {"version": "0.1.2", "sha256": digest(b"two")}


def test_changed_metadata_alone_is_written_without_an_event(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection())

    assert keys.project(projection(metadata=registry_row(status="deprecated"))) is Projected.WRITTEN
    assert metadata(client)["status"] == "deprecated"
    assert len(events(client)) == 1


def test_a_higher_generation_of_the_same_content_sends_no_event(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(1))

    assert keys.project(projection(2, version="0.1.1")) is Projected.WRITTEN
    assert metadata(client)["generation"] == 2
    assert len(events(client)) == 1


@pytest.mark.parametrize("damage", ["model:Loan:pkl", "model_metadata:Loan", "prod_models"])
def test_a_key_that_got_lost_is_restored_and_announced(keys: ServingKeys, client: redis.Redis, damage: str) -> None:
    keys.project(projection())
    client.delete(damage)

    assert keys.project(projection()) is Projected.WRITTEN
    assert client.exists("model:Loan:pkl", "model_metadata:Loan", "prod_models") == 3
    assert keys.project(projection()) is Projected.UNCHANGED
    assert len(events(client)) == 2


def test_foreign_bytes_under_our_key_are_replaced(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection())
    client.set("model:Loan:pkl", b"model 0ne")

    assert keys.project(projection()) is Projected.WRITTEN
    assert client.get("model:Loan:pkl") == b"model one"


def test_an_incumbent_somebody_else_wrote_is_taken_over_and_named_in_the_drop(
    keys: ServingKeys, client: redis.Redis
) -> None:
    client.sadd("prod_models", "Loan")
    client.set("model_metadata:Loan", '{"model_id": "Loan", "version": "0.0.9", "model_drift_score": NaN}')
    client.set("model:Loan:pkl", b"theirs")

    assert keys.project(projection()) is Projected.WRITTEN
    assert events(client)[0]["drop"] == {"version": "0.0.9", "sha256": digest(b"theirs")}


def test_an_unchanged_incumbent_is_taken_over_without_an_event(keys: ServingKeys, client: redis.Redis) -> None:
    client.sadd("prod_models", "Loan")
    client.set("model_metadata:Loan", '{"model_id": "Loan", "version": "0.0.9"}')
    client.set("model:Loan:pkl", b"theirs")

    assert keys.project(projection(0, b"theirs", version="0.0.9")) is Projected.WRITTEN
    assert metadata(client)["sha256"] == digest(b"theirs")
    assert events(client) == []


def test_artifacts_of_other_extensions_go_and_other_models_stay(keys: ServingKeys, client: redis.Redis) -> None:
    client.mset({"model:Loan:joblib": b"x", "model:Loan:x:pkl": b"of Loan:x", "model:Loans:pkl": b"of Loans"})
    keys.project(projection(1, artifacts={"pkl": b"model one", "onnx": b"o"}))
    assert client.exists("model:Loan:joblib") == 0

    keys.project(projection(2, b"model two"))

    assert client.exists("model:Loan:onnx") == 0
    assert client.mget("model:Loan:x:pkl", "model:Loans:pkl") == [b"of Loan:x", b"of Loans"]


def test_names_with_pattern_characters_touch_only_their_own_keys(keys: ServingKeys, client: redis.Redis) -> None:
    client.set("model:Lx:joblib", b"another's")
    client.set("model:L[x]*:joblib", b"stale")

    keys.project(projection(model_id="L[x]*"))

    assert client.get("model:Lx:joblib") == b"another's"
    assert client.exists("model:L[x]*:joblib") == 0


# ---- what readers accept


def test_readers_never_meet_a_null_or_non_finite_score_or_a_fractional_index(
    keys: ServingKeys, client: redis.Redis
) -> None:
    features = [
        {"index": 0.0, "name": "age", "type": "float", "drift_score": math.nan},
        {"index": 1, "name": "job", "type": None, "drift_score": math.inf},
    ]
    row = registry_row(expected_features=features, model_drift_score=math.nan, trained_date="2026-11-22T00:00:00Z")
    keys.project(projection(metadata=row | {"created_at": "unknown to readers"}))

    text = client.get("model_metadata:Loan")

    assert b"NaN" not in text
    assert b"Infinity" not in text
    assert b"null" not in text
    assert b"created_at" not in text
    assert b'"index": 0,' in text
    assert metadata(client)["trained_date"] == "2026-11-22"


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"expected_features": []}, "expected_features"),
        ({"expected_features": None}, "expected_features"),
        ({"expected_features": '[{"index": 0}]'}, "expected_features"),
        ({"expected_features": ["age"]}, "expected_features"),
        ({"expected_features": [{"index": 0.5, "name": "age", "type": "float", "drift_score": 0}]}, "index"),
        ({"expected_features": [{"index": True, "name": "age", "type": "float", "drift_score": 0}]}, "index"),
        ({"expected_features": [{"index": 0, "name": None, "type": "float", "drift_score": 0}]}, "name"),
        ({"trained_date": "yesterday"}, "trained_date"),
        ({"trained_date": 20261122}, "trained_date"),
        ({"status": 1}, "status"),
    ],
)
def test_metadata_a_reader_would_refuse_is_refused_here(
    keys: ServingKeys, client: redis.Redis, members: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadData, match=named):
        keys.project(projection(metadata=registry_row(**members)))

    assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"sha256": digest(b"other")}, "does not have the digest"),
        ({"artifacts": {"onnx": b"model one"}}, "no artifact of its artifact_type"),
        ({"artifacts": {"pkl": b"model one", "a:b": b""}}, "extension"),
        ({"artifacts": {"pkl": bytes(512 << 20)}}, "512 MB"),
        ({"model_id": candidate_name("Loan", "0" * 64)}, "candidate"),
    ],
)
def test_artifacts_that_cannot_be_right_are_refused_before_anything_is_written(
    keys: ServingKeys, client: redis.Redis, members: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadData, match=told):
        keys.project(projection(**members))

    assert client.dbsize() == 0


# ---- races, lost answers, foreign types


def test_concurrent_projections_end_at_the_highest_generation_with_one_event_per_change(
    redis_part: RedisServer, client: redis.Redis
) -> None:
    def project(generation: int) -> Projected:
        with ServingKeys(redis_part.url) as mine:
            return mine.project(projection(generation, f"model {generation}".encode()))

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(project, [3, 1, 6, 2, 5, 4]))

    told = [event["generation"] for event in events(client)]
    assert metadata(client)["generation"] == 6
    assert client.get("model:Loan:pkl") == b"model 6"
    assert told == sorted(told)
    assert len(told) == outcomes.count(Projected.WRITTEN)
    for earlier, later in zip(events(client), events(client)[1:], strict=False):
        assert later["drop"]["sha256"] == earlier["load"]["sha256"]


def test_a_reader_never_sees_metadata_of_one_model_with_the_bytes_of_another(
    redis_part: RedisServer, client: redis.Redis
) -> None:
    done = threading.Event()

    def flip() -> None:
        with ServingKeys(redis_part.url) as mine:
            for generation in range(1, 60):
                mine.project(projection(generation, f"model {generation}".encode() * 500))
        done.set()

    seen = 0
    with ThreadPoolExecutor(1) as pool:
        flipping = pool.submit(flip)
        while not done.is_set() and not flipping.done():
            with client.pipeline(transaction=True) as pipe:
                stored, content = pipe.get("model_metadata:Loan").get("model:Loan:pkl").execute()
            if stored is not None:
                assert json.loads(stored)["sha256"] == digest(content)
                seen += 1
        flipping.result()
    assert seen


@contextmanager
def proxy(port: int, at: bytes, *, meanwhile: Callable[[], object] | None = None) -> Iterator[int]:
    """A Redis that is interfered with when a command first holds `at`.

    `meanwhile` runs before that command arrives; without one, the command arrives and the connection is cut, so that
    its answer is lost.
    """
    met = threading.Event()

    def carry(near: socket.socket, far: socket.socket) -> None:
        with near, far:
            while data := near.recv(1 << 16):
                if at in data and not met.is_set():
                    met.set()
                    if meanwhile is not None:
                        meanwhile()
                far.sendall(data)

    def carry_back(near: socket.socket, far: socket.socket) -> None:
        while data := far.recv(1 << 16):
            if met.is_set() and meanwhile is None:
                near.shutdown(socket.SHUT_RDWR)
                return
            near.sendall(data)

    def accept(listener: socket.socket) -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for target in (carry, carry_back):
                threading.Thread(target=_quietly, args=(target, near, far), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_quietly, args=(accept, listener), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    assert met.is_set()


def _quietly(target: Any, *arguments: Any) -> None:
    with suppress(OSError):  # the other side was cut: what this proxy is for
        target(*arguments)


def test_a_lost_answer_is_told_and_the_next_run_finds_its_work_done_once(
    redis_part: RedisServer, keys: ServingKeys, client: redis.Redis
) -> None:
    with (
        proxy(redis_part.port, at=b"EXEC") as port,
        ServingKeys(f"redis://127.0.0.1:{port}/0") as cut,
        pytest.raises(PartyUnavailable, match="Redis"),
    ):
        cut.project(projection())

    assert keys.project(projection()) is Projected.UNCHANGED
    assert len(events(client)) == 1


def test_a_higher_generation_that_comes_in_between_is_not_overwritten(
    redis_part: RedisServer, keys: ServingKeys, client: redis.Redis
) -> None:
    keys.project(projection(1, version="0.1.0"))

    def newer() -> Projected:
        return keys.project(projection(9, version="0.1.0"))  # the same content: only the metadata tells

    with (
        proxy(redis_part.port, at=b"MULTI", meanwhile=newer) as port,
        ServingKeys(f"redis://127.0.0.1:{port}/0") as slow,
    ):
        assert slow.project(projection(2, version="0.1.0")) is Projected.SUPERSEDED

    assert metadata(client)["generation"] == 9


def test_a_foreign_type_among_the_keys_is_told_and_nothing_is_half_written(
    keys: ServingKeys, client: redis.Redis
) -> None:
    client.set("model_events", "not a stream")

    with pytest.raises(BadAnswer, match="foreign type"):
        keys.project(projection())

    assert client.keys() == [b"model_events"]


def test_a_redis_that_is_down_is_named_with_a_cure() -> None:
    with ServingKeys(f"redis://127.0.0.1:{free_port()}/0") as absent, pytest.raises(PartyUnavailable) as caught:
        absent.project(projection())

    assert caught.value.party == "Redis"
    assert "redis.url" in caught.value.cure


def test_a_wrong_password_is_a_matter_of_configuration(redis_part: RedisServer) -> None:
    with ServingKeys(redis_part.url, "not-the-password") as keys, pytest.raises(ConfigError) as caught:
        keys.ping()

    assert "not-the-password" not in str(caught.value)


def test_a_url_that_is_none_is_a_matter_of_configuration() -> None:
    with ServingKeys("localhost:6379") as keys, pytest.raises(ConfigError, match=r"redis\.url"):
        keys.ping()


# ---- drift scores


def test_drift_scores_are_stored_for_the_generation_they_were_measured_on(
    keys: ServingKeys, client: redis.Redis
) -> None:
    keys.project(projection(2))

    assert keys.update_drift_scores("Loan", 2, {"age": 0.75, "unlisted": 1.0})
    assert [feature["drift_score"] for feature in metadata(client)["expected_features"]] == [0.75, 0.125]
    assert metadata(client)["generation"] == 2
    assert len(events(client)) == 1


def test_drift_scores_of_another_generation_or_model_are_not_written(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(2))
    before = client.get("model_metadata:Loan")

    assert not keys.update_drift_scores("Loan", 1, {"age": 0.75})
    assert not keys.update_drift_scores("Unknown", 1, {"age": 0.75})
    assert client.get("model_metadata:Loan") == before


def test_scores_of_metadata_from_before_servicectl_are_written_without_its_nan(
    keys: ServingKeys, client: redis.Redis
) -> None:
    client.set("model_metadata:Loan", '{"model_drift_score": NaN, "expected_features": [{"name": "age"}]}')

    assert keys.update_drift_scores("Loan", None, {"age": 0.75})
    assert metadata(client) == {"model_drift_score": 0.0, "expected_features": [{"name": "age", "drift_score": 0.75}]}


def test_a_score_that_is_not_finite_is_refused(keys: ServingKeys) -> None:
    keys.project(projection())

    with pytest.raises(BadData, match="age"):
        keys.update_drift_scores("Loan", 1, {"age": math.nan})


# ---- reading and withdrawing


def test_reading_tells_the_claim_and_the_bytes_apart(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection(3))
    client.set("model:Loan:pkl", b"tampered")

    assert keys.read("Loan") == Current(3, "0.1.3", digest(b"model one"), digest(b"tampered"))


def test_reading_knows_nothing_missing_and_foreign_apart(keys: ServingKeys, client: redis.Redis) -> None:
    client.set("model_metadata:Theirs", '{"version": "1.0.0", "generation": "many"}')
    client.set("model_metadata:Broken", "no JSON")
    client.set("model:Bare:pkl", b"bytes")

    assert keys.read("Absent") is None
    assert keys.read("Theirs") == Current(None, "1.0.0", None, None)
    assert keys.read("Broken") == Current(None, None, None, None)
    assert keys.read("Bare") == Current(None, None, None, digest(b"bytes"))


def test_withdrawn_models_leave_every_key_and_are_announced(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection())
    keys.project(projection(model_id="Stays", metadata=registry_row(model_id="Stays")))
    client.set("model:Loan:joblib", b"x")
    client.sadd("prod_models", b"\xff")
    assert keys.names() == {"Loan", "Stays", "\udcff"}

    keys.withdraw(["Loan", "\udcff"])
    keys.withdraw(["Loan"])
    keys.withdraw([])

    assert keys.names() == {"Stays"}
    assert sorted(client.keys()) == [b"model:Stays:pkl", b"model_events", b"model_metadata:Stays", b"prod_models"]
    [told] = [event for event in events(client) if event["load"] is None]
    assert (told["model"], told["generation"], told["drop"]["version"]) == ("Loan", 1, "0.1.1")


def test_an_empty_redis_is_told_from_one_that_serves(keys: ServingKeys, client: redis.Redis) -> None:
    client.set("entity-1:age", '{"val": 1}')
    assert keys.is_empty()

    keys.project(projection())

    assert not keys.is_empty()


# ---- candidates


def test_a_candidate_lives_for_a_while_under_a_name_of_its_own(keys: ServingKeys, client: redis.Redis) -> None:
    name = candidate_name("Loan", digest(b"new"))

    keys.put_candidate(name, b"new", ttl_s=90)

    assert name == f"Loan.candidate.{digest(b'new')}"
    assert candidate_sha256(name) == digest(b"new")
    assert client.get(f"model:{name}:pkl") == b"new"
    assert 80 < client.ttl(f"model:{name}:pkl") <= 90
    assert keys.names() == frozenset()

    keys.drop_candidate(name)
    keys.drop_candidate(name)
    assert client.dbsize() == 0


def test_a_candidate_under_a_name_that_is_not_its_digests_is_refused(keys: ServingKeys, client: redis.Redis) -> None:
    with pytest.raises(BadData, match="candidate"):
        keys.put_candidate(candidate_name("Loan", digest(b"new")), b"other", ttl_s=90)
    with pytest.raises(BadData, match="candidate"):
        keys.put_candidate("Loan", b"other", ttl_s=90)

    assert client.dbsize() == 0


def test_dropping_a_candidate_cannot_hit_production(keys: ServingKeys, client: redis.Redis) -> None:
    keys.project(projection())

    with pytest.raises(UsageError, match="Loan"):
        keys.drop_candidate("Loan")

    assert client.exists("model:Loan:pkl")
