//! Processes that serve: who is there, whose MQTT session was left behind, who leads.

use sqlx::Row;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::time::Micros;

/// This process among those that serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The instance's name.
    pub name: String,
    /// This run of it.
    pub run: String,
    /// The id of its MQTT session.
    pub client_id: String,
}

/// The MQTT session of an instance whose process has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// The instance's name.
    pub name: String,
    /// The id of its MQTT session.
    pub client_id: String,
}

impl Store {
    /// Takes the name for this run. Whoever had it before finds out at its next heartbeat; its MQTT session goes on under this run, unless another
    /// instance is about to take it over.
    ///
    /// # Errors
    /// [`StoreError::Query`], as all that follow.
    pub async fn register(&self, name: &str, now: Micros) -> Result<Registration, StoreError> {
        let run = Uuid::new_v4().to_string();
        let fresh = format!("visaged-fleet-{name}-{}", &run[..8]);
        let sql = "INSERT INTO instances (name, run, client_id, heartbeat) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE SET \
                   run = excluded.run, heartbeat = excluded.heartbeat, \
                   client_id = CASE WHEN instances.adopter IS NULL THEN instances.client_id ELSE excluded.client_id END, \
                   adopter = NULL, adopted = NULL";
        let query = sqlx::query(sql).bind(name.to_owned()).bind(run.clone()).bind(fresh).bind(now.0);
        query.execute(&self.pool).await?;
        let sql = "SELECT client_id FROM instances WHERE name = $1";
        let row = sqlx::query(sql).bind(name.to_owned()).fetch_one(&self.pool).await?;
        Ok(Registration { name: name.to_owned(), run, client_id: row.try_get("client_id")? })
    }

    /// Says that this run is there. `false` where the name now is another run's, or its session is being taken over.
    pub async fn heartbeat(&self, registration: &Registration, now: Micros) -> Result<bool, StoreError> {
        let sql =
            "UPDATE instances SET heartbeat = $1 WHERE name = $2 AND run = $3 AND client_id = $4 AND adopter IS NULL";
        let query = sqlx::query(sql)
            .bind(now.0)
            .bind(registration.name.clone())
            .bind(registration.run.clone())
            .bind(registration.client_id.clone());
        Ok(query.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Whether the name is another run's.
    pub async fn is_replaced(&self, registration: &Registration) -> Result<bool, StoreError> {
        let sql = "SELECT run FROM instances WHERE name = $1";
        let run: Option<String> =
            sqlx::query_scalar(sql).bind(registration.name.clone()).fetch_optional(&self.pool).await?;
        Ok(run.is_some_and(|run| run != registration.run))
    }

    /// Takes over one session whose instance was last heard before `lapsed`; or whose adopter started before that and has not come to an end.
    pub async fn adopt(&self, me: &Registration, lapsed: Micros, now: Micros) -> Result<Option<Abandoned>, StoreError> {
        let sql = "SELECT name, client_id FROM instances WHERE name <> $1 AND heartbeat < $2 AND (adopter IS NULL OR adopted < $2) LIMIT 1";
        let query = sqlx::query(sql).bind(me.name.clone()).bind(lapsed.0);
        let Some(row) = query.fetch_optional(&self.pool).await? else { return Ok(None) };
        let found = Abandoned { name: row.try_get("name")?, client_id: row.try_get("client_id")? };
        let sql = "UPDATE instances SET adopter = $1, adopted = $2 WHERE name = $3 AND client_id = $4 AND heartbeat < $5 \
                   AND (adopter IS NULL OR adopted < $5)";
        let query = sqlx::query(sql)
            .bind(me.run.clone())
            .bind(now.0)
            .bind(found.name.clone())
            .bind(found.client_id.clone())
            .bind(lapsed.0);
        Ok((query.execute(&self.pool).await?.rows_affected() == 1).then_some(found))
    }

    /// The session has been emptied and ended.
    pub async fn adopted(&self, me: &Registration, session: &Abandoned) -> Result<(), StoreError> {
        let sql = "DELETE FROM instances WHERE name = $1 AND client_id = $2 AND adopter = $3";
        let query = sqlx::query(sql).bind(session.name.clone()).bind(session.client_id.clone()).bind(me.run.clone());
        query.execute(&self.pool).await?;
        Ok(())
    }

    /// This run's instance has ended its session, or has none that another could empty.
    pub async fn unregister(&self, me: &Registration) -> Result<(), StoreError> {
        let sql = "DELETE FROM instances WHERE name = $1 AND run = $2";
        sqlx::query(sql).bind(me.name.clone()).bind(me.run.clone()).execute(&self.pool).await?;
        Ok(())
    }

    /// Names of instances heard since `since`.
    pub async fn instances(&self, since: Micros) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT name FROM instances WHERE heartbeat >= $1 ORDER BY name";
        Ok(sqlx::query_scalar(sql).bind(since.0).fetch_all(&self.pool).await?)
    }

    /// Takes or keeps the lease `name` until `until`, if nobody else holds it now.
    pub async fn lease(&self, name: &str, holder: &str, now: Micros, until: Micros) -> Result<bool, StoreError> {
        let sql = "INSERT INTO leases (name, holder, until) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET \
                   holder = excluded.holder, until = excluded.until WHERE leases.holder = excluded.holder OR leases.until < $4";
        let query = sqlx::query(sql).bind(name.to_owned()).bind(holder.to_owned()).bind(until.0).bind(now.0);
        Ok(query.execute(&self.pool).await?.rows_affected() == 1)
    }
}
