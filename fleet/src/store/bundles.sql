-- Model bundles that this server hosts. Archives are kept in the parts, in Base64, that they are sent in over MQTT.
CREATE TABLE bundles (
  name TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  version TEXT NOT NULL,
  expires BIGINT,
  size BIGINT NOT NULL,
  sha256 TEXT NOT NULL UNIQUE,
  signature TEXT NOT NULL,
  parts BIGINT NOT NULL,
  created BIGINT NOT NULL,
  created_by TEXT NOT NULL
);

CREATE TABLE bundle_parts (
  bundle TEXT NOT NULL,
  part BIGINT NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (bundle, part)
);

-- Bundles on their way to devices over MQTT, by the id of the command that announced them. The device has every part before `arrived`; those
-- before `next_part` were sent.
CREATE TABLE transfers (
  command_id TEXT PRIMARY KEY,
  bundle TEXT NOT NULL,
  parts BIGINT NOT NULL,
  arrived BIGINT NOT NULL DEFAULT 0,
  next_part BIGINT NOT NULL DEFAULT 0,
  attempt BIGINT NOT NULL DEFAULT 0,
  sent BIGINT NOT NULL DEFAULT 0
);
