"""`servicectl.toml`: read once, checked whole, frozen.

Search order: `--config`, `$SERVICECTL_CONFIG`, `$XDG_CONFIG_HOME/servicectl/servicectl.toml`,
`/etc/servicectl/servicectl.toml`. `SERVICECTL_<SECTION>_<KEY>` overrides one value of a section.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from servicectl.config_lines import line_of
from servicectl.config_schedules import SchedulesConfig
from servicectl.errors import ConfigError, UsageError

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=1)]
Trigger = Literal["drift", "decay", "drift-and-decay"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]


class StateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    folder: str | None = None  # unset: $STATE_DIRECTORY, else $XDG_STATE_HOME/servicectl


class RedisConfig(Struct, frozen=True, forbid_unknown_fields=True):
    url: str = "redis://localhost:6379/0"
    password_file: str | None = None  # or $SERVICECTL_REDIS_PASSWORD, or the systemd credential "redis-password"
    timeout_s: Positive = 30.0  # the wait for one answer of Redis about what is served


class HandlerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    timeout_s: Positive = 30.0  # the wait for one answer
    statement_deadline_s: Positive = 60.0  # a change that has not run by then must not run at all
    clock_skew_s: Positive = 5.0  # the most the handler's clock may differ from ours
    snapshot_timeout_s: Positive = 3600.0  # the wait for one snapshot to be written
    snapshot_folder: str | None = None  # as we see it; unset: <state>/snapshots
    snapshot_folder_handler: str | None = None  # the same folder as the handler sees it


class AnalyticsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    source: Literal["service-c", "builtin", "both"] = "service-c"  # "both": the builtin decides, both are compared
    address: str = "localhost:50053"
    deadline_base_s: Positive = 30.0
    deadline_per_feature_s: Positive = 2.0  # the call's time grows with models x features


class ServingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    address: str = "localhost:50052"
    canary: Literal["require", "try", "off"] = "require"  # "try": an unreachable Service B is noted, not an error
    timeout_s: Positive = 20.0
    max_mb: Positive = 100.0
    scikit_learn: str | None = None  # Service B's version, if known
    libraries: tuple[str, ...] = ()  # what Service B has beyond scikit-learn, e.g. "xgboost"
    mismatch: Literal["refuse", "warn"] = "refuse"  # another scikit-learn, or a library that Service B lacks


class ArtifactsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""  # file:///folder or azure://container; unset: <state>/artifacts
    connection_string_file: str | None = None  # or $AZURE_STORAGE_CONNECTION_STRING


class TrustConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose models are believed. Nothing of this ever comes from an artifact."""

    signing_key_file: str | None = (
        None  # PEM; or $SERVICECTL_TRUST_SIGNING_KEY, or the systemd credential "signing-key"
    )
    public_keys: tuple[str, ...] = ()  # "ed25519:<base64>"
    require_signature: bool | None = None  # unset: as soon as there is a public key
    allowed_modules: tuple[str, ...] = ()  # what a pickle may name beyond a scikit-learn model's own
    require_confinement: bool = False  # refuse a model whose trial load the kernel does not wall in


class DriftConfig(Struct, frozen=True, forbid_unknown_fields=True):
    min_rows: Count = 20_000  # below it Service C's CRITICAL is noise more often than not
    effect_floor_psi: Positive = 0.25  # Service C's CRITICAL counts above it
    retrain: Literal["now", "queue", "never"] = "now"
    # e.g. "2d": newest rows older than this are broken data. Unset or "auto": where nothing has come for half of the
    # time that a feature's rows cover (a week at least, 100 days at most), PASS is NOT_MEASURED. "never": neither.
    stale_after: str | None = None
    looks_drifted: Count = 1  # scheduled looks in a row, each with newer rows, that Service C must call CRITICAL
    trigger: Trigger = "drift"  # what retrains: drifted rows, a champion that lost its score, or both together
    retrain_on: tuple[Literal["features", "label", "prediction"], ...] = ("features",)  # what counts as drifted rows
    beside: tuple[Literal["decay", "label", "prediction"], ...] | None = (
        None  # measured besides features; unset: as told
    )
    effect_floor_decay: Share = 0.05  # of its score at publish, that a champion must have lost
    # The builtin statistics:
    file: str | None = None  # .duckdb or .parquet, read in place of the handler's tables
    reference: Literal["auto", "window"] = "auto"  # "auto": the model's own training sample, where one was kept
    min_window_rows: Count = 100
    false_alarms: Share = 0.01  # the chance of any CRITICAL in a check at which nothing has drifted
    effect_floor_ks: Share = 0.1
    effect_floor_share: Share = 0.07  # of one category's share
    parts: Count = 1  # disjoint pieces of the newest window ...
    parts_drifted: Count = 1  # ... of which so many must show the shift
    # How often drift may retrain a model; the first retrain of an episode never waits:
    debounce: str = "10m"  # not twice within it, whatever the cause
    cooldown: str = "6h"  # not twice within it for one cause
    breaker_rejections: Count = 3  # so many challengers rejected in a row for one cause, and there is a rest ...
    breaker_rest: str = "7d"  # ... of this length, then one more try
    training_minutes_per_day: Positive | None = None


class AlarmConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where alarms go beside the journal. An address may hold a secret; what is a secret is never logged."""

    reminder: str | None = None  # e.g. "1d": a CRITICAL that stands and was not acknowledged is told again
    command: tuple[str, ...] = ()  # started once per alarm, with the alarm as JSON on stdin
    webhook: str | None = None  # POST of the alarm as JSON
    webhook_secret_file: str | None = None  # or $SERVICECTL_WEBHOOK_SECRET, or the systemd credential "webhook-secret"
    apprise_urls_file: str | None = None  # or $SERVICECTL_APPRISE_URLS, or "apprise-urls"; one per line
    timeout_s: Positive = 10.0


class GateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["judge", "always"] = "judge"
    alpha: Share = 0.05
    min_improvement: Annotated[float, Meta(ge=0)] = 0.0
    min_blocks: Annotated[int, Meta(ge=2)] = 15
    slices: dict[str, str] = {}  # name -> condition on a feature; of the models that have it, none may get worse there
    slice_margin: Annotated[float, Meta(ge=0)] = 0.02  # by more than this, in units of the main metric
    max_predict_ms: Positive | None = None  # processor time of one prediction


class TrainingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    heldout_fraction: Share = 0.2
    heldout_rows: Count = 1_000_000  # at most; the older ones are trained on
    embargo: str = "0d"  # rows this close before the held-out slice are in neither part (the label delay)
    seed: int = 0
    threads: Count = 1
    max_rows: Count | None = None
    sample: Literal["newest", "seeded"] = "newest"
    memory_mb: Count | None = None
    passes: Count | None = None  # over the rows, when training in blocks; unset: 3, more for few rows
    serving_first: bool = False  # pause between blocks while the machine is busy (/proc/pressure)


class JobsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    max_attempts: Count = 5
    retry_base_s: Positive = 60.0
    retry_cap_s: Positive = 3600.0
    lock_wait_s: Positive = 60.0  # the longest wait for the job store's own lock
    keep_days: Count = 365


class ListenConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses that other machines reach need TLS with client certificates or a token."""

    address: str = "127.0.0.1:50054"  # or unix:/path
    max_jobs: Count = 2  # processes at a time; further jobs wait
    max_calls: Count = 100  # at a time, and in one burst
    calls_per_second: Positive = 20.0
    tls_certificate: str | None = None  # PEM, with its chain
    tls_key: str | None = None
    client_ca: str | None = None  # PEM: only clients with a certificate of this authority are let in
    token_file: str | None = None  # or $SERVICECTL_LISTEN_TOKEN, or the systemd credential "listen-token"


class SourceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where training rows come from, always read by the handler.

    long: (entity_id, feature_name, value, event_timestamp) rows, joined as of each label's time.
    wide: one row per event, columns by name. sql: a SELECT with entity_id, event_timestamp, label and features.
    """

    kind: Literal["long", "wide", "sql"] = "long"
    table: str = "features_table"
    query: str | None = None
    entity_column: str = "entity_id"
    time_column: str = "event_timestamp"


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    label: str
    features: Annotated[tuple[str, ...], Meta(min_length=1)]
    task: Literal["classification", "regression"] = "classification"
    estimator: str | None = None  # "module.Class" or "trainer:NAME"; unset: LogisticRegression / Ridge, by task
    params: dict[str, Any] = {}
    categorical: tuple[str, ...] = ()  # one-hot encoded; the others are numbers
    feature_types: dict[str, Literal["float", "int", "string"]] = {}  # as told to the gateway; default float
    metric: str | None = None  # unset: f1_macro / r2, by task
    window: str | None = None  # e.g. "90d": only the newest rows; "auto": all, 60, 30 or 10 %, whichever does best
    training: Literal["auto", "memory", "streaming"] = "auto"  # auto: in memory if the estimate fits, else in blocks
    floors: dict[str, float] = {}  # metric -> least value of any model, e.g. {f1_macro = 0.6}
    trigger: Trigger | None = None  # unset: [drift] trigger
    source: SourceConfig = SourceConfig()


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    state: StateConfig = StateConfig()
    redis: RedisConfig = RedisConfig()
    handler: HandlerConfig = HandlerConfig()
    analytics: AnalyticsConfig = AnalyticsConfig()
    serving: ServingConfig = ServingConfig()
    artifacts: ArtifactsConfig = ArtifactsConfig()
    trust: TrustConfig = TrustConfig()
    drift: DriftConfig = DriftConfig()
    alarms: AlarmConfig = AlarmConfig()
    gate: GateConfig = GateConfig()
    training: TrainingConfig = TrainingConfig()
    jobs: JobsConfig = JobsConfig()
    listen: ListenConfig = ListenConfig()
    schedules: SchedulesConfig = SchedulesConfig()
    models: dict[Name, ModelConfig] = {}
    path: str | None = None  # where it was read from; set by load()

    def model(self, model_id: str) -> ModelConfig:
        """The section of one model. Raises UsageError for an unknown one."""
        if model_id in self.models:
            return self.models[model_id]
        known = ", ".join(sorted(self.models)) or "none"
        raise UsageError(
            f"{self.path or 'the configuration'} has no model {model_id!r}; it knows: {known}",
            cure=f"add a section [models.{model_id}]",
        )

    @property
    def state_folder(self) -> Path:
        """Where jobs, locks and work files live."""
        chosen = self.state.folder or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        if chosen:
            return self._folder(chosen)
        home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(home).expanduser() / "servicectl"

    @property
    def artifacts_url(self) -> str:
        return self.artifacts.url or f"file://{self.state_folder / 'artifacts'}"

    @property
    def snapshot_folder(self) -> Path:
        """The folder of parquet snapshots as this machine sees it."""
        chosen = self.handler.snapshot_folder
        return self._folder(chosen) if chosen else self.state_folder / "snapshots"

    @property
    def snapshot_folder_handler(self) -> str:
        """The same folder as the handler sees it."""
        return self.handler.snapshot_folder_handler or str(self.snapshot_folder)

    def _folder(self, text: str) -> Path:
        """Relative to the configuration file: cron, systemd and a shell run in different folders."""
        here = Path(self.path).absolute().parent if self.path else Path.cwd()
        return here / Path(text).expanduser()


def secret(variable: str, file: str | None, credential: str) -> str | None:
    """A secret from the environment, a file, or a systemd credential, in this order; None if nowhere."""
    if value := os.environ.get(variable):
        return value
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    for candidate in (Path(file).expanduser() if file else None, Path(folder) / credential if folder else None):
        if candidate is None:
            continue
        try:
            return candidate.read_text().strip()
        except FileNotFoundError:
            if file and candidate == Path(file).expanduser():
                raise ConfigError(f"the secret file {candidate} does not exist", cure=f"or set {variable}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the secret file {candidate} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}",
                cure=f"let this user read it, or set {variable}",
            ) from None
    return None


def seconds(duration: str, key: str) -> float:
    """Given "90d", "36h", "15m" or "20s", the number of seconds. Raises ConfigError naming the key."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([dhms])\s*", duration)
    if match is None:
        raise ConfigError(
            f"{key}: {duration!r} is not a length of time", cure='write it like "30d", "12h", "15m" or "20s"'
        )
    return float(match.group(1)) * {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}[match.group(2)]


def search_path(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The places a configuration is looked for when none is named."""
    home = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return [Path(home).expanduser() / "servicectl/servicectl.toml", Path("/etc/servicectl/servicectl.toml")]


def find(explicit: str | None) -> Path:
    """The configuration file to use. Raises ConfigError if there is none."""
    named = explicit or os.environ.get("SERVICECTL_CONFIG")
    if named:
        if _is_file(Path(named).expanduser()):
            return Path(named).expanduser().resolve()
        raise ConfigError(
            f"there is no configuration file {named}",
            cure=f"servicectl init {named}  writes a commented one",
        )
    places = search_path()
    for place in places:
        if _is_file(place):
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"no configuration found (looked at {looked})", cure="servicectl init  writes a commented one")


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be read: {error.strerror}", cure="run as a user who may, or name another with --config"
        ) from None


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check one file. Raises ConfigError with file, line, key and what was expected."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", cure="correct the TOML there") from None
    if "path" in tree:
        raise ConfigError(f"{path}:{line_of(text, ['path'])}: unknown key 'path'", cure="remove it")
    overridden = _override(tree, environment)
    models = tree.pop("models", {})
    if not isinstance(models, dict):
        raise ConfigError(f"{path}:{line_of(text, ['models'])}: models: expected one section [models.NAME] per model")
    checked: dict[str, ModelConfig] = {}
    at: list[str] = []
    try:
        for name, section in models.items():
            at = ["models", name]
            msgspec.convert(name, Name)
            checked[name] = msgspec.convert(section, ModelConfig)
        at = []
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise _explained(path, text, str(error), at, overridden) from None
    if config.drift.parts_drifted > config.drift.parts:
        raise ConfigError(
            f"{path}:{line_of(text, ['drift', 'parts_drifted'])}: drift.parts_drifted: {config.drift.parts_drifted} of "
            f"{config.drift.parts} parts can never show a shift",
            cure="set drift.parts to as many or more",
        )
    return msgspec.structs.replace(config, models=checked, path=str(path))


def _override(tree: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    applied: list[str] = []
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for variable, value in environment.items():
        section, _, key = variable.removeprefix("SERVICECTL_").lower().partition("_")
        kind = sections.get(section)
        if (
            not variable.startswith("SERVICECTL_")
            or not key
            or not (isinstance(kind, type) and issubclass(kind, Struct))
        ):
            continue
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        if key in fields and isinstance(tree.setdefault(section, {}), dict):
            text = fields[key].type in (str, str | None)
            tree[section][fields[key].encode_name] = value if text else _scalar(value)
            applied.append(variable)
    return applied


def _scalar(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explained(path: Path, text: str, problem: str, at: list[str], overridden: list[str]) -> ConfigError:
    what, _, where = problem.partition(" - at `")
    keys = at + [key for key in re.split(r"[.\[\]]+", where.rstrip("`").removeprefix("$")) if key and key != "..."]
    unknown = re.search(r"unknown field `([^`]+)`", what) or re.search(r"required field `([^`]+)`", what)
    if unknown and "unknown" in what:
        keys.append(unknown.group(1))
    variable = "SERVICECTL_" + "_".join(keys).upper()
    place = variable if variable in overridden else f"{path}:{line_of(text, keys)}"
    return ConfigError(f"{place}: {'.'.join(keys) or 'the file'}: {what}", cure="correct that value")
