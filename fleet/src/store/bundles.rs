//! Hosted bundles, and how far each is on its way to a device over MQTT.

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tokens::log;
use super::{Store, StoreError, maybe_micros, micros};
use crate::bundle::Bundle;
use crate::contract::DeviceName;
use crate::time::Micros;

/// A hosted bundle without its archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct BundleRow {
    /// What it is called by, such as `derl-0.1.3`.
    pub name: String,
    /// What it is for.
    pub task: String,
    /// Its version.
    pub version: String,
    /// Not to be installed later, as its signer wrote.
    #[schema(value_type = Option<String>)]
    pub expires: Option<Micros>,
    /// Bytes of the archive.
    pub size: i64,
    /// Of the archive.
    pub sha256: String,
    /// The text of the signature file.
    pub signature: String,
    /// Parts that it is sent in over MQTT.
    pub parts: i64,
    /// When it was uploaded.
    #[schema(value_type = String)]
    pub created: Micros,
    /// By whom.
    pub created_by: String,
}

/// What came of adding a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there now.
    New,
    /// The same one was there.
    Same,
    /// Another one of this task and version is there.
    Other,
}

/// Parts that a device is to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsToSend {
    /// The command that announced them.
    pub command: String,
    /// To whom.
    pub device: DeviceName,
    /// Of which bundle.
    pub bundle: String,
    /// Every part before this one is on the device.
    pub arrived: i64,
    /// Which: from here on.
    pub from: i64,
    /// To here, exclusive.
    pub to: i64,
    /// How often it was begun anew at the first part that is missing.
    pub attempt: i64,
}

/// Parts that a device may be sent ahead of its answers; it takes sixteen requests.
const WINDOW: i64 = 8;

const COLUMNS: &str = "name, task, version, expires, size, sha256, signature, parts, created, created_by";

impl Store {
    /// Keeps a bundle.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn add_bundle(&self, bundle: &Bundle, actor: &str, now: Micros) -> Result<Added, StoreError> {
        let name = bundle.name();
        let mut tx = self.begin().await?;
        let sql = "SELECT sha256, signature FROM bundles WHERE name = $1";
        if let Some(row) = sqlx::query(sql).bind(name.clone()).fetch_optional(&mut *tx).await? {
            let known: (String, String) = (row.try_get("sha256")?, row.try_get("signature")?);
            let same = known == (bundle.sha256.clone(), bundle.signature.clone());
            return Ok(if same { Added::Same } else { Added::Other });
        }
        let sql = "INSERT INTO bundles (name, task, version, expires, size, sha256, signature, parts, created, created_by) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql)
            .bind(name.clone())
            .bind(bundle.task.clone())
            .bind(bundle.version.to_string())
            .bind(bundle.expires.map(|time| time.0))
            .bind(bundle.size as i64)
            .bind(bundle.sha256.clone())
            .bind(bundle.signature.clone())
            .bind(bundle.parts.len() as i64)
            .bind(now.0)
            .bind(actor.to_owned());
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            return Ok(Added::Other);
        }
        for (part, data) in bundle.parts.iter().enumerate() {
            let sql = "INSERT INTO bundle_parts (bundle, part, data) VALUES ($1, $2, $3)";
            sqlx::query(sql).bind(name.clone()).bind(part as i64).bind(data.clone()).execute(&mut *tx).await?;
        }
        log(&mut tx, now, actor, "bundle.add", &name, &format!("{} bytes, sha256 {}", bundle.size, bundle.sha256))
            .await?;
        tx.commit().await?;
        Ok(Added::New)
    }

    /// All bundles, by task and name.
    pub async fn bundles(&self) -> Result<Vec<BundleRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM bundles ORDER BY task, created DESC, name");
        sqlx::query(&sql).fetch_all(&self.pool).await?.iter().map(bundle).collect()
    }

    /// One bundle.
    pub async fn bundle(&self, name: &str) -> Result<Option<BundleRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM bundles WHERE name = $1");
        sqlx::query(&sql).bind(name.to_owned()).fetch_optional(&self.pool).await?.as_ref().map(bundle).transpose()
    }

    /// The bundle with this archive.
    pub async fn bundle_of(&self, sha256: &str) -> Result<Option<BundleRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM bundles WHERE sha256 = $1");
        sqlx::query(&sql).bind(sha256.to_owned()).fetch_optional(&self.pool).await?.as_ref().map(bundle).transpose()
    }

    /// The parts of a bundle, in order, in Base64.
    pub async fn bundle_parts(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT data FROM bundle_parts WHERE bundle = $1 ORDER BY part";
        Ok(sqlx::query_scalar(sql).bind(name.to_owned()).fetch_all(&self.pool).await?)
    }

    /// Removes a bundle. `None` where there is none; `false`, and nothing done, while devices may still ask for it.
    pub async fn remove_bundle(&self, name: &str, actor: &str, now: Micros) -> Result<Option<bool>, StoreError> {
        let mut tx = self.begin().await?;
        let sql = "SELECT sha256 FROM bundles WHERE name = $1";
        let hash: Option<String> = sqlx::query_scalar(sql).bind(name.to_owned()).fetch_optional(&mut *tx).await?;
        let Some(hash) = hash else { return Ok(None) };
        let sql = "SELECT (SELECT COUNT(*) FROM rollouts WHERE settled = 0 AND args LIKE '%' || $1 || '%') \
                   + (SELECT COUNT(*) FROM transfers t JOIN commands c ON c.id = t.command_id \
                      WHERE t.bundle = $2 AND c.state IN ('queued', 'sent', 'in_progress') AND c.not_after >= $3)";
        let query = sqlx::query_scalar::<_, i64>(sql).bind(hash).bind(name.to_owned()).bind(now.0);
        if query.fetch_one(&mut *tx).await? > 0 {
            return Ok(Some(false));
        }
        for sql in ["DELETE FROM bundle_parts WHERE bundle = $1", "DELETE FROM bundles WHERE name = $1"] {
            sqlx::query(sql).bind(name.to_owned()).execute(&mut *tx).await?;
        }
        log(&mut tx, now, actor, "bundle.remove", name, "").await?;
        tx.commit().await?;
        Ok(Some(true))
    }

    /// Parts to send now: to devices that are there, have begun the installation, and have answered for enough of what they were sent; or have
    /// not answered since `resend_before`, which are sent all again from the first part that is missing. Those that waited longest come first.
    pub async fn parts_to_send(&self, resend_before: Micros, limit: i64) -> Result<Vec<PartsToSend>, StoreError> {
        let sql = "SELECT t.command_id, t.bundle, t.parts, t.arrived, t.next_part, t.attempt, t.sent, d.site, d.device \
                   FROM transfers t JOIN commands c ON c.id = t.command_id JOIN devices d ON d.id = c.device_id \
                   JOIN device_status s ON s.device_id = c.device_id \
                   WHERE c.state = 'in_progress' AND s.status <> 'offline' AND t.arrived < t.parts \
                   AND ((t.next_part < t.parts AND t.next_part < t.arrived + $1) OR t.sent < $2) ORDER BY t.sent LIMIT $3";
        let rows = sqlx::query(sql).bind(WINDOW).bind(resend_before.0).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let (site, device): (String, String) = (row.try_get("site")?, row.try_get("device")?);
                let (parts, arrived): (i64, i64) = (row.try_get("parts")?, row.try_get("arrived")?);
                let (next, attempt): (i64, i64) = (row.try_get("next_part")?, row.try_get("attempt")?);
                let stuck = next > arrived && row.try_get::<i64, _>("sent")? < resend_before.0;
                Ok(PartsToSend {
                    command: row.try_get("command_id")?,
                    device: DeviceName::new(&site, &device).map_err(|error| StoreError::Content(error.to_string()))?,
                    bundle: row.try_get("bundle")?,
                    arrived,
                    from: if stuck { arrived } else { next.max(arrived) },
                    to: parts.min(arrived + WINDOW),
                    attempt: attempt + i64::from(stuck),
                })
            })
            .collect()
    }

    /// They were handed to the broker, each up to the number given with it.
    pub async fn parts_sent(&self, sent: &[(PartsToSend, i64)], now: Micros) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for (parts, to) in sent {
            let sql = "UPDATE transfers SET next_part = $1, attempt = $2, sent = $3 WHERE command_id = $4";
            let query = sqlx::query(sql).bind(*to).bind(parts.attempt).bind(now.0).bind(parts.command.clone());
            query.execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// A device says which part it misses first; `None`: it has them all. Answers may come late and twice: it never goes back.
pub(super) async fn record_arrival(
    tx: &mut sqlx::AnyConnection,
    device: &DeviceName,
    command: &str,
    first_missing: Option<i64>,
) -> Result<(), sqlx::Error> {
    let sql = "UPDATE transfers SET arrived = CASE WHEN COALESCE($1, parts) > arrived AND COALESCE($1, parts) <= parts \
               THEN COALESCE($1, parts) ELSE arrived END WHERE command_id = $2 AND EXISTS (SELECT 1 FROM commands c \
               JOIN devices d ON d.id = c.device_id WHERE c.id = $2 AND d.site = $3 AND d.device = $4)";
    sqlx::query(sql)
        .bind(first_missing)
        .bind(command.to_owned())
        .bind(device.site().to_owned())
        .bind(device.device().to_owned())
        .execute(tx)
        .await?;
    Ok(())
}

fn bundle(row: &AnyRow) -> Result<BundleRow, StoreError> {
    Ok(BundleRow {
        name: row.try_get("name")?,
        task: row.try_get("task")?,
        version: row.try_get("version")?,
        expires: maybe_micros(row, "expires")?,
        size: row.try_get("size")?,
        sha256: row.try_get("sha256")?,
        signature: row.try_get("signature")?,
        parts: row.try_get("parts")?,
        created: micros(row, "created")?,
        created_by: row.try_get("created_by")?,
    })
}
