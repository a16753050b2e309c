from __future__ import annotations

from tests.parts.estate import Saved, Site, outcomes


def test_a_first_model_is_published_to_every_store(either_site: Site, first_candidate: Saved) -> None:
    site = either_site
    site.restore(first_candidate)
    told = site.ok("publish", "Churn")
    assert outcomes(told) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version, pointer.name) == (1, "0.1.0", "Model_Churn/Model_Churn_0.1.0.pkl")
    blobs = site.blobs()
    assert set(blobs) == {
        f"Model_Churn/Model_Churn_{end}"
        for end in ("0.1.0.json", "0.1.0.manifest.json", "0.1.0.pkl", "Production.json", "Production.pkl")
    }
    assert blobs["Model_Churn/Model_Churn_Production.pkl"] == blobs["Model_Churn/Model_Churn_0.1.0.pkl"] == pointer.sha256
