-- A job store as servicectl 0.1.0 wrote it (schema version 1). Never edited: later releases must read it.
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
INSERT INTO schema_info VALUES (1);
INSERT INTO jobs (job_id, kind, step_schema, scope, request_id, spec, state, epoch, attempts, max_attempts, not_before,
    trigger, owner, cancel_requested, outcome, needs_operator, result, exit_status, created_at, updated_at, finished_at)
VALUES
    ('019aafd0-0000-7000-8000-0000000000a1', 'work', 1, 'a-scope', 'slot-1', '{"steps":["one","two"]}', 'COMPLETED', 1, 1, 3,
     '2026-11-01 03:00:00', 'timer', '{"boot_id":"b","host":"h","pid":7,"user":"u"}', false, 'done', false, '{"by":7}', 0,
     '2026-11-01 03:00:00', '2026-11-01 03:00:05', '2026-11-01 03:00:05'),
    ('019aafd0-0000-7000-8000-0000000000b2', 'work', 1, 'b-scope', NULL, '{"steps":["one","two"]}', 'RUNNING', 2, 2, 3,
     '2026-11-02 03:00:00', 'operator', '{"boot_id":"b","host":"h","pid":8,"user":"u"}', false, NULL, false, NULL, NULL,
     '2026-11-02 03:00:00', '2026-11-02 03:00:05', NULL);
INSERT INTO requests VALUES ('work', 'slot-1', '019aafd0-0000-7000-8000-0000000000a1');
INSERT INTO steps VALUES
    ('019aafd0-0000-7000-8000-0000000000a1', 1, 'one', 'COMPLETED', 1, 1, '2026-11-01 03:00:01', '2026-11-01 03:00:02',
     '{"name":"one","product":null}', NULL),
    ('019aafd0-0000-7000-8000-0000000000a1', 2, 'two', 'COMPLETED', 1, 1, '2026-11-01 03:00:02', '2026-11-01 03:00:04',
     '{"name":"two","product":null}', NULL),
    ('019aafd0-0000-7000-8000-0000000000b2', 1, 'one', 'COMPLETED', 1, 1, '2026-11-02 03:00:01', '2026-11-02 03:00:02',
     '{"name":"one","product":null}', NULL),
    ('019aafd0-0000-7000-8000-0000000000b2', 2, 'two', 'RUNNING', 2, 1, '2026-11-02 03:00:02', NULL, NULL, NULL);
INSERT INTO events VALUES
    ('019aafd0-0000-7000-8000-0000000000a1', 1, 0, 'submit', NULL, 'PENDING', 'by timer', '2026-11-01 03:00:00'),
    ('019aafd0-0000-7000-8000-0000000000a1', 2, 1, 'claim', 'PENDING', 'RUNNING', 'pid 7 on h', '2026-11-01 03:00:01'),
    ('019aafd0-0000-7000-8000-0000000000a1', 3, 1, 'complete', 'RUNNING', 'COMPLETED', 'done', '2026-11-01 03:00:05'),
    ('019aafd0-0000-7000-8000-0000000000b2', 1, 0, 'submit', NULL, 'PENDING', 'by operator', '2026-11-02 03:00:00'),
    ('019aafd0-0000-7000-8000-0000000000b2', 2, 1, 'claim', 'PENDING', 'RUNNING', 'pid 7 on h', '2026-11-02 03:00:01'),
    ('019aafd0-0000-7000-8000-0000000000b2', 3, 2, 'take_over', 'RUNNING', 'RUNNING', 'pid 8 on h', '2026-11-02 03:00:05');
INSERT INTO alarms VALUES
    ('019aafd0-0000-7000-8000-0000000000c3', 'Loan', 'income', 'raised', 'DRIFT', 'Loan: income drifts', NULL,
     '2026-11-01 03:00:05', NULL, NULL);
INSERT INTO deliveries VALUES
    ('019aafd0-0000-7000-8000-0000000000c3', 'mail', 1, '2026-11-01 03:00:06', '2026-11-01 03:00:06', NULL);
