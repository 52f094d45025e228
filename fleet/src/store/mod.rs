//! The store: SQLite by default, PostgreSQL by its URL, with one set of queries for both.
//!
//! Invariants: a query is written once, with `$n` for parameters and types that both databases have (`BIGINT`, `TEXT`); fractions are
//! kept as whole thousandths, because a NULL of a floating type has another width than its values in the driver. What a function
//! returns as done is on disk (SQLite runs with `synchronous = FULL`). Knows the contract's types, no MQTT and no HTTP.

mod bundles;
mod commands;
mod instances;
mod read;
mod rollouts;
mod tokens;
mod write;

use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationSource, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Row, Transaction};

pub use bundles::{Added, BundleRow, PartsToSend};
pub use commands::{CommandRow, CommandState, NewCommand, ToSend};
pub use instances::{Abandoned, Registration};
pub use read::{
    BootRange, DeviceFilter, DeviceId, DeviceRow, EventRow, GapRow, MinuteCount, Overview, SiteRow, TelemetryRow,
    UnreadableRow,
};
pub use rollouts::{NewRollout, RolloutDeviceRow, RolloutRow, Selection, WaveCount};
pub use tokens::{AuditEntry, Role, TokenRow};
pub use write::{Batch, EventIn, GapIn, InfoIn, Names, StatusIn, Stored, TelemetryIn};

use crate::time::Micros;

/// The store's file where no other is named.
pub const DEFAULT_DATABASE: &str = "visaged-fleet.db";

const SCHEMA: &str = include_str!("schema.sql");
const BUNDLES: &str = include_str!("bundles.sql");
const NEWS: &str = include_str!("news.sql");

/// How long a writer waits for another one of SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

const MIGRATION_ATTEMPTS: u32 = 5;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The setting cannot be read.
    #[error(
        "database {0:?}: not understood; give the path of an SQLite file, or postgres://USER:PASSWORD@HOST/DATABASE"
    )]
    Setting(String),
    /// No connection.
    #[error("database {place}: cannot be opened: {source}; is it there, and may this user write it?")]
    Open {
        /// Which, without its password.
        place: String,
        /// What the driver said.
        source: sqlx::Error,
    },
    /// The tables could not be brought up to this version.
    #[error(
        "database {place}: its tables cannot be brought up to this version: {source}; was it used by a later version?"
    )]
    Migrate {
        /// Which, without its password.
        place: String,
        /// What went wrong.
        source: Box<sqlx::migrate::MigrateError>,
    },
    /// A query failed.
    #[error("database: {0}; it will be tried again where nothing is lost by it")]
    Query(#[from] sqlx::Error),
    /// What was read makes no sense.
    #[error("database: {0}; was it changed by hand?")]
    Content(String),
}

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL URL, with what it says of user and password.
    Postgres(String),
}

impl FromStr for Place {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => Ok(Self::Postgres(text.to_owned())),
            Some(("sqlite", rest)) if !rest.is_empty() => Ok(Self::Sqlite(rest.into())),
            None if !text.is_empty() => Ok(Self::Sqlite(text.into())),
            _ => Err(StoreError::Setting(text.to_owned())),
        }
    }
}

impl Place {
    /// For people: without a password.
    pub fn shown(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, after))) => format!("{scheme}://{after}"),
                _ => url.clone(),
            },
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => {
                // `?`, `#` and `%` of a path would be read as parts of the URL.
                let path = path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
                format!("sqlite://{path}?mode=rwc")
            }
            Self::Postgres(url) => url.clone(),
        }
    }
}

/// The open store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
}

impl Store {
    /// Opens it, and brings its tables up to this version.
    ///
    /// # Errors
    /// [`StoreError`] where there is no database, or one of a later version.
    pub async fn open(place: &Place) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let dialect = match place {
            Place::Sqlite(_) => Dialect::Sqlite,
            Place::Postgres(_) => Dialect::Postgres,
        };
        let refused = |source| StoreError::Open { place: place.shown(), source };
        let options = AnyConnectOptions::from_str(&place.url()).map_err(refused)?.disable_statement_logging();
        let pool = AnyPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(30))
            .after_connect(move |connection, _| Box::pin(prepare(connection, dialect)))
            .connect_with(options)
            .await
            .map_err(refused)?;
        let store = Self { pool, dialect };
        store.migrate(place).await?;
        Ok(store)
    }

    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Ends its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The clock that leases and heartbeats are measured by: the database's own, where processes on several machines share it.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn now(&self) -> Result<Micros, StoreError> {
        match self.dialect {
            Dialect::Sqlite => Ok(Micros::now()),
            Dialect::Postgres => {
                let sql = "SELECT CAST(extract(epoch from clock_timestamp()) * 1000000 AS BIGINT)";
                Ok(Micros(sqlx::query_scalar(sql).fetch_one(&self.pool).await?))
            }
        }
    }

    async fn migrate(&self, place: &Place) -> Result<(), StoreError> {
        let refused = |source| StoreError::Migrate { place: place.shown(), source: Box::new(source) };
        let migrator = Migrator::new(Steps(self.dialect)).await.map_err(refused)?;
        let mut attempt = 1;
        // Several processes may start at once on an empty SQLite file, which has no lock for that.
        while let Err(error) = migrator.run(&self.pool).await {
            if attempt == MIGRATION_ATTEMPTS {
                return Err(refused(error));
            }
            attempt += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if self.dialect == Dialect::Postgres {
            self.use_timescale().await?;
        }
        Ok(())
    }

    /// Where the extension has been created in this database, telemetry becomes a hypertable in chunks of a day.
    async fn use_timescale(&self) -> Result<(), StoreError> {
        let sql = "SELECT COUNT(*) FROM pg_extension WHERE extname = 'timescaledb'";
        let there: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        if there == 0 {
            return Ok(());
        }
        let sql = "SELECT COUNT(create_hypertable('telemetry', 'received', chunk_time_interval => 86400000000, \
                   if_not_exists => TRUE, migrate_data => TRUE))";
        match sqlx::query(sql).execute(&self.pool).await {
            Ok(_) => tracing::info!("telemetry is kept in a Timescale hypertable"),
            Err(error) => tracing::warn!(%error, "telemetry stays an ordinary table: Timescale refused it"),
        }
        Ok(())
    }

    /// A transaction for writing; in SQLite it has the write lock from its start, so that it cannot fail for having read first.
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(match self.dialect {
            Dialect::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Dialect::Postgres => self.pool.begin().await?,
        })
    }
}

async fn prepare(connection: &mut AnyConnection, dialect: Dialect) -> Result<(), sqlx::Error> {
    if dialect == Dialect::Sqlite {
        let busy = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
        for pragma in
            [busy.as_str(), "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA cache_size = -16000"]
        {
            sqlx::query(pragma).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The migrations, in the words of a database.
#[derive(Debug)]
struct Steps(Dialect);

impl MigrationSource<'static> for Steps {
    fn resolve(
        self,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Migration>, sqlx::error::BoxDynError>> + Send + 'static>> {
        let (id, without_rowid) = match self.0 {
            Dialect::Sqlite => ("INTEGER PRIMARY KEY", "WITHOUT ROWID"),
            Dialect::Postgres => ("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", ""),
        };
        let steps = [(1, "tables", SCHEMA), (2, "bundles", BUNDLES), (3, "news of roll-outs", NEWS)];
        let steps = steps.into_iter().map(|(version, name, sql)| {
            let sql = sql.replace("{ID}", id).replace("{WITHOUT_ROWID}", without_rowid);
            Migration::new(version, name.into(), MigrationType::Simple, sql.into(), false)
        });
        let steps = steps.collect();
        Box::pin(async move { Ok(steps) })
    }
}

/// A parameter; its type is known even where it is NULL.
#[derive(Clone, Debug)]
enum Value {
    Int(Option<i64>),
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Micros> for Value {
    fn from(value: Micros) -> Self {
        Self::Int(Some(value.0))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

type Query<'q> = sqlx::query::Query<'q, Any, sqlx::any::AnyArguments<'q>>;

fn bind<'q>(query: Query<'q>, value: Value) -> Query<'q> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
    }
}

/// Rows a statement: powers of four, so that few statements are prepared.
const CHUNKS: [usize; 5] = [256, 64, 16, 4, 1];

/// Inserts `rows`, each of `width` values: `insert` up to VALUES, `rest` after it. Gives how many rows were changed.
async fn insert_many(
    connection: &mut AnyConnection,
    insert: &str,
    width: usize,
    rest: &str,
    mut rows: Vec<Vec<Value>>,
) -> Result<u64, sqlx::Error> {
    let mut changed = 0;
    while !rows.is_empty() {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len()).unwrap_or(1);
        let left = rows.split_off(size);
        let mut sql = String::with_capacity(insert.len() + rest.len() + size * width * 6);
        sql.push_str(insert);
        for row in 0..size {
            sql.push_str(if row == 0 { " (" } else { ",(" });
            for column in 1..=width {
                let comma = if column == 1 { "" } else { "," };
                sql.push_str(&format!("{comma}${}", row * width + column));
            }
            sql.push(')');
        }
        sql.push(' ');
        sql.push_str(rest);
        let query = rows.into_iter().flatten().fold(sqlx::query(&sql), bind);
        changed += query.execute(&mut *connection).await?.rows_affected();
        rows = left;
    }
    Ok(changed)
}

/// Rows whose pair of keys is among `keys`: `select` up to IN.
async fn select_many(
    connection: &mut AnyConnection,
    select: &str,
    mut keys: Vec<[Value; 2]>,
) -> Result<Vec<AnyRow>, sqlx::Error> {
    let mut found = Vec::with_capacity(keys.len());
    while !keys.is_empty() {
        let size = CHUNKS.into_iter().find(|size| *size <= keys.len()).unwrap_or(1);
        let left = keys.split_off(size);
        let places: Vec<_> = (0..size).map(|at| format!("(${},${})", 2 * at + 1, 2 * at + 2)).collect();
        let sql = format!("{select} (VALUES {})", places.join(","));
        let query = keys.into_iter().flatten().fold(sqlx::query(&sql), bind);
        found.extend(query.fetch_all(&mut *connection).await?);
        keys = left;
    }
    Ok(found)
}

fn micros(row: &AnyRow, column: &str) -> Result<Micros, sqlx::Error> {
    Ok(Micros(row.try_get::<i64, _>(column)?))
}

fn maybe_micros(row: &AnyRow, column: &str) -> Result<Option<Micros>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Micros))
}

fn json(row: &AnyRow, column: &str) -> Result<serde_json::Value, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    text.map_or(Ok(serde_json::Value::Null), |text| {
        serde_json::from_str(&text).map_err(|error| StoreError::Content(format!("{column} is no JSON: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Execution, Outcome};

    /// Brings a file to the tables that version had.
    async fn as_of(place: &Place, version: usize) -> AnyPool {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).connect(&place.url()).await.unwrap();
        let mut migrator = Migrator::new(Steps(Dialect::Sqlite)).await.unwrap();
        migrator.migrations.to_mut().truncate(version);
        migrator.run(&pool).await.unwrap();
        pool
    }

    #[test]
    fn a_roll_out_begun_by_the_version_before_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join("fleet.db"));
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let pool = as_of(&place, 2).await;
            for sql in [
                "INSERT INTO rollouts (id, name, command, args, target, plan, state, wave, created, created_by, updated) VALUES \
                 ('r', 'n', 'restart', '{}', '{}', '{\"waves\": [\"2\"], \"timeout_s\": 600}', 'running', 0, 1, 'ops', 1)",
                "INSERT INTO rollout_devices (rollout_id, device_id, wave, state, command_id, begun) VALUES \
                 ('r', 1, 0, 'succeeded', 'r.1', 1), ('r', 2, 0, 'in_progress', 'r.2', 1), ('r', 3, 1, 'queued', NULL, NULL)",
                "INSERT INTO commands (id, device_id, name, payload, state, created, not_after, created_by) VALUES \
                 ('r.1', 1, 'restart', '{}', 'succeeded', 1, 9, 'roll-out r'), ('r.2', 2, 'restart', '{}', 'succeeded', 1, 9, 'roll-out r')",
            ] {
                sqlx::query(sql).execute(&pool).await.unwrap();
            }
            pool.close().await;
            let store = Store::open(&place).await.unwrap();
            let taken = store.take_rollout("r", Micros(2)).await.unwrap().unwrap();
            let outcome = Outcome { execution: Execution::Succeeded, detail: None };
            let due: Vec<_> = taken.due.iter().map(|due| (due.device, due.outcome.clone())).collect();
            assert_eq!(due, [(2, Some(outcome))]);
            crate::serve::drive(&store, "r", Micros(2)).await.unwrap();
            let row = store.rollout("r").await.unwrap().unwrap();
            assert_eq!((row.wave, row.devices["succeeded"], row.devices["in_progress"]), (1, 2, 1));
            store.close().await;
        });
    }

    /// However many devices and roll-outs there are: a table that is read from end to end would stand in the plan as SCAN.
    #[test]
    fn a_step_of_a_roll_out_finds_what_it_wants_by_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join("fleet.db"));
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = Store::open(&place).await.unwrap();
            for (sql, index) in rollouts::STEP_QUERIES {
                // Parameters may stay unbound: the plan is made without them.
                let rows = sqlx::query(&format!("EXPLAIN QUERY PLAN {sql}")).fetch_all(&store.pool).await.unwrap();
                let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
                assert!(!plan.iter().any(|step| step.contains("SCAN")), "{sql}: {plan:?}");
                assert!(plan.iter().any(|step| step.contains(index)), "{sql}: {plan:?}");
            }
            store.close().await;
        });
    }
}
