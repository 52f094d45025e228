-- What the fleet's store holds. `{ID}` and `{WITHOUT_ROWID}` are replaced by what the database calls them.
-- Times are microseconds since 1970, UTC. Documents are JSON as text.

CREATE TABLE devices (
  id {ID},
  site TEXT NOT NULL,
  device TEXT NOT NULL,
  first_seen BIGINT NOT NULL,
  UNIQUE (site, device)
);

-- Apart from `devices`, so that what is written all the time is narrow.
CREATE TABLE device_seen (
  device_id BIGINT PRIMARY KEY,
  last_seen BIGINT NOT NULL
);

CREATE TABLE device_status (
  device_id BIGINT PRIMARY KEY,
  status TEXT NOT NULL,
  reason TEXT,
  since BIGINT,
  boot TEXT NOT NULL,
  received BIGINT NOT NULL
);

CREATE TABLE device_info (
  device_id BIGINT PRIMARY KEY,
  version TEXT NOT NULL,
  board TEXT,
  camera TEXT,
  body TEXT NOT NULL,
  received BIGINT NOT NULL
);

CREATE TABLE device_tags (
  device_id BIGINT NOT NULL,
  tag TEXT NOT NULL,
  PRIMARY KEY (device_id, tag)
);
CREATE INDEX device_tags_tag ON device_tags (tag);

-- A run of a device's process. Events with a lower seq than `kept_from` were removed by the retention.
CREATE TABLE boots (
  id {ID},
  device_id BIGINT NOT NULL,
  boot TEXT NOT NULL,
  first_received BIGINT NOT NULL,
  kept_from BIGINT NOT NULL DEFAULT 0,
  UNIQUE (device_id, boot)
);

CREATE TABLE events (
  boot_id BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  device_id BIGINT NOT NULL,
  kind TEXT NOT NULL,
  time BIGINT NOT NULL,
  received BIGINT NOT NULL,
  emotion TEXT,
  latency_us BIGINT,
  historical BIGINT NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (boot_id, seq)
) {WITHOUT_ROWID};
CREATE INDEX events_time ON events (device_id, time);

-- How many events were new in each minute, by writer: pages ask for these numbers all the time, and writers must not wait for each other.
CREATE TABLE event_minutes (
  minute BIGINT NOT NULL,
  writer BIGINT NOT NULL,
  count BIGINT NOT NULL,
  PRIMARY KEY (minute, writer)
);

CREATE TABLE gaps (
  boot_id BIGINT NOT NULL,
  first_seq BIGINT NOT NULL,
  last_seq BIGINT NOT NULL,
  reason TEXT NOT NULL,
  count BIGINT NOT NULL,
  time BIGINT NOT NULL,
  received BIGINT NOT NULL,
  PRIMARY KEY (boot_id, first_seq, last_seq, reason)
);

CREATE TABLE telemetry (
  device_id BIGINT NOT NULL,
  time BIGINT NOT NULL,
  received BIGINT NOT NULL,
  analysis_mfps BIGINT,
  cpu_mpercent BIGINT,
  memory_bytes BIGINT,
  temperature_mcelsius BIGINT,
  people BIGINT,
  outbox_depth BIGINT NOT NULL,
  outbox_lost BIGINT NOT NULL
);
CREATE INDEX telemetry_received ON telemetry (device_id, received);

-- Messages on a device's topic that could not be read: acknowledged, and kept here to be looked at.
CREATE TABLE unreadable (
  id {ID},
  topic TEXT NOT NULL,
  reason TEXT NOT NULL,
  payload TEXT NOT NULL,
  received BIGINT NOT NULL
);

CREATE TABLE commands (
  id TEXT PRIMARY KEY,
  device_id BIGINT NOT NULL,
  name TEXT NOT NULL,
  payload TEXT NOT NULL,
  state TEXT NOT NULL,
  result TEXT,
  error_code TEXT,
  error_message TEXT,
  created BIGINT NOT NULL,
  not_after BIGINT NOT NULL,
  sent BIGINT,
  answered BIGINT,
  created_by TEXT NOT NULL
);
CREATE INDEX commands_open ON commands (state, not_after);
CREATE INDEX commands_device ON commands (device_id, created);

CREATE TABLE rollouts (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  command TEXT NOT NULL,
  args TEXT NOT NULL,
  target TEXT NOT NULL,
  plan TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT,
  wave BIGINT NOT NULL,
  settled BIGINT NOT NULL DEFAULT 0,
  created BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  updated BIGINT NOT NULL
);

CREATE TABLE rollout_devices (
  rollout_id TEXT NOT NULL,
  device_id BIGINT NOT NULL,
  wave BIGINT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT,
  command_id TEXT,
  begun BIGINT,
  ended BIGINT,
  PRIMARY KEY (rollout_id, device_id)
);

CREATE TABLE tokens (
  id {ID},
  name TEXT NOT NULL UNIQUE,
  role TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE,
  created BIGINT NOT NULL,
  revoked BIGINT
);

-- Every change that somebody made.
CREATE TABLE audit_log (
  id {ID},
  time BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL
);

-- Who does what only one process may do.
CREATE TABLE leases (
  name TEXT PRIMARY KEY,
  holder TEXT NOT NULL,
  until BIGINT NOT NULL
);

-- Processes that serve, with the MQTT session of each.
CREATE TABLE instances (
  name TEXT PRIMARY KEY,
  run TEXT NOT NULL,
  client_id TEXT NOT NULL,
  heartbeat BIGINT NOT NULL,
  adopter TEXT,
  adopted BIGINT
);
