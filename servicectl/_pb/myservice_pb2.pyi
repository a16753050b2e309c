from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferenceRequest(_message.Message):
    __slots__ = ("model_name", "features")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    features: _containers.ScalarMap[str, str]
    def __init__(self, model_name: _Optional[str] = ..., features: _Optional[_Mapping[str, str]] = ...) -> None: ...

class InferenceResponse(_message.Message):
    __slots__ = ("prediction", "error_message")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    prediction: float
    error_message: str
    def __init__(self, prediction: _Optional[float] = ..., error_message: _Optional[str] = ...) -> None: ...

class DriftRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class DriftResponse(_message.Message):
    __slots__ = ("model_results",)
    MODEL_RESULTS_FIELD_NUMBER: _ClassVar[int]
    model_results: _containers.RepeatedCompositeFieldContainer[ModelDriftResult]
    def __init__(self, model_results: _Optional[_Iterable[_Union[ModelDriftResult, _Mapping]]] = ...) -> None: ...

class ModelDriftResult(_message.Message):
    __slots__ = ("model_id", "drift_detected", "feature_metrics")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DRIFT_DETECTED_FIELD_NUMBER: _ClassVar[int]
    FEATURE_METRICS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    drift_detected: bool
    feature_metrics: _containers.RepeatedCompositeFieldContainer[FeatureDriftMetric]
    def __init__(self, model_id: _Optional[str] = ..., drift_detected: _Optional[bool] = ..., feature_metrics: _Optional[_Iterable[_Union[FeatureDriftMetric, _Mapping]]] = ...) -> None: ...

class FeatureDriftMetric(_message.Message):
    __slots__ = ("feature_name", "ks_stat", "ks_p_value", "psi", "kl_divergence", "status")
    FEATURE_NAME_FIELD_NUMBER: _ClassVar[int]
    KS_STAT_FIELD_NUMBER: _ClassVar[int]
    KS_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    PSI_FIELD_NUMBER: _ClassVar[int]
    KL_DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    feature_name: str
    ks_stat: float
    ks_p_value: float
    psi: float
    kl_divergence: float
    status: str
    def __init__(self, feature_name: _Optional[str] = ..., ks_stat: _Optional[float] = ..., ks_p_value: _Optional[float] = ..., psi: _Optional[float] = ..., kl_divergence: _Optional[float] = ..., status: _Optional[str] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("dataset_path", "model_type")
    DATASET_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    dataset_path: str
    model_type: str
    def __init__(self, dataset_path: _Optional[str] = ..., model_type: _Optional[str] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("success", "model_id", "accuracy")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    success: bool
    model_id: str
    accuracy: float
    def __init__(self, success: _Optional[bool] = ..., model_id: _Optional[str] = ..., accuracy: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("entity_id", "feature_name", "value", "timestamp")
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    entity_id: str
    feature_name: str
    value: float
    timestamp: str
    def __init__(self, entity_id: _Optional[str] = ..., feature_name: _Optional[str] = ..., value: _Optional[float] = ..., timestamp: _Optional[str] = ...) -> None: ...

class TransformRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class TransformResponse(_message.Message):
    __slots__ = ("features",)
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, features: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("content", "filename")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    filename: str
    def __init__(self, content: _Optional[bytes] = ..., filename: _Optional[str] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("success", "message")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    def __init__(self, success: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("entity_id", "feature_names")
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_NAMES_FIELD_NUMBER: _ClassVar[int]
    entity_id: str
    feature_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, entity_id: _Optional[str] = ..., feature_names: _Optional[_Iterable[str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("entity_id", "prediction", "model_version")
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    entity_id: str
    prediction: float
    model_version: str
    def __init__(self, entity_id: _Optional[str] = ..., prediction: _Optional[float] = ..., model_version: _Optional[str] = ...) -> None: ...

class TriggerJobRequest(_message.Message):
    __slots__ = ("job_name",)
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    job_name: str
    def __init__(self, job_name: _Optional[str] = ...) -> None: ...

class TriggerJobResponse(_message.Message):
    __slots__ = ("success", "job_id")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    success: bool
    job_id: str
    def __init__(self, success: _Optional[bool] = ..., job_id: _Optional[str] = ...) -> None: ...
