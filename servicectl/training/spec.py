"""What goes into the factory floor and what comes out: frozen values that travel as JSON.

Times are UTC: those that come out carry their zone, those that go in may be naive and are then taken to be UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from servicectl.errors import IntegrityError

Task = Literal["classification", "regression"]
Decision = Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]

DEFAULT_METRIC: dict[Task, str] = {"classification": "f1_macro", "regression": "r2"}
DEFAULT_ESTIMATOR: dict[Task, str] = {
    "classification": "sklearn.linear_model.LogisticRegression",
    "regression": "sklearn.linear_model.Ridge",
}


class TrainingSpec(Struct, frozen=True, kw_only=True):
    """One model's training, complete: the same spec and the same snapshot give the same bytes.

    `entity_column` and `time_column` are the names in the snapshot, not those in the source.
    """

    model_id: str
    task: Task = "classification"
    label: str
    features: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    estimator: str | None = None  # dotted path, or "trainer:NAME"; None: DEFAULT_ESTIMATOR
    params: dict[str, Any] = {}
    metric: str | None = None  # None: DEFAULT_METRIC
    heldout_fraction: float = 0.2
    heldout_rows: int = 1_000_000  # at most; older ones are trained on
    embargo_s: float = 0.0
    seed: int = 0
    threads: int = 1
    memory_mb: int | None = None
    window_s: float | None = None  # only rows this close to the newest one
    window_auto: bool = False  # the share of newest rows that does best on a validation slice before the held-out one
    max_rows: int | None = None
    sample: Literal["newest", "seeded"] = "newest"
    training: Literal["auto", "memory", "streaming"] = "auto"  # auto: in memory if the estimate fits
    passes: int | None = None  # over the rows, when streaming; None: 3, more for few rows
    serving_first: bool = False  # pause between blocks while the machine is busy
    entity_column: str = "entity_id"
    time_column: str = "event_timestamp"

    @property
    def main_metric(self) -> str:
        return self.metric or DEFAULT_METRIC[self.task]

    @property
    def estimator_path(self) -> str:
        return self.estimator or DEFAULT_ESTIMATOR[self.task]


class Source(Struct, frozen=True, kw_only=True):
    """Where rows come from, in the words of the feature store.

    long: (entity_id, feature_name, value, event_timestamp, created_at) rows, joined as of each label's time.
    wide: one row per event. sql: `query` is a SELECT that yields such rows.
    """

    kind: Literal["long", "wide", "sql"] = "long"
    table: str = "features_table"
    query: str | None = None
    entity_column: str = "entity_id"
    time_column: str = "event_timestamp"


class GateSpec(Struct, frozen=True, kw_only=True):
    """When a challenger may replace the champion.

    `min_improvement` is in units of the main metric, whichever way that metric points. `slices` must not be shown
    worse, each by more than `slice_margin`. `floors` maps a metric to
    the least value (the most, for mae, rmse and log_loss) of any model that is promoted, with a champion or without.
    `max_mb` is in 10^6 bytes.
    """

    mode: Literal["judge", "always"] = "judge"
    alpha: float = 0.05
    min_improvement: float = 0.0
    min_blocks: int = 15
    earlier_challengers: int = 0  # judged against this champion and not promoted; each makes the next test stricter
    slices: dict[str, str] = {}  # name -> condition on one feature, e.g. "age >= 60"
    slice_margin: float = 0.02  # how much worse a slice may be, in units of the main metric
    max_predict_ms: float | None = None  # for one row
    max_mb: float | None = None  # of the pickled model
    floors: dict[str, float] = {}


class ProductFile(Struct, frozen=True):
    """A file on this machine, known by its digest."""

    path: str
    sha256: str
    bytes: int


class SnapshotFacts(Struct, frozen=True, kw_only=True):
    """What one snapshot holds. `class_shares` maps each label (as text) to its share of rows."""

    rows: int
    bytes: int
    sha256: str
    first: datetime
    last: datetime
    columns: tuple[str, ...]
    types: dict[str, str] = {}  # of the columns, in DuckDB's words
    class_shares: dict[str, float] | None = None
    query: str | None = None


class CurvePoint(Struct, frozen=True):
    """The score (accuracy, R2) on a block before it was learnt, after `rows` rows; None: not a finite number."""

    passed: int
    rows: int
    score: float | None


class Trained(Struct, frozen=True, kw_only=True):
    """One fitted model with its baseline statistics, and the rows it has seen."""

    model: ProductFile
    baseline: ProductFile
    rows_trained: int
    trained_from: datetime
    trained_until: datetime
    heldout_from: datetime
    seconds: float
    libraries: dict[str, str]
    estimator: str
    label_codes: dict[str, int] | None = None  # what a served number means, where labels are text
    warnings: tuple[str, ...] = ()
    training: Literal["memory", "streaming"] = "memory"
    estimate_mb: int | None = None  # what training in memory was estimated to take
    passes: int | None = None
    curve: tuple[CurvePoint, ...] = ()
    window_share: float | None = None  # of the training rows, the newest; chosen by `window_auto`
    window_scores: dict[str, float] = {}  # the main metric of each share tried
    sample: ProductFile | None = None  # seeded raw training rows, Parquet


class Verdict(Struct, frozen=True, kw_only=True):
    """What the gate decided and on which evidence.

    `difference` is challenger against champion on the main metric, positive where the challenger is better, and
    `interval` holds its one-sided lower and upper bounds at `alpha`. None: nothing was there to compare with.
    `champion_rows_unknown`: nobody recorded which rows the champion learnt, so it may have learnt some of these.
    `heldout_capped`: the rows are the newest `heldout_rows` of a larger `heldout_fraction`.
    `telling`: some rows that the two answer differently, as held-out rows counted from the newest, which is 0.
    """

    decision: Decision
    reason: str
    metric: str
    challenger: dict[str, float]
    champion: dict[str, float] | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    blocks: int = 0
    rows: int = 0
    more_rows: int | None = None  # INCONCLUSIVE: about how many further held-out rows would decide
    alpha: float | None = None  # what the comparison was allowed, after earlier challengers
    slices: dict[str, tuple[float, float, float]] = {}  # difference and its bounds
    predict_ms: float | None = None
    champion_rows_unknown: bool = False
    entities: int = 0
    entity_groups: int = 0  # that the bounds allow for; 0: too few entities, or each row is one
    heldout_capped: bool = False
    telling: tuple[int, ...] = ()
    heldout_from: datetime | None = None
    heldout_until: datetime | None = None


class Decay(Struct, frozen=True, kw_only=True):
    """A model's main metric on the newest labelled rows against that on the rows it was published on.

    `difference` is now against before, negative where it has become worse; `high` its one-sided upper bound.
    `rows_before` 0: the rows of then are gone, and the figure on record stands in for them. `why_not`: why there is no
    measurement, or ""; then the figures say nothing.
    """

    metric: str
    rows_now: int = 0
    rows_before: int = 0
    now: float = 0.0
    before: float = 0.0
    difference: float = 0.0
    high: float = 0.0
    blocks: int = 0
    why_not: str = ""


class CanaryRow(Struct, frozen=True):
    """One request and the answer that the published model must give to it.

    `tells`: whether the model that it was judged against is known to answer otherwise; None: there was none.
    """

    features: dict[str, float | str | None]
    prediction: float
    tells: bool | None = None


class Servability(Struct, frozen=True, kw_only=True):
    """A model that Service B can serve. `confinement` names what the kernel enforced while it was unpickled."""

    canary: tuple[CanaryRow, ...]
    size_mb: float
    libraries_needed: tuple[str, ...]
    confinement: tuple[str, ...]


def naive(moment: datetime) -> datetime:
    """The UTC-naive form that snapshots hold."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def aware(moment: datetime) -> datetime:
    """The same moment with its zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def verified(product: ProductFile, role: str) -> bytes:
    """The bytes of a product file, read once and held against its digest. Raises IntegrityError.

    What was checked is what is used: callers never open the path a second time.
    """
    import hashlib
    from pathlib import Path

    try:
        content = Path(product.path).read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"the {role} {product.path} cannot be read: {error.strerror}", cure="fetch or train it again"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != product.sha256:
        raise IntegrityError(
            f"the {role} {product.path} has sha256 {found}, on record is {product.sha256}",
            cure="it was not opened; fetch or train it again",
        )
    return content


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")
