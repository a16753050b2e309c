"""The job store's tables, version by version.

A store of version n becomes one of version n + 1 by `MIGRATIONS[n]`; a new store is made by the first schema and then
every migration, so that the two are the same. Add a migration for every change and never edit one that was released.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST = """
CREATE TABLE jobs (
    job_id UUID PRIMARY KEY,
    kind VARCHAR NOT NULL,
    step_schema INTEGER NOT NULL,       -- version of the kind's steps; newer code migrates or parks older jobs
    scope VARCHAR NOT NULL,             -- mutual exclusion: one runner per scope
    request_id VARCHAR,                 -- the one it was made for; table requests has all
    spec VARCHAR NOT NULL,              -- JSON
    state VARCHAR NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    epoch INTEGER NOT NULL,             -- fencing token, +1 per claim
    attempts INTEGER NOT NULL,          -- budget spent; an interruption gives one back
    max_attempts INTEGER NOT NULL,
    not_before TIMESTAMP NOT NULL,
    parent_id UUID,
    trigger VARCHAR NOT NULL,
    owner VARCHAR,                      -- JSON: host, pid, boot id, user of the last claim
    cancel_requested BOOLEAN NOT NULL,
    outcome VARCHAR,
    needs_operator BOOLEAN NOT NULL,
    result VARCHAR,                     -- JSON
    exit_status INTEGER,
    error VARCHAR,
    cure VARCHAR,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP
);
CREATE TABLE requests (
    kind VARCHAR NOT NULL, request_id VARCHAR NOT NULL, job_id UUID NOT NULL,   -- every id a job was answered with
    PRIMARY KEY (kind, request_id)
);
CREATE TABLE steps (
    job_id UUID NOT NULL, seq INTEGER NOT NULL, name VARCHAR NOT NULL,
    state VARCHAR NOT NULL CHECK (state IN ('RUNNING', 'COMPLETED', 'FAILED', 'STALE')),
    epoch INTEGER NOT NULL, attempts INTEGER NOT NULL,
    started_at TIMESTAMP NOT NULL, finished_at TIMESTAMP, output VARCHAR, error VARCHAR,
    PRIMARY KEY (job_id, seq)
);
CREATE TABLE events (
    job_id UUID NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, edge VARCHAR NOT NULL,
    from_state VARCHAR, to_state VARCHAR NOT NULL, detail VARCHAR, happened_at TIMESTAMP NOT NULL,
    PRIMARY KEY (job_id, seq)
);
CREATE TABLE alarms (
    alarm_id UUID PRIMARY KEY, model_id VARCHAR NOT NULL, feature VARCHAR NOT NULL, change VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL, text VARCHAR NOT NULL, job_id UUID, raised_at TIMESTAMP NOT NULL,
    acknowledged_at TIMESTAMP, acknowledged_by VARCHAR
);
CREATE TABLE deliveries (               -- one row per alarm and sink that was tried
    alarm_id UUID NOT NULL, sink VARCHAR NOT NULL, attempts INTEGER NOT NULL, tried_at TIMESTAMP NOT NULL,
    delivered_at TIMESTAMP, error VARCHAR,
    PRIMARY KEY (alarm_id, sink)
);
CREATE TABLE schema_info (version INTEGER NOT NULL);
"""

MIGRATIONS: Mapping[int, str] = {
    1: """
CREATE TABLE slots (                    -- what became of each calendar slot of a schedule
    schedule VARCHAR NOT NULL, slot TIMESTAMP NOT NULL, decision VARCHAR NOT NULL, job_id UUID,
    decided_at TIMESTAMP NOT NULL,
    PRIMARY KEY (schedule, slot)
);
CREATE TABLE restores (                 -- jobs made after one begin above every epoch that was known before it
    restored_at TIMESTAMP NOT NULL, backup VARCHAR NOT NULL, epoch INTEGER NOT NULL
);
""",
}

SCHEMA_VERSION = 1 + len(MIGRATIONS)
