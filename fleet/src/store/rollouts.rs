//! Roll-outs in the store: the state of the machine in [`rollout`](crate::rollout), and what it wants sent.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value as Json, json};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::commands::insert_commands;
use super::tokens::log;
use super::{NewCommand, Store, StoreError, Value, insert_many, json as read_json, maybe_micros, micros};
use crate::rollout::{Device, Execution, Outcome, Plan, Rollout, RolloutRequest, State, Target};
use crate::time::Micros;

/// A roll-out to be written down.
#[derive(Debug)]
pub struct NewRollout<'a> {
    /// Its id.
    pub id: &'a str,
    /// What was asked for.
    pub request: &'a RolloutRequest,
    /// Its devices and waves.
    pub rollout: &'a Rollout,
    /// Who wants it.
    pub actor: &'a str,
}

/// A roll-out without its devices.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct RolloutRow {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What is rolled out.
    pub command: String,
    /// With what.
    #[schema(value_type = Object)]
    pub args: Json,
    /// To whom.
    pub target: Target,
    /// How.
    pub plan: Plan,
    /// How it is.
    pub state: State,
    /// Why.
    pub reason: Option<String>,
    /// The wave that it is at, from 0.
    pub wave: i64,
    /// Over, and every device has its outcome.
    pub settled: bool,
    /// When it was made.
    #[schema(value_type = String)]
    pub created: Micros,
    /// Who wanted it.
    pub created_by: String,
    /// When it last changed.
    #[schema(value_type = String)]
    pub updated: Micros,
    /// Devices by how far they are.
    pub devices: HashMap<String, i64>,
}

/// One device of a roll-out.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct RolloutDeviceRow {
    /// Site.
    pub site: String,
    /// Name.
    pub device: String,
    /// Its wave, from 0.
    pub wave: i64,
    /// How far it is.
    pub state: Execution,
    /// Why.
    pub detail: Option<String>,
    /// When its command was written.
    #[schema(value_type = Option<String>)]
    pub begun: Option<Micros>,
    /// When it had its outcome.
    #[schema(value_type = Option<String>)]
    pub ended: Option<Micros>,
    /// Of a bundle that is sent in parts: how many it has.
    pub parts_arrived: Option<i64>,
    /// Of how many.
    pub parts: Option<i64>,
}

/// Devices of one wave that are equally far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaveCount {
    /// Which wave, from 0.
    pub wave: i64,
    /// How far they are.
    pub state: Execution,
    /// How many.
    pub devices: i64,
}

/// A roll-out taken out to be changed, with what its devices have answered.
#[derive(Debug)]
pub struct Selection {
    /// The machine.
    pub rollout: Rollout,
    /// What is known of devices in progress.
    pub outcomes: HashMap<i64, Outcome>,
    /// The request, for payloads.
    pub args: Json,
    /// What is rolled out.
    pub command: String,
    /// As it was when it was read: whoever changes it first wins.
    updated: Micros,
    before: Vec<Device>,
    id: String,
}

const COLUMNS: &str =
    "id, name, command, args, target, plan, state, reason, wave, settled, created, created_by, updated";

impl Store {
    /// The devices that a target names, before any lot is drawn.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn targets(&self, target: &Target) -> Result<Vec<i64>, StoreError> {
        let sql = "SELECT d.id FROM devices d WHERE (CAST($1 AS TEXT) IS NULL OR d.site = $1) AND (CAST($2 AS TEXT) IS NULL OR \
                   EXISTS (SELECT 1 FROM device_tags t WHERE t.device_id = d.id AND t.tag = $2)) ORDER BY d.id";
        Ok(sqlx::query_scalar(sql).bind(target.site.clone()).bind(target.tag.clone()).fetch_all(&self.pool).await?)
    }

    /// Writes a roll-out down; the leader begins it.
    pub async fn add_rollout(&self, new: &NewRollout<'_>, now: Micros) -> Result<(), StoreError> {
        let NewRollout { id, request, rollout, actor } = *new;
        let mut tx = self.begin().await?;
        let sql = "INSERT INTO rollouts (id, name, command, args, target, plan, state, wave, created, created_by, updated) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9, $8)";
        sqlx::query(sql)
            .bind(id.to_owned())
            .bind(request.name.clone())
            .bind(request.command.clone())
            .bind(request.args.to_string())
            .bind(json!(request.target).to_string())
            .bind(json!(request.plan).to_string())
            .bind(rollout.state.word())
            .bind(now.0)
            .bind(actor.to_owned())
            .execute(&mut *tx)
            .await?;
        let rows = rollout
            .devices
            .iter()
            .map(|d| vec![id.into(), d.id.into(), (d.wave as i64).into(), d.execution.word().into()]);
        let columns = "INSERT INTO rollout_devices (rollout_id, device_id, wave, state) VALUES";
        insert_many(&mut tx, columns, 4, "", rows.collect::<Vec<Vec<Value>>>()).await?;
        let detail = format!("{} {:?} to {} devices", request.command, request.name, rollout.devices.len());
        log(&mut tx, now, actor, "rollout.create", id, &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// All roll-outs, newest first.
    pub async fn rollouts(&self, limit: i64) -> Result<Vec<RolloutRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts ORDER BY created DESC, id LIMIT $1");
        let rows = sqlx::query(&sql).bind(limit).fetch_all(&self.pool).await?;
        let mut found = Vec::new();
        for row in &rows {
            found.push(self.counted(rollout(row)?).await?);
        }
        Ok(found)
    }

    /// One roll-out.
    pub async fn rollout(&self, id: &str) -> Result<Option<RolloutRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE id = $1");
        let Some(row) = sqlx::query(&sql).bind(id.to_owned()).fetch_optional(&self.pool).await? else {
            return Ok(None);
        };
        Ok(Some(self.counted(rollout(&row)?).await?))
    }

    async fn counted(&self, mut row: RolloutRow) -> Result<RolloutRow, StoreError> {
        let sql = "SELECT state, COUNT(*) AS n FROM rollout_devices WHERE rollout_id = $1 GROUP BY state";
        for count in sqlx::query(sql).bind(row.id.clone()).fetch_all(&self.pool).await? {
            row.devices.insert(count.try_get("state")?, count.try_get("n")?);
        }
        Ok(row)
    }

    /// How many devices of each wave are how far, by wave.
    pub async fn rollout_waves(&self, id: &str) -> Result<Vec<WaveCount>, StoreError> {
        let sql = "SELECT wave, state, COUNT(*) AS n FROM rollout_devices WHERE rollout_id = $1 GROUP BY wave, state ORDER BY wave";
        let rows = sqlx::query(sql).bind(id.to_owned()).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Ok(WaveCount { wave: row.try_get("wave")?, state: execution(row)?, devices: row.try_get("n")? }))
            .collect()
    }

    /// Its devices by wave and name; those that failed come first where `failed_first`.
    pub async fn rollout_devices(
        &self,
        id: &str,
        limit: i64,
        failed_first: bool,
    ) -> Result<Vec<RolloutDeviceRow>, StoreError> {
        let order = match failed_first {
            true => {
                "CASE r.state WHEN 'failed' THEN 0 WHEN 'rejected' THEN 0 WHEN 'timed_out' THEN 0 WHEN 'in_progress' THEN 1 ELSE 2 END, "
            }
            false => "",
        };
        let sql = format!(
            "SELECT d.site, d.device, r.wave, r.state, r.detail, r.begun, r.ended, t.arrived, t.parts FROM rollout_devices r \
             JOIN devices d ON d.id = r.device_id LEFT JOIN transfers t ON t.command_id = r.command_id \
             WHERE r.rollout_id = $1 ORDER BY {order}r.wave, d.site, d.device LIMIT $2"
        );
        let rows = sqlx::query(&sql).bind(id.to_owned()).bind(limit).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(RolloutDeviceRow {
                    site: row.try_get("site")?,
                    device: row.try_get("device")?,
                    wave: row.try_get("wave")?,
                    state: execution(row)?,
                    detail: row.try_get("detail")?,
                    begun: maybe_micros(row, "begun")?,
                    ended: maybe_micros(row, "ended")?,
                    parts_arrived: row.try_get("arrived")?,
                    parts: row.try_get("parts")?,
                })
            })
            .collect()
    }

    /// Ids of those that are not settled.
    pub async fn open_rollouts(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT id FROM rollouts WHERE settled = 0 ORDER BY created")
            .fetch_all(&self.pool)
            .await?)
    }

    /// Takes one out to be changed.
    pub async fn take_rollout(&self, id: &str) -> Result<Option<Selection>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE id = $1");
        let Some(row) = sqlx::query(&sql).bind(id.to_owned()).fetch_optional(&self.pool).await? else {
            return Ok(None);
        };
        let row = rollout(&row)?;
        let sql = "SELECT r.device_id, r.wave, r.state, r.detail, r.begun, r.ended, c.state AS command_state, c.error_code, \
                   c.error_message FROM rollout_devices r LEFT JOIN commands c ON c.id = r.command_id \
                   WHERE r.rollout_id = $1 ORDER BY r.wave, r.device_id";
        let (mut devices, mut outcomes) = (Vec::new(), HashMap::new());
        for row in sqlx::query(sql).bind(id.to_owned()).fetch_all(&self.pool).await? {
            let device = Device {
                id: row.try_get("device_id")?,
                wave: usize::try_from(row.try_get::<i64, _>("wave")?).unwrap_or(0),
                execution: execution(&row)?,
                detail: row.try_get("detail")?,
                begun: maybe_micros(&row, "begun")?,
                ended: maybe_micros(&row, "ended")?,
            };
            let command: Option<String> = row.try_get("command_state")?;
            if let Some(execution) = command.as_deref().and_then(Execution::from_word).filter(|e| e.is_final()) {
                let (code, message): (Option<String>, Option<String>) =
                    (row.try_get("error_code")?, row.try_get("error_message")?);
                let detail = code.map(|code| format!("{code}: {}", message.unwrap_or_default()));
                outcomes.insert(device.id, Outcome { execution, detail });
            }
            devices.push(device);
        }
        let wave = usize::try_from(row.wave).unwrap_or(0);
        let before = devices.clone();
        let machine = Rollout { plan: row.plan, state: row.state, reason: row.reason, wave, devices };
        let (id, updated) = (row.id, row.updated);
        Ok(Some(Selection { rollout: machine, outcomes, args: row.args, command: row.command, updated, before, id }))
    }

    /// Puts it back: what changed, and the commands for `begun`. `false`, and nothing done, where somebody else changed it meanwhile.
    pub async fn put_rollout(
        &self,
        taken: &Selection,
        commands: &[NewCommand],
        who: Option<(&str, &str)>,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let machine = &taken.rollout;
        let changed: Vec<_> =
            machine.devices.iter().zip(&taken.before).filter(|(new, old)| new != old).map(|(new, _)| new).collect();
        let mut tx = self.begin().await?;
        // Always later than before, so that a second writer within the same microsecond notices, too.
        let updated = now.0.max(taken.updated.0 + 1);
        let sql = "UPDATE rollouts SET state = $1, reason = $2, wave = $3, settled = $4, updated = $5 WHERE id = $6 AND updated = $7";
        let done = sqlx::query(sql)
            .bind(machine.state.word())
            .bind(machine.reason.clone())
            .bind(machine.wave as i64)
            .bind(i64::from(machine.is_settled()))
            .bind(updated)
            .bind(taken.id.clone())
            .bind(taken.updated.0)
            .execute(&mut *tx)
            .await?
            .rows_affected()
            == 1;
        if !done {
            return Ok(false);
        }
        let ids: HashMap<i64, &str> = commands.iter().map(|command| (command.device, command.id.as_str())).collect();
        // An upsert of rows that are all there: many at a time.
        let row = |device: &Device| {
            vec![
                taken.id.as_str().into(),
                device.id.into(),
                (device.wave as i64).into(),
                device.execution.word().into(),
                device.detail.clone().into(),
                device.begun.map(|time| time.0).into(),
                device.ended.map(|time| time.0).into(),
                ids.get(&device.id).map(|id| (*id).to_owned()).into(),
            ]
        };
        let columns =
            "INSERT INTO rollout_devices (rollout_id, device_id, wave, state, detail, begun, ended, command_id) VALUES";
        let rest = "ON CONFLICT (rollout_id, device_id) DO UPDATE SET state = excluded.state, detail = excluded.detail, \
                    begun = excluded.begun, ended = excluded.ended, \
                    command_id = COALESCE(excluded.command_id, rollout_devices.command_id)";
        insert_many(&mut tx, columns, 8, rest, changed.into_iter().map(row).collect()).await?;
        insert_commands(&mut tx, commands, now).await?;
        if let Some((actor, action)) = who {
            let detail = machine.reason.as_deref().unwrap_or_default();
            log(&mut tx, now, actor, action, &taken.id, detail).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

impl Selection {
    /// Whether putting it back would change anything.
    pub fn differs(&self, before: &(State, usize)) -> bool {
        self.rollout.devices != self.before || (self.rollout.state, self.rollout.wave) != *before
    }
}

fn execution(row: &AnyRow) -> Result<Execution, StoreError> {
    let word: String = row.try_get("state")?;
    Execution::from_word(&word).ok_or_else(|| StoreError::Content(format!("a device of a roll-out is {word:?}")))
}

fn rollout(row: &AnyRow) -> Result<RolloutRow, StoreError> {
    let read = |column: &str| read_json(row, column);
    let odd = |error: serde_json::Error| StoreError::Content(format!("a roll-out: {error}"));
    let word: String = row.try_get("state")?;
    Ok(RolloutRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        command: row.try_get("command")?,
        args: read("args")?,
        target: serde_json::from_value(read("target")?).map_err(odd)?,
        plan: serde_json::from_value(read("plan")?).map_err(odd)?,
        state: State::from_word(&word).ok_or_else(|| StoreError::Content(format!("a roll-out is {word:?}")))?,
        reason: row.try_get("reason")?,
        wave: row.try_get("wave")?,
        settled: row.try_get::<i64, _>("settled")? != 0,
        created: micros(row, "created")?,
        created_by: row.try_get("created_by")?,
        updated: micros(row, "updated")?,
        devices: HashMap::new(),
    })
}
