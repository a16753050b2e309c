from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from servicectl._pb import myservice_pb2
from tests.parts import ROOT

GENERATED = ("myservice_pb2.py", "myservice_pb2.pyi", "myservice_pb2_grpc.py")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proto")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "pyi")]
    source = "proto/servicectl/_pb/myservice.proto"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *outputs, source], cwd=ROOT, check=True)
    return folder / "servicectl/_pb"


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_module_is_what_the_proto_file_generates(fresh: Path, name: str) -> None:
    assert (ROOT / "servicectl/_pb" / name).read_text() == (fresh / name).read_text()


def test_nothing_else_is_generated(fresh: Path) -> None:
    assert sorted(path.name for path in fresh.iterdir()) == sorted(GENERATED)


def test_messages_have_the_field_numbers_of_the_estate() -> None:
    messages = myservice_pb2.DESCRIPTOR.message_types_by_name
    wanted = ("InferenceRequest", "InferenceResponse", "DriftRequest", "DriftResponse", "ModelDriftResult")
    wanted += ("FeatureDriftMetric", "TriggerJobRequest", "TriggerJobResponse")

    numbers = {name: {field.name: field.number for field in messages[name].fields} for name in wanted}

    assert numbers == {
        "InferenceRequest": {"model_name": 1, "features": 2},
        "InferenceResponse": {"prediction": 1, "error_message": 2},
        "DriftRequest": {"model_id": 1},
        "DriftResponse": {"model_results": 1},
        "ModelDriftResult": {"model_id": 1, "drift_detected": 2, "feature_metrics": 3},
        "FeatureDriftMetric": {
            "feature_name": 1, "ks_stat": 2, "ks_p_value": 3, "psi": 4, "kl_divergence": 5, "status": 6
        },
        "TriggerJobRequest": {"job_name": 1},
        "TriggerJobResponse": {"success": 1, "job_id": 2},
    }  # fmt: skip


def test_services_have_the_wire_names_of_the_estate() -> None:
    services = myservice_pb2.DESCRIPTOR.services_by_name

    methods = {service.full_name: [method.name for method in service.methods] for service in services.values()}

    assert methods == {
        "myservice.PythonWorker": ["RunInference", "CalculateDrift", "TrainModel", "TransformFeatures"],
        "myservice.FeatureStore": ["UploadFile"],
        "myservice.ModelServing": ["Predict"],
        "myservice.JobScheduler": ["TriggerJob"],
    }


def test_a_drift_metric_has_the_bytes_the_estate_sends() -> None:
    sent = bytes.fromhex("0a0361676511000000000000e03f29000000000000d03f") + b"\x32\x08CRITICAL"

    metric = myservice_pb2.FeatureDriftMetric.FromString(sent)

    assert (metric.feature_name, metric.ks_stat, metric.kl_divergence, metric.status) == ("age", 0.5, 0.25, "CRITICAL")
