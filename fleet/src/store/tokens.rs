//! Tokens, and the log of who changed what.

use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::Row;

use super::{Store, StoreError, maybe_micros, micros};
use crate::time::Micros;

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at everything.
    Read,
    /// Change things, too: commands, roll-outs, tags.
    Operate,
}

impl Role {
    /// As in the store.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }

    fn from_word(word: &str) -> Result<Self, StoreError> {
        match word {
            "read" => Ok(Self::Read),
            "operate" => Ok(Self::Operate),
            other => Err(StoreError::Content(format!("a token has the role {other:?}"))),
        }
    }
}

/// A token, without its secret.
#[derive(Clone, Debug, Serialize)]
pub struct TokenRow {
    /// What it is called; the actor in the audit log.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Since when.
    pub created: Micros,
    /// When it was taken back.
    pub revoked: Option<Micros>,
}

/// A line of the audit log.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// When.
    #[schema(value_type = String)]
    pub time: Micros,
    /// Whose token, or `command line`, or `visaged-fleet` itself.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// With what.
    pub detail: String,
}

/// Tokens are 32 random bytes: a plain hash is enough to make a stolen store useless for logging in.
fn hash(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Store {
    /// Keeps the hash of `secret` under `name`. `false` where the name is taken.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn add_token(
        &self,
        name: &str,
        role: Role,
        secret: &str,
        actor: &str,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sql = "INSERT INTO tokens (name, role, hash, created) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql).bind(name.to_owned()).bind(role.word()).bind(hash(secret)).bind(now.0);
        let added = query.execute(&mut *tx).await?.rows_affected() == 1;
        if added {
            log(&mut tx, now, actor, "token.create", name, role.word()).await?;
        }
        tx.commit().await?;
        Ok(added)
    }

    /// Takes a token back. `false` where there is none of that name.
    pub async fn revoke_token(&self, name: &str, actor: &str, now: Micros) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE tokens SET revoked = $1 WHERE name = $2 AND revoked IS NULL";
        let done = sqlx::query(sql).bind(now.0).bind(name.to_owned()).execute(&mut *tx).await?.rows_affected() == 1;
        if done {
            log(&mut tx, now, actor, "token.revoke", name, "").await?;
        }
        tx.commit().await?;
        Ok(done)
    }

    /// All tokens.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let sql = "SELECT name, role, created, revoked FROM tokens ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(TokenRow {
                    name: row.try_get("name")?,
                    role: Role::from_word(row.try_get("role")?)?,
                    created: micros(row, "created")?,
                    revoked: maybe_micros(row, "revoked")?,
                })
            })
            .collect()
    }

    /// Whose token this is, and what it allows.
    pub async fn check_token(&self, secret: &str) -> Result<Option<(String, Role)>, StoreError> {
        let sql = "SELECT name, role FROM tokens WHERE hash = $1 AND revoked IS NULL";
        let Some(row) = sqlx::query(sql).bind(hash(secret)).fetch_optional(&self.pool).await? else { return Ok(None) };
        Ok(Some((row.try_get("name")?, Role::from_word(row.try_get("role")?)?)))
    }

    /// The last changes, newest first.
    pub async fn audit_log(&self, limit: i64) -> Result<Vec<AuditEntry>, StoreError> {
        let sql = "SELECT time, actor, action, object, detail FROM audit_log ORDER BY id DESC LIMIT $1";
        let rows = sqlx::query(sql).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(AuditEntry {
                    time: micros(row, "time")?,
                    actor: row.try_get("actor")?,
                    action: row.try_get("action")?,
                    object: row.try_get("object")?,
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }

    /// Replaces a device's tags.
    pub async fn set_tags(
        &self,
        device: i64,
        shown: &str,
        tags: &[String],
        actor: &str,
        now: Micros,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM device_tags WHERE device_id = $1").bind(device).execute(&mut *tx).await?;
        for tag in tags {
            let sql = "INSERT INTO device_tags (device_id, tag) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            sqlx::query(sql).bind(device).bind(tag.clone()).execute(&mut *tx).await?;
        }
        log(&mut tx, now, actor, "device.tags", shown, &tags.join(" ")).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Writes one line, in the transaction of the change itself.
pub(super) async fn log(
    tx: &mut sqlx::AnyConnection,
    now: Micros,
    actor: &str,
    action: &str,
    object: &str,
    detail: &str,
) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO audit_log (time, actor, action, object, detail) VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(sql)
        .bind(now.0)
        .bind(actor.to_owned())
        .bind(action.to_owned())
        .bind(object.to_owned())
        .bind(detail.to_owned())
        .execute(tx)
        .await?;
    Ok(())
}
