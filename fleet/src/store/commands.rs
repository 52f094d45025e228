//! Commands to devices: written down before they are sent, sent until they are answered or too late.

use serde::Serialize;
use serde_json::Value as Json;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tokens::log;
use super::{Store, StoreError, insert_many, json, maybe_micros, micros};
use crate::contract::DeviceName;
use crate::time::Micros;

const IDS_A_STATEMENT: usize = 100;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// Written down, not sent: the device is away.
    Queued,
    /// Sent, no answer yet.
    Sent,
    /// The device has begun.
    InProgress,
    /// Done.
    Succeeded,
    /// Tried; the former state stands again.
    Failed,
    /// The device did nothing.
    Rejected,
    /// No final answer came in time.
    TimedOut,
}

impl CommandState {
    fn from_word(word: &str) -> Result<Self, StoreError> {
        Ok(match word {
            "queued" => Self::Queued,
            "sent" => Self::Sent,
            "in_progress" => Self::InProgress,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "rejected" => Self::Rejected,
            "timed_out" => Self::TimedOut,
            other => return Err(StoreError::Content(format!("a command is {other:?}"))),
        })
    }

    /// As in the store.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::InProgress => "in_progress",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
        }
    }
}

/// A command to be written down.
#[derive(Clone, Debug)]
pub struct NewCommand {
    /// Its id.
    pub id: String,
    /// For whom.
    pub device: i64,
    /// Its name.
    pub name: String,
    /// The whole payload.
    pub payload: String,
    /// A hosted bundle that follows in parts: its name, and how many.
    pub parts: Option<(String, i64)>,
    /// When it is too late.
    pub not_after: Micros,
    /// The roll-out that it is a part of.
    pub rollout: Option<String>,
    /// Who wants it.
    pub created_by: String,
}

/// A command as the store knows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CommandRow {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: CommandState,
    /// What came out.
    #[schema(value_type = Option<Object>)]
    pub result: Json,
    /// The contract's code.
    pub error_code: Option<String>,
    /// In the device's words.
    pub error_message: Option<String>,
    /// When it was written down.
    #[schema(value_type = String)]
    pub created: Micros,
    /// When it was last sent.
    #[schema(value_type = Option<String>)]
    pub sent: Option<Micros>,
    /// When its last answer came.
    #[schema(value_type = Option<String>)]
    pub answered: Option<Micros>,
    /// Who wanted it.
    pub created_by: String,
}

/// A command to send now.
#[derive(Clone, Debug)]
pub struct ToSend {
    /// Its id.
    pub id: String,
    /// For whom.
    pub device: DeviceName,
    /// Its name.
    pub name: String,
    /// The payload.
    pub payload: String,
}

impl Store {
    /// Writes a command down, to be sent.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn add_command(&self, command: &NewCommand, shown: &str, now: Micros) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        insert_commands(&mut tx, std::slice::from_ref(command), now).await?;
        // Arguments may hold secrets, such as a password of the configuration: the log names the command alone.
        let detail = format!("{} {}", command.name, command.id);
        log(&mut tx, now, &command.created_by, "command.send", shown, &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// One command.
    pub async fn command(&self, id: &str) -> Result<Option<CommandRow>, StoreError> {
        let sql = "SELECT id, name, state, result, error_code, error_message, created, sent, answered, created_by FROM commands WHERE id = $1";
        sqlx::query(sql).bind(id.to_owned()).fetch_optional(&self.pool).await?.as_ref().map(command).transpose()
    }

    /// The last commands to a device, newest first.
    pub async fn commands(&self, device: i64, limit: i64) -> Result<Vec<CommandRow>, StoreError> {
        let sql = "SELECT id, name, state, result, error_code, error_message, created, sent, answered, created_by FROM commands \
                   WHERE device_id = $1 ORDER BY created DESC, id DESC LIMIT $2";
        sqlx::query(sql).bind(device).bind(limit).fetch_all(&self.pool).await?.iter().map(command).collect()
    }

    /// What to send now: open commands of devices that are there, not sent since `resend_before`; and marks as timed out what is too late.
    pub async fn commands_to_send(
        &self,
        now: Micros,
        resend_before: Micros,
        limit: i64,
    ) -> Result<Vec<ToSend>, StoreError> {
        let late = "UPDATE commands SET state = 'timed_out' WHERE state IN ('queued', 'sent', 'in_progress') AND not_after < $1";
        sqlx::query(late).bind(now.0).execute(&self.pool).await?;
        let sql = "SELECT c.id, c.name, c.payload, d.site, d.device FROM commands c JOIN devices d ON d.id = c.device_id \
                   JOIN device_status s ON s.device_id = c.device_id \
                   WHERE c.state IN ('queued', 'sent') AND c.not_after >= $1 AND s.status <> 'offline' \
                   AND (c.sent IS NULL OR c.sent < $2) ORDER BY c.created LIMIT $3";
        let rows = sqlx::query(sql).bind(now.0).bind(resend_before.0).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let (site, device): (String, String) = (row.try_get("site")?, row.try_get("device")?);
                Ok(ToSend {
                    id: row.try_get("id")?,
                    device: DeviceName::new(&site, &device).map_err(|error| StoreError::Content(error.to_string()))?,
                    name: row.try_get("name")?,
                    payload: row.try_get("payload")?,
                })
            })
            .collect()
    }

    /// They were handed to the broker.
    pub async fn commands_sent(&self, ids: &[String], now: Micros) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let set = "sent = $1, state = CASE WHEN state = 'queued' THEN 'sent' ELSE state END";
        update_commands(&mut tx, set, now.0, ids).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Changes commands by their ids; `set` may speak of `$1`.
pub(super) async fn update_commands(
    tx: &mut sqlx::AnyConnection,
    set: &str,
    value: i64,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    // The last id fills the statement up, so that one is prepared for all lengths.
    let places: Vec<_> = (0..IDS_A_STATEMENT).map(|at| format!("${}", at + 2)).collect();
    let sql = format!("UPDATE commands SET {set} WHERE id IN ({})", places.join(","));
    for ids in ids.chunks(IDS_A_STATEMENT) {
        let filled = ids.iter().chain(std::iter::repeat(&ids[ids.len() - 1])).take(IDS_A_STATEMENT);
        let query = filled.fold(sqlx::query(&sql).bind(value), |query, id| query.bind(id.clone()));
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn insert_commands(
    tx: &mut sqlx::AnyConnection,
    commands: &[NewCommand],
    now: Micros,
) -> Result<(), sqlx::Error> {
    let row = |command: &NewCommand| {
        vec![
            command.id.as_str().into(),
            command.device.into(),
            command.name.as_str().into(),
            command.payload.as_str().into(),
            "queued".into(),
            now.into(),
            command.not_after.into(),
            command.created_by.as_str().into(),
            command.rollout.clone().into(),
        ]
    };
    let columns =
        "INSERT INTO commands (id, device_id, name, payload, state, created, not_after, created_by, rollout_id) VALUES";
    insert_many(tx, columns, 9, "ON CONFLICT DO NOTHING", commands.iter().map(row).collect()).await?;
    let transfers = commands.iter().filter_map(|command| {
        let (bundle, parts) = command.parts.as_ref()?;
        Some(vec![command.id.as_str().into(), bundle.as_str().into(), (*parts).into()])
    });
    let columns = "INSERT INTO transfers (command_id, bundle, parts) VALUES";
    insert_many(tx, columns, 3, "ON CONFLICT DO NOTHING", transfers.collect()).await?;
    Ok(())
}

fn command(row: &AnyRow) -> Result<CommandRow, StoreError> {
    Ok(CommandRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        state: CommandState::from_word(row.try_get("state")?)?,
        result: json(row, "result")?,
        error_code: row.try_get("error_code")?,
        error_message: row.try_get("error_message")?,
        created: micros(row, "created")?,
        sent: maybe_micros(row, "sent")?,
        answered: maybe_micros(row, "answered")?,
        created_by: row.try_get("created_by")?,
    })
}
