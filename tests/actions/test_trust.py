"""Attacks on the artifact store: each is refused, named, and never opened by anybody."""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servicectl.config import TrustConfig
from servicectl.estate.artifacts.pointer import decode
from servicectl.estate.trust import from_config, generate
from tests.actions.test_sync_production import Hostile, foreign_blob, incumbent, synced
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes

FOLDER = "Model_Churn/Model_Churn_"


def sign_with(site: Site, *, private: str = "signing.pem", extra: str = "") -> str:
    """Configure a key pair made by `trust init`; the configuration's section."""
    told = site.ok("trust", "init", str(site.folder / private))
    section = (
        f'[trust]\nsigning_key_file = "{told["signing_key_file"]}"\npublic_keys = ["{told["public_key"]}"]\n{extra}'
    )
    site.configure(MODELS + section)
    return section


def blob(site: Site, end: str) -> bytes:
    return site.store.read(FOLDER + end)[0]


def document(site: Site, end: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(blob(site, end))
    tree.pop("signature", None)
    return tree


def put(site: Site, end: str, tree: dict[str, Any]) -> bytes:
    content = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    foreign_blob(site, FOLDER + end, content)
    return content


def rewritten(site: Site, trace: Path, **manifest: Any) -> None:
    """All of a version changed to a hostile model, each digest made to fit: what a writer without our key can do."""
    content = pickle.dumps(Hostile(trace))
    digest = hashlib.sha256(content).hexdigest()
    for end in ("Production.pkl", "0.1.0.pkl"):
        foreign_blob(site, FOLDER + end, content)
    tree = document(site, "0.1.0.manifest.json") | manifest
    tree["model"] = {"sha256": digest, "bytes": len(content)}
    written = put(site, "0.1.0.manifest.json", tree)
    pointer = document(site, "Production.json")
    pointer["servicectl"] |= {
        "sha256": digest,
        "size": len(content),
        "manifest_sha256": hashlib.sha256(written).hexdigest(),
    }
    put(site, "Production.json", pointer)


def signed_by_a_stranger(site: Site, trace: Path) -> None:
    rewritten(site, trace)
    (site.folder / "stranger.pem").write_bytes(generate()[0])
    stranger = from_config(TrustConfig(signing_key_file=str(site.folder / "stranger.pem")))
    manifest = stranger.sealed("manifest", blob(site, "0.1.0.manifest.json"))
    foreign_blob(site, f"{FOLDER}0.1.0.manifest.json", manifest)
    pointer = document(site, "Production.json")
    pointer["servicectl"]["manifest_sha256"] = hashlib.sha256(manifest).hexdigest()
    foreign_blob(site, f"{FOLDER}Production.json", stranger.sealed("pointer", json.dumps(pointer).encode()))


def only_the_model(site: Site, trace: Path) -> None:
    for end in ("Production.pkl", "0.1.0.pkl"):
        foreign_blob(site, FOLDER + end, pickle.dumps(Hostile(trace)))


def only_model_and_manifest(site: Site, trace: Path) -> None:
    pointer = blob(site, "Production.json")
    rewritten(site, trace)
    foreign_blob(site, f"{FOLDER}Production.json", pointer)


def without_its_pointer(site: Site, trace: Path) -> None:
    foreign_blob(site, f"{FOLDER}Production.pkl", pickle.dumps(Hostile(trace)))
    name = f"{FOLDER}Production.json"
    found = site.store.stat(name)
    assert found is not None
    site.store.delete(name, found.etag)


ATTACKS: dict[str, tuple[Callable[[Site, Path], None], str]] = {
    "everything rewritten, unsigned": (rewritten, "is not signed"),
    "everything rewritten and signed by a stranger": (signed_by_a_stranger, "not in [trust] public_keys"),
    "the model's files swapped": (only_the_model, "has the digest on record"),
    "model and manifest swapped": (only_model_and_manifest, "has the digest on record"),
    "the pointer taken away": (without_its_pointer, "Model_Churn/ has "),
}


def refused(site: Site, trace: Path, said: str) -> None:
    """sync-production gives Service B nothing, retrain judges against nothing, and nobody has opened anything."""
    before = site.served()
    ended = site.run("--json", "sync-production")
    assert ended.status == 1, ended
    assert said in synced(ended.told)["failed"]["Churn"]
    assert site.served() == before
    site.run("--json", "retrain", "Churn", "--no-publish")
    assert not trace.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_signed_model_that_was_tampered_with_is_refused(
    site: Site, first_candidate: Saved, tmp_path: Path, attack: str
) -> None:
    trace = tmp_path / "opened"
    sign_with(site)
    site.restore(first_candidate)
    assert outcomes(site.ok("publish", "Churn")) == [("publish", "published")]
    change, said = ATTACKS[attack]
    change(site, trace)
    refused(site, trace, said)
    site.estate.client.flushall()
    refused(site, trace, said)
    assert site.served() is None


def test_an_artifact_cannot_bring_its_own_allow_list(either_site: Site, published: Saved, tmp_path: Path) -> None:
    site = either_site
    trace = tmp_path / "opened"
    site.restore(published)
    rewritten(site, trace, allowed_modules=["builtins"], trust={"allowed_modules": ["builtins"]})
    refused(site, trace, "names the built-in function exec, which is not allowed")


def test_a_pointer_from_before_is_not_followed_again(
    either_site: Site, second_candidate: Saved, tmp_path: Path
) -> None:
    site = either_site
    site.restore(second_candidate)
    old = {end: blob(site, end) for end in ("Production.json", "Production.pkl")}
    site.ok("publish", "Churn")
    for end, content in old.items():
        foreign_blob(site, FOLDER + end, content)
    tables = site.estate.tables()
    refused(site, tmp_path / "opened", "has generation 1, Redis was given 2")
    assert site.estate.tables() == tables


def test_an_upload_that_is_swapped_before_it_was_read_back_is_never_published(
    either_site: Site, second_candidate: Saved, tmp_path: Path
) -> None:
    site = either_site
    trace = tmp_path / "opened"
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/upload/effect")
    assert died.status == -signal.SIGKILL, died
    foreign_blob(site, f"{FOLDER}0.1.1.pkl", pickle.dumps(Hostile(trace)))
    before = site.served()
    ended = site.run("--json", "jobs", "resume")
    assert ended.status == 1, ended
    assert f"{FOLDER}0.1.1.pkl is already in the artifact store with other content" in ended.told["jobs"][0]["error"]
    assert site.served() == before
    assert not trace.exists()
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (1, "0.1.0")


def test_a_manifest_from_before_is_not_believed_again(site: Site, second_candidate: Saved, tmp_path: Path) -> None:
    site.restore(second_candidate)
    site.ok("publish", "Churn")
    foreign_blob(site, f"{FOLDER}0.1.1.manifest.json", blob(site, "0.1.0.manifest.json"))
    refused(site, tmp_path / "opened", "is not the manifest that was published")


def test_a_model_of_another_scikit_learn_is_neither_published_nor_served(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    ended = site.run("--json", "publish", "Churn", SERVING_SCIKIT_LEARN="1.0")
    assert ended.status == 1, ended
    assert "Service B has 1.0" in ended.told["jobs"][0]["error"]
    assert not any("0.1.1" in name for name in site.blobs())
    site.estate.client.flushall()
    ended = site.run("--json", "sync-production", SERVING_SCIKIT_LEARN="1.0")
    assert "Service B has 1.0" in synced(ended.told)["failed"]["Churn"]
    assert site.served() is None
    assert site.run("sync-production", SERVING_SCIKIT_LEARN="1").status == 0


def test_a_retrain_for_another_scikit_learn_is_refused_before_it_trains(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    ended = site.run("--json", "retrain", "Churn", SERVING_SCIKIT_LEARN="1.0")
    assert ended.status == 1, ended
    assert "would be trained with" in ended.told["jobs"][0]["error"]


def test_where_another_scikit_learn_is_only_warned_of_the_model_is_published(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    ended = site.run("publish", "Churn", SERVING_SCIKIT_LEARN="1.0", SERVING_MISMATCH="warn")
    assert ended.status == 0, ended
    assert "Service B has 1.0 (serving.mismatch = warn)" in ended.stderr


def test_a_signed_estate_publishes_syncs_adopts_and_retrains(
    either_site: Site, first_candidate: Saved, tmp_path: Path
) -> None:
    site = either_site
    sign_with(site)
    site.restore(first_candidate)
    assert [check["says"] for check in site.ok("doctor")["checks"] if check["party"] == "trust"] == [
        "signs with a trusted key; signatures are required"
    ]
    incumbent(site, "Churn", pickle.dumps(Hostile(tmp_path / "opened")))
    ended = site.run("--json", "sync-production")
    assert "no signed pointer" in synced(ended.told)["failed"]["Churn"]
    site.ok("artifacts", "adopt", "Churn")
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "written"}
    assert outcomes(site.ok("publish", "Churn")) == [("publish", "published")]
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "unchanged"}
    site.estate.rows(0, ALL_ROWS)
    assert outcomes(site.ok("retrain", "Churn"))[0][0] == "retrain"
    assert decode(blob(site, "Production.json"))[0] == site.pointer()


def test_a_machine_without_the_signing_key_verifies_and_cannot_publish(site: Site, second_candidate: Saved) -> None:
    sign_with(site)
    site.restore(second_candidate)
    (site.folder / "signing.pem").unlink()
    public = json.dumps([generate()[1]])
    site.configure(f"{MODELS}[trust]\npublic_keys = {public}\n")
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == 1, ended
    assert "is not signed" in ended.stderr + ended.stdout
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 1


def test_keyless_is_told_and_a_key_that_others_can_read_is_not_accepted(site: Site) -> None:
    def says() -> tuple[str, str]:
        [check] = [one for one in site.run("--json", "doctor").told["checks"] if one["party"] == "trust"]
        return check["health"], check["says"]

    assert says() == ("ok", "keyless: models are known by digest only, not by who made them")
    sign_with(site)
    (site.folder / "signing.pem").chmod(0o644)
    assert says()[0] == "failed"
