//! Reading for pages, API and audit.

use serde::Serialize;
use serde_json::Value as Json;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::write::MINUTE_US;
use super::{Query, Store, StoreError, json, maybe_micros, micros};
use crate::contract::DeviceName;
use crate::time::Micros;

/// A device's number in the store.
pub type DeviceId = i64;

/// A device as the registry knows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceRow {
    /// Its number in the store.
    #[serde(skip)]
    pub id: DeviceId,
    /// Site.
    pub site: String,
    /// Name within the site.
    pub device: String,
    /// `online`, `degraded`, `offline`; `silent` where it says to be there and nothing has come for long; `unknown` before its first status.
    pub status: String,
    /// Why, in the device's words.
    pub reason: Option<String>,
    /// Since when, by the device's clock.
    #[schema(value_type = Option<String>)]
    pub since: Option<Micros>,
    /// The run of its process.
    pub boot: Option<String>,
    /// Version of visaged.
    pub version: Option<String>,
    /// Board.
    pub board: Option<String>,
    /// Camera as it was opened.
    pub camera: Option<String>,
    /// When it was first heard, by the server's clock.
    #[schema(value_type = String)]
    pub first_seen: Micros,
    /// When it was last heard, to about five seconds.
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Micros>,
    /// What operators call it by.
    pub tags: Vec<String>,
    /// Its `info` payload.
    #[schema(value_type = Option<Object>)]
    pub info: Json,
}

/// Which devices.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter {
    /// Of this site.
    pub site: Option<String>,
    /// With this tag.
    pub tag: Option<String>,
    /// Whose status is this; `silent` included.
    pub status: Option<String>,
    /// Whose `site/device` holds this.
    pub text: Option<String>,
    /// After this one, by site and name.
    pub after: Option<DeviceName>,
    /// At most so many.
    pub limit: i64,
    /// Nothing heard since then means silent.
    pub silent_since: Micros,
}

/// The fleet in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Overview {
    /// All devices.
    pub devices: i64,
    /// All that is configured works.
    pub online: i64,
    /// Something does not.
    pub degraded: i64,
    /// Stopped or unreachable.
    pub offline: i64,
    /// Say to be there, but nothing has come for long.
    pub silent: i64,
    /// No status yet.
    pub unknown: i64,
    /// Events of the last hour.
    pub events_last_hour: i64,
    /// Events declared lost in the last day.
    pub declared_lost_last_day: i64,
    /// Messages that could not be read, as far as they are kept.
    pub unreadable: i64,
}

/// One site in numbers.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SiteRow {
    /// Site.
    pub site: String,
    /// Its devices.
    pub devices: i64,
    /// Of these online.
    pub online: i64,
}

/// Events in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MinuteCount {
    /// Where it starts.
    pub start: Micros,
    /// How many.
    pub events: i64,
}

/// A stored event.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct EventRow {
    /// The run of the device's process.
    pub boot: String,
    /// Its number there.
    pub seq: i64,
    /// `enter`, `change`, `sample`, `leave`, `summary`.
    pub kind: String,
    /// By the device's clock.
    #[schema(value_type = String)]
    pub time: Micros,
    /// By the server's clock.
    #[schema(value_type = String)]
    pub received: Micros,
    /// The emotion shown.
    pub emotion: Option<String>,
    /// Came late, from the spool.
    pub historical: bool,
    /// The payload.
    #[schema(value_type = Object)]
    pub payload: Json,
}

/// A stored gap.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct GapRow {
    /// The run of the device's process.
    pub boot: String,
    /// First `seq`.
    pub from: i64,
    /// Last `seq`.
    pub to: i64,
    /// How many of these.
    pub count: i64,
    /// Why.
    pub reason: String,
    /// By the device's clock.
    #[schema(value_type = String)]
    pub time: Micros,
}

/// Stored telemetry. Fractions as whole thousandths.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub struct TelemetryRow {
    /// By the device's clock.
    #[schema(value_type = String)]
    pub time: Micros,
    /// By the server's clock.
    #[schema(value_type = String)]
    pub received: Micros,
    /// Thousandths of a frame a second.
    pub analysis_mfps: Option<i64>,
    /// Thousandths of a percent of a core.
    pub cpu_mpercent: Option<i64>,
    /// Resident memory.
    pub memory_bytes: Option<i64>,
    /// Thousandths of a degree.
    pub temperature_mcelsius: Option<i64>,
    /// People in view.
    pub people: Option<i64>,
    /// Events that wait.
    pub outbox_depth: i64,
    /// Events given up since the device's start.
    pub outbox_lost: i64,
}

/// A message that could not be read.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct UnreadableRow {
    /// Topic.
    pub topic: String,
    /// Why.
    pub reason: String,
    /// As much of it as is kept.
    pub payload: String,
    /// When.
    #[schema(value_type = String)]
    pub received: Micros,
}

/// Numbers of one boot: all that are missing, or all that were given up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootRange {
    /// The boot's number in the store.
    pub boot_id: i64,
    /// First.
    pub from: i64,
    /// Last.
    pub to: i64,
}

/// Status as people see it; `$1` is the moment before which nothing heard means silent.
const STATUS: &str = "CASE WHEN s.status IS NULL THEN 'unknown' WHEN s.status = 'offline' THEN 'offline' \
                      WHEN COALESCE(n.last_seen, 0) < $1 THEN 'silent' ELSE s.status END";

const TABLES: &str = "devices d LEFT JOIN device_seen n ON n.device_id = d.id LEFT JOIN device_status s ON s.device_id = d.id \
                      LEFT JOIN device_info i ON i.device_id = d.id";

impl Store {
    /// The number of a device.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn device_id(&self, name: &DeviceName) -> Result<Option<DeviceId>, StoreError> {
        let sql = "SELECT id FROM devices WHERE site = $1 AND device = $2";
        let query = sqlx::query_scalar(sql).bind(name.site().to_owned()).bind(name.device().to_owned());
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// Devices by site and name.
    pub async fn devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceRow>, StoreError> {
        let sql = format!(
            "SELECT d.id, d.site, d.device, d.first_seen, n.last_seen, {STATUS} AS status, s.reason, s.since, s.boot, \
             i.version, i.board, i.camera, i.body FROM {TABLES} WHERE (CAST($2 AS TEXT) IS NULL OR d.site = $2) \
             AND (CAST($3 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM device_tags t WHERE t.device_id = d.id AND t.tag = $3)) \
             AND (CAST($4 AS TEXT) IS NULL OR {STATUS} = $4) \
             AND (CAST($5 AS TEXT) IS NULL OR LOWER(d.site || '/' || d.device) LIKE '%' || LOWER($5) || '%') \
             AND (d.site > $6 OR (d.site = $6 AND d.device > $7)) ORDER BY d.site, d.device LIMIT $8"
        );
        let after = filter.after.as_ref().map_or(("", ""), |name| (name.site(), name.device()));
        let query = sqlx::query(&sql)
            .bind(filter.silent_since.0)
            .bind(filter.site.clone())
            .bind(filter.tag.clone())
            .bind(filter.status.clone())
            .bind(filter.text.clone())
            .bind(after.0.to_owned())
            .bind(after.1.to_owned())
            .bind(filter.limit);
        let mut devices = Vec::new();
        for row in query.fetch_all(&self.pool).await? {
            devices.push(device(&row)?);
        }
        self.add_tags(&mut devices).await?;
        Ok(devices)
    }

    async fn add_tags(&self, devices: &mut [DeviceRow]) -> Result<(), StoreError> {
        let mut tags = std::collections::HashMap::<i64, Vec<String>>::new();
        for ids in devices.iter().map(|device| device.id.to_string()).collect::<Vec<_>>().chunks(500) {
            // Numbers of our own, so they can stand in the text.
            let sql =
                format!("SELECT device_id, tag FROM device_tags WHERE device_id IN ({}) ORDER BY tag", ids.join(","));
            for row in sqlx::query(&sql).persistent(false).fetch_all(&self.pool).await? {
                tags.entry(row.try_get("device_id")?).or_default().push(row.try_get("tag")?);
            }
        }
        for device in devices {
            device.tags = tags.remove(&device.id).unwrap_or_default();
        }
        Ok(())
    }

    /// One device.
    pub async fn device(&self, name: &DeviceName, silent_since: Micros) -> Result<Option<DeviceRow>, StoreError> {
        let sql = format!(
            "SELECT d.id, d.site, d.device, d.first_seen, n.last_seen, {STATUS} AS status, s.reason, s.since, s.boot, \
             i.version, i.board, i.camera, i.body FROM {TABLES} WHERE d.site = $2 AND d.device = $3"
        );
        let query = sqlx::query(&sql).bind(silent_since.0).bind(name.site().to_owned()).bind(name.device().to_owned());
        let Some(row) = query.fetch_optional(&self.pool).await? else { return Ok(None) };
        let mut found = [device(&row)?];
        self.add_tags(&mut found).await?;
        let [found] = found;
        Ok(Some(found))
    }

    /// The fleet in numbers, and every site.
    pub async fn overview(&self, now: Micros, silent_since: Micros) -> Result<(Overview, Vec<SiteRow>), StoreError> {
        let sql = format!("SELECT d.site, {STATUS} AS status, COUNT(*) AS n FROM {TABLES} GROUP BY 1, 2 ORDER BY 1");
        let (mut overview, mut sites) = (Overview::default(), Vec::<SiteRow>::new());
        for row in sqlx::query(&sql).bind(silent_since.0).fetch_all(&self.pool).await? {
            let (n, site): (i64, String) = (row.try_get("n")?, row.try_get("site")?);
            let status: String = row.try_get("status")?;
            if sites.last().is_none_or(|last| last.site != site) {
                sites.push(SiteRow { site, devices: 0, online: 0 });
            }
            if let Some(site) = sites.last_mut() {
                site.devices += n;
                site.online += if status == "online" { n } else { 0 };
            }
            overview.devices += n;
            match status.as_str() {
                "online" => overview.online += n,
                "degraded" => overview.degraded += n,
                "offline" => overview.offline += n,
                "silent" => overview.silent += n,
                _ => overview.unknown += n,
            }
        }
        let count = |sql| sqlx::query_scalar::<_, i64>(sql);
        let sql = "SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM event_minutes WHERE minute > $1";
        let hour = now.0.div_euclid(MINUTE_US) - 60;
        overview.events_last_hour = count(sql).bind(hour).fetch_one(&self.pool).await?;
        let sql = "SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM gaps WHERE received >= $1";
        overview.declared_lost_last_day = count(sql).bind(now.0 - 86_400_000_000).fetch_one(&self.pool).await?;
        overview.unreadable = count("SELECT COUNT(*) FROM unreadable").fetch_one(&self.pool).await?;
        Ok((overview, sites))
    }

    /// New events of all devices by the minute of their arrival.
    pub async fn event_counts(&self, since: Micros) -> Result<Vec<MinuteCount>, StoreError> {
        let sql = "SELECT minute, CAST(SUM(count) AS BIGINT) AS n FROM event_minutes WHERE minute >= $1 GROUP BY minute ORDER BY minute";
        let rows = sqlx::query(sql).bind(since.0.div_euclid(MINUTE_US)).fetch_all(&self.pool).await?;
        rows.iter().map(minute_count).collect()
    }

    /// Events of one device by the minute of its own clock.
    pub async fn device_event_counts(&self, device: DeviceId, since: Micros) -> Result<Vec<MinuteCount>, StoreError> {
        let sql = "SELECT CAST(time / $3 AS BIGINT) AS minute, COUNT(*) AS n FROM events WHERE device_id = $1 AND time >= $2 \
                   GROUP BY 1 ORDER BY 1";
        let rows = sqlx::query(sql).bind(device).bind(since.0).bind(MINUTE_US).fetch_all(&self.pool).await?;
        rows.iter().map(minute_count).collect()
    }

    /// Events by emotion of one device since `since`.
    pub async fn emotions(&self, device: DeviceId, since: Micros) -> Result<Vec<(String, i64)>, StoreError> {
        let sql = "SELECT emotion, COUNT(*) AS n FROM events WHERE device_id = $1 AND time >= $2 AND emotion IS NOT NULL \
                   GROUP BY emotion ORDER BY n DESC, emotion";
        let rows = sqlx::query(sql).bind(device).bind(since.0).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("emotion")?, row.try_get("n")?))).collect()
    }

    /// The last events of a device before `before`, newest first.
    pub async fn events(
        &self,
        device: DeviceId,
        since: Micros,
        before: Micros,
        limit: i64,
    ) -> Result<Vec<EventRow>, StoreError> {
        let sql = "SELECT b.boot, e.seq, e.kind, e.time, e.received, e.emotion, e.historical, e.body FROM events e \
                   JOIN boots b ON b.id = e.boot_id WHERE e.device_id = $1 AND e.time >= $2 AND e.time < $3 \
                   ORDER BY e.time DESC, e.seq DESC LIMIT $4";
        let rows = sqlx::query(sql).bind(device).bind(since.0).bind(before.0).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(EventRow {
                    boot: row.try_get("boot")?,
                    seq: row.try_get("seq")?,
                    kind: row.try_get("kind")?,
                    time: micros(row, "time")?,
                    received: micros(row, "received")?,
                    emotion: row.try_get("emotion")?,
                    historical: row.try_get::<i64, _>("historical")? != 0,
                    payload: json(row, "body")?,
                })
            })
            .collect()
    }

    /// The last gaps that a device declared, newest first.
    pub async fn gaps(&self, device: DeviceId, limit: i64) -> Result<Vec<GapRow>, StoreError> {
        let sql = "SELECT b.boot, g.first_seq, g.last_seq, g.count, g.reason, g.time FROM gaps g JOIN boots b ON b.id = g.boot_id \
                   WHERE b.device_id = $1 ORDER BY g.received DESC, g.first_seq DESC LIMIT $2";
        let rows = sqlx::query(sql).bind(device).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(GapRow {
                    boot: row.try_get("boot")?,
                    from: row.try_get("first_seq")?,
                    to: row.try_get("last_seq")?,
                    count: row.try_get("count")?,
                    reason: row.try_get("reason")?,
                    time: micros(row, "time")?,
                })
            })
            .collect()
    }

    /// Telemetry of a device since `since` (by arrival), oldest first, the newest `limit` of it.
    pub async fn telemetry(
        &self,
        device: DeviceId,
        since: Micros,
        limit: i64,
    ) -> Result<Vec<TelemetryRow>, StoreError> {
        let sql = "SELECT time, received, analysis_mfps, cpu_mpercent, memory_bytes, temperature_mcelsius, people, outbox_depth, \
                   outbox_lost FROM telemetry WHERE device_id = $1 AND received >= $2 ORDER BY received DESC LIMIT $3";
        let rows = sqlx::query(sql).bind(device).bind(since.0).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .rev()
            .map(|row| {
                Ok(TelemetryRow {
                    time: micros(row, "time")?,
                    received: micros(row, "received")?,
                    analysis_mfps: row.try_get("analysis_mfps")?,
                    cpu_mpercent: row.try_get("cpu_mpercent")?,
                    memory_bytes: row.try_get("memory_bytes")?,
                    temperature_mcelsius: row.try_get("temperature_mcelsius")?,
                    people: row.try_get("people")?,
                    outbox_depth: row.try_get("outbox_depth")?,
                    outbox_lost: row.try_get("outbox_lost")?,
                })
            })
            .collect()
    }

    /// The last messages that could not be read.
    pub async fn unreadable(&self, limit: i64) -> Result<Vec<UnreadableRow>, StoreError> {
        let sql = "SELECT topic, reason, payload, received FROM unreadable ORDER BY id DESC LIMIT $1";
        let rows = sqlx::query(sql).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(UnreadableRow {
                    topic: row.try_get("topic")?,
                    reason: row.try_get("reason")?,
                    payload: row.try_get("payload")?,
                    received: micros(row, "received")?,
                })
            })
            .collect()
    }

    /// Changes when something that pages show has changed: the newest moments in the registry and of roll-outs.
    pub async fn fingerprint(&self, now: Micros) -> Result<i64, StoreError> {
        let sql = "SELECT COALESCE((SELECT MAX(last_seen) FROM device_seen), 0) + COALESCE((SELECT MAX(received) FROM device_status), 0) \
                   + COALESCE((SELECT MAX(updated) FROM rollouts), 0) + COALESCE((SELECT MAX(id) FROM audit_log), 0) \
                   + CAST(COALESCE((SELECT SUM(count) FROM event_minutes WHERE minute >= $1), 0) AS BIGINT)";
        // Sums of moments stay below 2^63 until the year 60,000.
        Ok(sqlx::query_scalar(sql).bind(now.0.div_euclid(MINUTE_US) - 1).fetch_one(&self.pool).await?)
    }

    /// How many boots and events there are.
    pub async fn totals(&self) -> Result<(i64, i64), StoreError> {
        let sql = "SELECT (SELECT COUNT(*) FROM boots) AS boots, (SELECT COUNT(*) FROM events) AS events";
        let row = sqlx::query(sql).fetch_one(&self.pool).await?;
        Ok((row.try_get("boots")?, row.try_get("events")?))
    }

    /// Every run of missing numbers between 0 (or where the retention stopped) and the last number known of each boot, an event's or a
    /// gap's; but for those that are followed by something that came after `settled`.
    pub async fn holes(&self, settled: Micros) -> Result<Vec<BootRange>, StoreError> {
        let between = "SELECT w.boot_id, w.previous + 1 AS first_seq, w.seq - 1 AS last_seq FROM (SELECT e.boot_id, e.seq, e.received, \
                       LAG(e.seq, 1, b.kept_from - 1) OVER (PARTITION BY e.boot_id ORDER BY e.seq) AS previous \
                       FROM events e JOIN boots b ON b.id = e.boot_id) w WHERE w.seq > w.previous + 1 AND w.received < $1";
        let after = "SELECT b.id AS boot_id, COALESCE(e.last, b.kept_from - 1) + 1 AS first_seq, g.last AS last_seq FROM boots b \
                     JOIN (SELECT boot_id, MAX(last_seq) AS last, MAX(received) AS received FROM gaps GROUP BY boot_id) g \
                     ON g.boot_id = b.id LEFT JOIN (SELECT boot_id, MAX(seq) AS last FROM events GROUP BY boot_id) e \
                     ON e.boot_id = b.id WHERE g.last > COALESCE(e.last, b.kept_from - 1) AND g.received < $1";
        let mut connection = self.pool.acquire().await?;
        let mut holes = ranges(sqlx::query(between).bind(settled.0), &mut connection).await?;
        holes.extend(ranges(sqlx::query(after).bind(settled.0), &mut connection).await?);
        holes.sort();
        Ok(holes)
    }

    /// Every declared gap.
    pub async fn declared(&self) -> Result<Vec<BootRange>, StoreError> {
        let sql = "SELECT boot_id, first_seq, last_seq FROM gaps ORDER BY boot_id, first_seq";
        let mut connection = self.pool.acquire().await?;
        ranges(sqlx::query(sql), &mut connection).await
    }

    /// Device and boot of a boot's number.
    pub async fn boot_name(&self, boot_id: i64) -> Result<(String, String), StoreError> {
        let sql = "SELECT d.site || '/' || d.device AS device, b.boot FROM boots b JOIN devices d ON d.id = b.device_id WHERE b.id = $1";
        let row = sqlx::query(sql).bind(boot_id).fetch_one(&self.pool).await?;
        Ok((row.try_get("device")?, row.try_get("boot")?))
    }

    /// Removes what came before `before`: telemetry, messages that could not be read, and of each boot the events before its first later one.
    /// Gives how many events went.
    pub async fn remove_older(&self, before: Micros) -> Result<u64, StoreError> {
        let sql = "SELECT boot_id, MIN(CASE WHEN received >= $1 THEN seq END) AS kept, MAX(seq) AS last FROM events \
                   GROUP BY boot_id HAVING MIN(received) < $1";
        let boots = sqlx::query(sql).bind(before.0).fetch_all(&self.pool).await?;
        let mut removed = 0;
        for row in boots {
            let (boot, last): (i64, i64) = (row.try_get("boot_id")?, row.try_get("last")?);
            let kept = row.try_get::<Option<i64>, _>("kept")?.unwrap_or(last + 1);
            let mut tx = self.begin().await?;
            let set = "UPDATE boots SET kept_from = $1 WHERE id = $2 AND kept_from < $1";
            sqlx::query(set).bind(kept).bind(boot).execute(&mut *tx).await?;
            let delete = "DELETE FROM events WHERE boot_id = $1 AND seq < $2";
            removed += sqlx::query(delete).bind(boot).bind(kept).execute(&mut *tx).await?.rows_affected();
            sqlx::query("DELETE FROM gaps WHERE boot_id = $1 AND last_seq < $2")
                .bind(boot)
                .bind(kept)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        for sql in ["DELETE FROM telemetry WHERE received < $1", "DELETE FROM unreadable WHERE received < $1"] {
            sqlx::query(sql).bind(before.0).execute(&self.pool).await?;
        }
        let minutes = sqlx::query("DELETE FROM event_minutes WHERE minute < $1").bind(before.0.div_euclid(MINUTE_US));
        minutes.execute(&self.pool).await?;
        Ok(removed)
    }
}

fn minute_count(row: &AnyRow) -> Result<MinuteCount, StoreError> {
    let minute: i64 = row.try_get("minute")?;
    Ok(MinuteCount { start: Micros(minute.saturating_mul(MINUTE_US)), events: row.try_get("n")? })
}

async fn ranges(query: Query<'_>, connection: &mut AnyConnection) -> Result<Vec<BootRange>, StoreError> {
    let rows = query.fetch_all(connection).await?;
    let range = |row: &AnyRow| {
        Ok(BootRange {
            boot_id: row.try_get("boot_id")?,
            from: row.try_get("first_seq")?,
            to: row.try_get("last_seq")?,
        })
    };
    rows.iter().map(range).collect()
}

fn device(row: &AnyRow) -> Result<DeviceRow, StoreError> {
    Ok(DeviceRow {
        id: row.try_get("id")?,
        site: row.try_get("site")?,
        device: row.try_get("device")?,
        status: row.try_get("status")?,
        reason: row.try_get("reason")?,
        since: maybe_micros(row, "since")?,
        boot: row.try_get("boot")?,
        version: row.try_get("version")?,
        board: row.try_get("board")?,
        camera: row.try_get("camera")?,
        first_seen: micros(row, "first_seen")?,
        last_seen: maybe_micros(row, "last_seen")?,
        tags: Vec::new(),
        info: json(row, "body")?,
    })
}
