-- How far a roll-out is, and what has come since the leader last looked, without reading all of its devices.

-- How many devices of each wave are how far: changes with `rollout_devices`, in the same transaction.
CREATE TABLE rollout_waves (
  rollout_id TEXT NOT NULL,
  wave BIGINT NOT NULL,
  state TEXT NOT NULL,
  devices BIGINT NOT NULL,
  PRIMARY KEY (rollout_id, wave, state)
);
INSERT INTO rollout_waves (rollout_id, wave, state, devices)
  SELECT rollout_id, wave, state, COUNT(*) FROM rollout_devices GROUP BY rollout_id, wave, state;

-- Who is next, and what a page lists first.
CREATE INDEX rollout_devices_state ON rollout_devices (rollout_id, state, wave, device_id);
-- Who times out next.
CREATE INDEX rollout_devices_begun ON rollout_devices (rollout_id, begun) WHERE state = 'in_progress';

-- 1 from a command's final answer until the leader has taken it over into the command's roll-out.
ALTER TABLE commands ADD COLUMN rollout_id TEXT;
ALTER TABLE commands ADD COLUMN news BIGINT NOT NULL DEFAULT 0;
UPDATE commands SET rollout_id = SUBSTR(created_by, 10) WHERE created_by LIKE 'roll-out %';
UPDATE commands SET news = 1 WHERE state IN ('succeeded', 'failed', 'rejected')
  AND rollout_id IN (SELECT id FROM rollouts WHERE settled = 0);
CREATE INDEX commands_news ON commands (rollout_id) WHERE news = 1;
