//! What an operator asks for, checked at the edge.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::engine::Plan;
use crate::contract::{COMMAND_SCHEMA, Command};
use crate::time::Micros;

/// Commands that can be rolled out.
pub const ROLLOUT_COMMANDS: [&str; 4] = ["config.set", "models.install", "models.rollback", "restart"];

/// `config.set` is confirmed by the device after this long, unless told otherwise.
const DEFAULT_CONFIRM_S: u64 = 60;

/// How long after its confirmation a device may take to say so.
const ANSWER_MARGIN_S: u64 = 30;

const LONGEST_TIMEOUT_S: u32 = 90 * 24 * 3600;

/// Which devices: those that all that is given holds of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Of this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// With this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// So many in a hundred of them, drawn by lot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub share_percent: Option<u8>,
}

/// A roll-out to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// For people.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// One of `config.set`, `models.install`, `models.rollback`, `restart`.
    pub command: String,
    /// What the command takes.
    #[schema(value_type = Object)]
    pub args: Value,
    /// Which devices; an empty object means all.
    #[serde(default, deserialize_with = "from_object")]
    pub target: Target,
    /// Waves, abort threshold, time-out.
    #[serde(deserialize_with = "from_object")]
    pub plan: Plan,
}

/// What is wrong with a [`RolloutRequest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct InvalidRollout {
    /// Where.
    pub key: &'static str,
    /// What, and what to give instead.
    pub reason: String,
}

/// Derived readers take an array for an object, too: `"target": []` would mean all devices.
fn from_object<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let object = serde_json::Map::deserialize(deserializer)?;
    serde_json::from_value(Value::Object(object)).map_err(serde::de::Error::custom)
}

fn invalid(key: &'static str, reason: impl Into<String>) -> InvalidRollout {
    InvalidRollout { key, reason: reason.into() }
}

impl RolloutRequest {
    /// Finds what devices would reject, before any device is asked.
    ///
    /// # Errors
    /// [`InvalidRollout`] names the first thing that is wrong.
    pub fn check(&self, now: Micros) -> Result<(), InvalidRollout> {
        if self.name.trim().is_empty() || self.name.len() > 200 {
            return Err(invalid("name", "give it a name of up to 200 bytes"));
        }
        if !ROLLOUT_COMMANDS.contains(&self.command.as_str()) {
            return Err(invalid(
                "command",
                format!("{:?} cannot be rolled out; one of {}", self.command, ROLLOUT_COMMANDS.join(", ")),
            ));
        }
        if self.target.share_percent.is_some_and(|share| !(1..=100).contains(&share)) {
            return Err(invalid("target.share_percent", "want 1 to 100"));
        }
        if self.plan.abort_threshold_percent > 100 {
            return Err(invalid("plan.abort_threshold_percent", "want 0 to 100"));
        }
        if self.plan.waves.len() > 100 {
            return Err(invalid("plan.waves", "at most 100 waves"));
        }
        if !(1..=LONGEST_TIMEOUT_S).contains(&self.plan.timeout_s) {
            return Err(invalid("plan.timeout_s", format!("want 1 to {LONGEST_TIMEOUT_S} seconds")));
        }
        if self.plan.max_in_progress == Some(0) {
            return Err(invalid("plan.max_in_progress", "0 would never begin; leave it out for no limit"));
        }
        let Some(args) = self.args.as_object() else { return Err(invalid("args", "want a JSON object")) };
        match self.command.as_str() {
            "config.set" => self.check_config(args),
            "models.install" => check_install(args, now),
            "models.rollback" => text(args, "args.task", "task").map(drop),
            _ => Ok(()),
        }
    }

    fn check_config(&self, args: &serde_json::Map<String, Value>) -> Result<(), InvalidRollout> {
        match (args.get("set"), args.get("toml")) {
            (Some(Value::Object(set)), None) if !set.is_empty() => {}
            (None, Some(Value::String(_))) => {}
            _ => {
                return Err(invalid(
                    "args",
                    "config.set wants either \"set\" with settings, or \"toml\" with a whole file",
                ));
            }
        }
        let confirm = args.get("confirm_after_s").map_or(Some(DEFAULT_CONFIRM_S), Value::as_u64);
        let Some(confirm @ 10..=600) = confirm else {
            return Err(invalid("args.confirm_after_s", "want 10 to 600 seconds"));
        };
        if u64::from(self.plan.timeout_s) < confirm + ANSWER_MARGIN_S {
            let reason = format!("a device confirms after {confirm} s: want at least {} s", confirm + ANSWER_MARGIN_S);
            return Err(invalid("plan.timeout_s", reason));
        }
        Ok(())
    }

    /// The devices to be reached out of `found`, in the order of their waves: by lot, and the same whenever asked.
    pub fn draw(&self, rollout: &str, mut found: Vec<i64>) -> Vec<i64> {
        found.sort_by_cached_key(|id| <[u8; 32]>::from(Sha256::digest(format!("{rollout}/{id}"))));
        if let Some(share) = self.target.share_percent {
            found.truncate((found.len() * usize::from(share)).div_ceil(100));
        }
        found
    }
}

/// A command as it goes to a device; `None`: valid whenever it comes.
pub(crate) fn payload(id: &str, args: &Value, not_after: Option<Micros>) -> String {
    let command = Command { schema: COMMAND_SCHEMA.into(), id: id.into(), args: args.clone(), not_after };
    json!(command).to_string()
}

fn text<'a>(
    args: &'a serde_json::Map<String, Value>,
    key: &'static str,
    name: &str,
) -> Result<&'a str, InvalidRollout> {
    args.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).ok_or_else(|| invalid(key, "want a text"))
}

fn check_install(args: &serde_json::Map<String, Value>, now: Micros) -> Result<(), InvalidRollout> {
    text(args, "args.task", "task")?;
    text(args, "args.version", "version")?;
    text(args, "args.signature", "signature")?;
    if args.get("chunks").is_none() {
        let url = text(args, "args.url", "url")?;
        if !url.starts_with("https://") && !url.starts_with("file:///") {
            return Err(invalid(
                "args.url",
                "want https:// or file:///, or the name of a hosted bundle in args.bundle",
            ));
        }
    }
    let hash = text(args, "args.sha256", "sha256")?;
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(invalid("args.sha256", "want 64 hexadecimal digits in lower case"));
    }
    if args.get("size").and_then(Value::as_u64).is_none_or(|size| size == 0) {
        return Err(invalid("args.size", "want the archive's size in bytes"));
    }
    let expires: Option<Micros> = args.get("expires").cloned().and_then(|time| serde_json::from_value(time).ok());
    match expires {
        Some(expires) if expires > now => Ok(()),
        Some(_) => Err(invalid("args.expires", "is over already")),
        None => Err(invalid("args.expires", "want a time such as 2027-01-31T00:00:00Z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: &str, args: Value) -> RolloutRequest {
        serde_json::from_value(json!({
            "name": "n", "command": command, "args": args, "plan": {"waves": ["1", "10%"], "timeout_s": 300},
        }))
        .unwrap()
    }

    fn key(request: &RolloutRequest) -> &'static str {
        request.check(Micros(0)).map_or_else(|error| error.key, |()| "")
    }

    #[test]
    fn a_list_in_the_place_of_a_target_is_refused_and_does_not_mean_all_devices() {
        let asked = |target: Value| {
            let body = json!({"name": "n", "command": "restart", "args": {}, "target": target, "plan": {"waves": [], "timeout_s": 60}});
            serde_json::from_value::<RolloutRequest>(body)
        };
        assert_eq!(asked(json!({})).unwrap().target, Target::default());
        let refused = asked(json!([])).unwrap_err().to_string();
        assert!(refused.contains("expected a map"), "{refused}");
    }

    #[test]
    fn what_devices_would_reject_is_refused_before_any_is_asked() {
        assert_eq!(key(&request("ping", json!({}))), "command");
        assert_eq!(key(&request("config.set", json!({"set": {"camera.fps": 15}}))), "");
        assert_eq!(key(&request("config.set", json!({"set": {}}))), "args");
        assert_eq!(key(&request("config.set", json!({"set": {"a": 1}, "toml": ""}))), "args");
        assert_eq!(key(&request("config.set", json!({"toml": "", "confirm_after_s": 5}))), "args.confirm_after_s");
        assert_eq!(key(&request("config.set", json!({"toml": "", "confirm_after_s": 280}))), "plan.timeout_s");
        let install = json!({"task": "derl", "version": "2", "url": "https://x/y.tar", "sha256": "0".repeat(64), "size": 9,
            "signature": "s", "expires": "2027-01-01T00:00:00Z"});
        assert_eq!(key(&request("models.install", install.clone())), "");
        for (member, value) in [
            ("url", json!("http://x")),
            ("sha256", json!("F".repeat(64))),
            ("size", json!(0)),
            ("expires", json!("1960-01-01T00:00:00Z")),
            ("task", Value::Null),
            ("signature", Value::Null),
        ] {
            let mut broken = install.clone();
            broken[member] = value;
            assert_eq!(key(&request("models.install", broken)), format!("args.{member}"));
        }
    }

    #[test]
    fn a_share_is_drawn_the_same_each_time_and_another_for_another_rollout() {
        let mut request = request("restart", json!({}));
        request.target.share_percent = Some(10);
        let draw = |rollout| request.draw(rollout, (0..1000).collect());
        assert_eq!(draw("a").len(), 100);
        assert_eq!(draw("a"), draw("a"));
        assert_ne!(draw("a"), draw("b"));
    }

    #[test]
    fn a_command_without_expiry_says_no_moment() {
        let told = |not_after| serde_json::from_str::<Value>(&payload("a", &json!({}), not_after)).unwrap();
        assert_eq!(told(None), json!({ "schema": COMMAND_SCHEMA, "id": "a", "args": {} }));
        assert!(told(Some(Micros::now()))["not_after"].is_string());
    }
}
