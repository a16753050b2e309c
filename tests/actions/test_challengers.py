"""What a retrain asks before it begins: what its champion has survived, and whether its model could be served at all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parts.estate import Saved, Site, outcomes


def retrained(site: Site, **settings: str) -> dict[str, Any]:
    [job] = [job for job in site.run("--json", "retrain", "Churn", **settings).told["jobs"] if job["kind"] == "retrain"]
    verdict: dict[str, Any] = job["result"]["verdict"]
    return verdict


def test_each_challenger_that_a_champion_survived_makes_the_next_comparison_stricter(
    site: Site, published: Saved
) -> None:
    site.restore(published)
    not_compared = retrained(site, GATE_MIN_BLOCKS="500")
    first, second = retrained(site), retrained(site)
    replaced = retrained(site, GATE_MODE="always")
    after = retrained(site)

    assert [one["decision"] for one in (not_compared, first, second, replaced)] == [
        "INCONCLUSIVE", "REJECT", "REJECT", "PROMOTE",
    ]  # fmt: skip
    assert [one["alpha"] for one in (first, second, after)] == pytest.approx([0.05, 0.05 / 8, 0.05])
    assert "at alpha 0.0063 after 1 earlier challenger of this champion" in second["reason"]
    assert "earlier challenger" not in after["reason"]


BOOSTED = """
[models.Boosted]
label = "churned"
features = ["tenure", "usage"]
estimator = "xgboost.XGBClassifier"
params = { n_estimators = 5 }
"""


def test_a_model_that_service_b_has_no_library_for_is_refused_before_a_snapshot_is_taken(site: Site) -> None:
    site.configure(BOOSTED)
    ended = site.run("--json", "retrain", "Boosted", SERVING_LIBRARIES="[]")
    [job] = site.jobs()
    steps = [step["name"] for step in site.ok("jobs", "show", job["id"])["steps"]]

    assert ended.status == 1, ended
    assert (job["state"], steps) == ("FAILED", ["plan"])
    assert (
        "XGBClassifier (models.Boosted.estimator) needs xgboost, which Service B is not known to have" in ended.stdout
    )


def test_a_model_whose_library_is_not_installed_is_a_configuration_error(site: Site) -> None:
    site.configure(BOOSTED.replace("xgboost.XGBClassifier", "trainer:nobodys"))
    ended = site.run("--json", "retrain", "Boosted")

    assert ended.status == 78, ended
    assert "there is no trainer 'nobodys'; installed: none" in ended.stdout


def test_where_service_b_has_xgboost_its_model_is_published_and_answers(site: Site) -> None:
    from servicectl.estate.serving import ServingClient

    site.configure(BOOSTED)
    told = site.ok("retrain", "Boosted", SERVING_LIBRARIES='["xgboost"]')

    assert outcomes(told) == [("retrain", "promoted"), ("publish", "published")]
    with ServingClient(site.estate.serving.address, 20) as serving:
        assert serving.predict("Boosted", {"usage": 0.2, "tenure": 9}) == 1.0
