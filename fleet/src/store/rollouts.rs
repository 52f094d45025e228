//! Roll-outs in the store: the state of the machine in [`rollout`](crate::rollout), and what it wants sent.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value as Json, json};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::commands::{insert_commands, update_commands};
use super::tokens::log;
use super::{NewCommand, Store, StoreError, Value, insert_many, json as read_json, maybe_micros, micros};
use crate::rollout::{
    Changes, Counts, Due, Ended, Execution, Outcome, Plan, Rollout, RolloutRequest, State, Target, waves_of,
};
use crate::time::Micros;

/// A roll-out to be written down.
#[derive(Debug)]
pub struct NewRollout<'a> {
    /// Its id.
    pub id: &'a str,
    /// What was asked for.
    pub request: &'a RolloutRequest,
    /// Its devices, in the order of the waves.
    pub devices: &'a [i64],
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

/// A roll-out taken out to be changed, with what has come since it was changed last.
#[derive(Debug)]
pub struct Selection {
    /// The machine.
    pub rollout: Rollout,
    /// Devices in progress that have answered, or have timed out.
    pub due: Vec<Due>,
    /// The request, for payloads.
    pub args: Json,
    /// What is rolled out.
    pub command: String,
    /// As it was when it was read: whoever changes it first wins.
    updated: Micros,
    before: Rollout,
    /// Ids of the commands whose answers are in `due`, or came too late.
    news: Vec<String>,
    id: String,
}

const COLUMNS: &str =
    "id, name, command, args, target, plan, state, reason, wave, settled, created, created_by, updated";

/// What a roll-out's page lists first.
const LOOK_AT_ORDER: [Execution; 7] = [
    Execution::Failed,
    Execution::Rejected,
    Execution::TimedOut,
    Execution::InProgress,
    Execution::Succeeded,
    Execution::Queued,
    Execution::Canceled,
];

const ROLLOUT_DEVICES: &str = "SELECT d.site, d.device, r.wave, r.state, r.detail, r.begun, r.ended, t.arrived, t.parts \
                               FROM rollout_devices r JOIN devices d ON d.id = r.device_id \
                               LEFT JOIN transfers t ON t.command_id = r.command_id";

/// Devices in progress since `$2` or before.
const LATE: &str = "SELECT device_id, wave, begun FROM rollout_devices WHERE rollout_id = $1 AND state = 'in_progress' AND begun <= $2";

/// Final answers that no step has taken over yet.
const ANSWERED: &str = "SELECT c.id, c.state AS command_state, c.error_code, c.error_message, r.device_id, r.wave, r.state, r.begun \
                        FROM commands c JOIN rollout_devices r ON r.rollout_id = c.rollout_id AND r.device_id = c.device_id \
                        WHERE c.rollout_id = $1 AND c.news = 1";

/// The next devices of a wave.
const QUEUE: &str = "SELECT device_id FROM rollout_devices WHERE rollout_id = $1 AND state = 'queued' AND wave = $2 \
                     ORDER BY device_id LIMIT $3";

/// What a step reads beside the roll-out itself, and the index that each goes by.
#[cfg(test)]
pub(super) const STEP_QUERIES: [(&str, &str); 3] =
    [(LATE, "rollout_devices_begun"), (ANSWERED, "commands_news"), (QUEUE, "rollout_devices_state")];

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
        let NewRollout { id, request, devices, actor } = *new;
        let rollout = Rollout::new(request.plan.clone(), devices.len());
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
        let waves = waves_of(&request.plan.waves, devices.len());
        let queued = Execution::Queued.word();
        let row =
            |(device, wave): (&i64, usize)| vec![id.into(), (*device).into(), (wave as i64).into(), queued.into()];
        let columns = "INSERT INTO rollout_devices (rollout_id, device_id, wave, state) VALUES";
        insert_many(&mut tx, columns, 4, "", devices.iter().zip(waves).map(row).collect::<Vec<Vec<Value>>>()).await?;
        put_counts(&mut tx, id, &rollout.waves, &[]).await?;
        let detail = format!("{} {:?} to {} devices", request.command, request.name, devices.len());
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
        let sql = "SELECT state, CAST(SUM(devices) AS BIGINT) AS n FROM rollout_waves WHERE rollout_id = $1 AND devices > 0 \
                   GROUP BY state";
        for count in sqlx::query(sql).bind(row.id.clone()).fetch_all(&self.pool).await? {
            row.devices.insert(count.try_get("state")?, count.try_get("n")?);
        }
        Ok(row)
    }

    /// How many devices of each wave are how far, by wave.
    pub async fn rollout_waves(&self, id: &str) -> Result<Vec<WaveCount>, StoreError> {
        let sql =
            "SELECT wave, state, devices AS n FROM rollout_waves WHERE rollout_id = $1 AND devices > 0 ORDER BY wave";
        let rows = sqlx::query(sql).bind(id.to_owned()).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Ok(WaveCount { wave: row.try_get("wave")?, state: execution(row)?, devices: row.try_get("n")? }))
            .collect()
    }

    /// All its devices, by wave and name.
    pub async fn rollout_devices(&self, id: &str) -> Result<Vec<RolloutDeviceRow>, StoreError> {
        let sql = format!("{ROLLOUT_DEVICES} WHERE r.rollout_id = $1 ORDER BY r.wave, d.site, d.device");
        let rows = sqlx::query(&sql).bind(id.to_owned()).fetch_all(&self.pool).await?;
        rows.iter().map(rollout_device).collect()
    }

    /// The first `limit` of its devices: those that failed, then those in progress, then the others.
    pub async fn rollout_devices_to_look_at(&self, id: &str, limit: i64) -> Result<Vec<RolloutDeviceRow>, StoreError> {
        // One state after the other, each in the order of its index: sorting all devices for the first hundred takes longer the more there are.
        let sql =
            format!("{ROLLOUT_DEVICES} WHERE r.rollout_id = $1 AND r.state = $2 ORDER BY r.wave, r.device_id LIMIT $3");
        let mut found = Vec::new();
        for state in LOOK_AT_ORDER {
            let left = limit - found.len() as i64;
            if left <= 0 {
                break;
            }
            let query = sqlx::query(&sql).bind(id.to_owned()).bind(state.word()).bind(left);
            for row in query.fetch_all(&self.pool).await? {
                found.push(rollout_device(&row)?);
            }
        }
        Ok(found)
    }

    /// Ids of those that are not settled.
    pub async fn open_rollouts(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT id FROM rollouts WHERE settled = 0 ORDER BY created")
            .fetch_all(&self.pool)
            .await?)
    }

    /// Takes one out to be changed. Reads what has come since it was changed last, not all of its devices.
    pub async fn take_rollout(&self, id: &str, now: Micros) -> Result<Option<Selection>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE id = $1");
        let Some(row) = sqlx::query(&sql).bind(id.to_owned()).fetch_optional(&self.pool).await? else {
            return Ok(None);
        };
        let row = rollout(&row)?;
        let wave = usize::try_from(row.wave).unwrap_or(0);
        let waves = self.counts(id).await?;
        let machine = Rollout { plan: row.plan, state: row.state, reason: row.reason, wave, waves };
        let (mut due, mut news) = (HashMap::new(), Vec::new());
        let late = machine.timed_out_before(now);
        for row in sqlx::query(LATE).bind(id.to_owned()).bind(late.0).fetch_all(&self.pool).await? {
            let device = device_due(&row, None)?;
            due.insert(device.device, device);
        }
        for row in sqlx::query(ANSWERED).bind(id.to_owned()).fetch_all(&self.pool).await? {
            news.push(row.try_get("id")?);
            if execution(&row)? == Execution::InProgress {
                let device = device_due(&row, answered(&row)?)?;
                due.insert(device.device, device);
            }
        }
        Ok(Some(Selection {
            before: machine.clone(),
            rollout: machine,
            due: due.into_values().collect(),
            args: row.args,
            command: row.command,
            updated: row.updated,
            news,
            id: row.id,
        }))
    }

    async fn counts(&self, id: &str) -> Result<Vec<Counts>, StoreError> {
        let mut waves = Vec::<Counts>::new();
        for count in self.rollout_waves(id).await? {
            let wave = usize::try_from(count.wave).unwrap_or(0);
            waves.resize(waves.len().max(wave + 1), Counts::default());
            if let Some(counts) = waves.get_mut(wave) {
                counts.set(count.state, usize::try_from(count.devices).unwrap_or(0));
            }
        }
        Ok(waves)
    }

    /// The devices that are to begin: `begin` of [`Changes`].
    pub async fn rollout_queue(&self, taken: &Selection, changes: &Changes) -> Result<Vec<i64>, StoreError> {
        let Some((wave, most)) = changes.begin else { return Ok(Vec::new()) };
        let query = sqlx::query_scalar(QUEUE).bind(taken.id.clone()).bind(wave as i64).bind(most as i64);
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// Puts it back; after a step with what that changed, and the commands for devices that begin. `false`, and nothing done, where somebody
    /// else changed it meanwhile.
    pub async fn put_rollout(
        &self,
        taken: &Selection,
        step: Option<(&Changes, &[NewCommand])>,
        who: Option<(&str, &str)>,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let (machine, id) = (&taken.rollout, taken.id.as_str());
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
            .bind(id.to_owned())
            .bind(taken.updated.0)
            .execute(&mut *tx)
            .await?
            .rows_affected()
            == 1;
        if !done {
            return Ok(false);
        }
        if let Some((changes, commands)) = step {
            put_devices(&mut tx, id, changes, commands, now).await?;
            insert_commands(&mut tx, commands, now).await?;
            update_commands(&mut tx, "news = $1", 0, &taken.news).await?;
        }
        if machine.state.is_over() && !taken.before.state.is_over() {
            let sql =
                "UPDATE rollout_devices SET state = 'canceled', ended = $1 WHERE rollout_id = $2 AND state = 'queued'";
            sqlx::query(sql).bind(now.0).bind(id.to_owned()).execute(&mut *tx).await?;
        }
        put_counts(&mut tx, id, &machine.waves, &taken.before.waves).await?;
        if let Some((actor, action)) = who {
            let detail = machine.reason.as_deref().unwrap_or_default();
            log(&mut tx, now, actor, action, id, detail).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// Devices that ended, and those that begin with these commands. An upsert of rows that are all there: many at a time.
async fn put_devices(
    tx: &mut sqlx::AnyConnection,
    id: &str,
    changes: &Changes,
    commands: &[NewCommand],
    now: Micros,
) -> Result<(), sqlx::Error> {
    let ended = |ended: &Ended| {
        vec![
            id.into(),
            ended.device.into(),
            (ended.wave as i64).into(),
            ended.outcome.execution.word().into(),
            ended.outcome.detail.clone().into(),
            ended.begun.map(|time| time.0).into(),
            now.into(),
            None::<String>.into(),
        ]
    };
    let wave = changes.begin.map_or(0, |(wave, _)| wave as i64);
    let begun = |command: &NewCommand| {
        vec![
            id.into(),
            command.device.into(),
            wave.into(),
            Execution::InProgress.word().into(),
            None::<String>.into(),
            now.into(),
            None::<i64>.into(),
            command.id.as_str().into(),
        ]
    };
    let mut rows: Vec<Vec<Value>> = changes.ended.iter().map(ended).collect();
    rows.extend(commands.iter().map(begun));
    let columns =
        "INSERT INTO rollout_devices (rollout_id, device_id, wave, state, detail, begun, ended, command_id) VALUES";
    let rest = "ON CONFLICT (rollout_id, device_id) DO UPDATE SET state = excluded.state, detail = excluded.detail, \
                begun = excluded.begun, ended = excluded.ended, \
                command_id = COALESCE(excluded.command_id, rollout_devices.command_id)";
    insert_many(tx, columns, 8, rest, rows).await?;
    Ok(())
}

/// The counts that are not what they were `before`.
async fn put_counts(
    tx: &mut sqlx::AnyConnection,
    id: &str,
    waves: &[Counts],
    before: &[Counts],
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for (wave, counts) in waves.iter().enumerate() {
        let old = before.get(wave).copied().unwrap_or_default();
        for execution in Execution::ALL.into_iter().filter(|execution| counts.of(*execution) != old.of(*execution)) {
            let devices = counts.of(execution) as i64;
            rows.push(vec![id.into(), (wave as i64).into(), execution.word().into(), devices.into()]);
        }
    }
    let columns = "INSERT INTO rollout_waves (rollout_id, wave, state, devices) VALUES";
    let rest = "ON CONFLICT (rollout_id, wave, state) DO UPDATE SET devices = excluded.devices";
    insert_many(tx, columns, 4, rest, rows).await?;
    Ok(())
}

impl Selection {
    /// Whether putting it back would change anything.
    pub fn differs(&self) -> bool {
        self.rollout != self.before || !self.news.is_empty()
    }

    /// Whether another wave has begun, or its state is another one.
    pub fn has_moved(&self) -> bool {
        (self.rollout.state, self.rollout.wave) != (self.before.state, self.before.wave)
    }
}

fn device_due(row: &AnyRow, outcome: Option<Outcome>) -> Result<Due, StoreError> {
    Ok(Due {
        device: row.try_get("device_id")?,
        wave: usize::try_from(row.try_get::<i64, _>("wave")?).unwrap_or(0),
        begun: maybe_micros(row, "begun")?,
        outcome,
    })
}

fn answered(row: &AnyRow) -> Result<Option<Outcome>, StoreError> {
    let word: String = row.try_get("command_state")?;
    let Some(execution) = Execution::from_word(&word).filter(|execution| execution.is_final()) else { return Ok(None) };
    let (code, message): (Option<String>, Option<String>) = (row.try_get("error_code")?, row.try_get("error_message")?);
    let detail = code.map(|code| format!("{code}: {}", message.unwrap_or_default()));
    Ok(Some(Outcome { execution, detail }))
}

fn rollout_device(row: &AnyRow) -> Result<RolloutDeviceRow, StoreError> {
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
