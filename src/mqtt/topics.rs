//! Topic names below `visaged/v1/{site}/{device}/`.
//!
//! Invariant: a [`Topics`] that exists has levels that any broker takes; no other code puts topics together.

use crate::config::DeviceConfig;

/// Longest level in bytes; leaves a whole topic far below MQTT's 65,535.
const LONGEST_LEVEL_BYTES: usize = 128;

/// The topics of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    site: String,
    device: String,
}

/// Why a name cannot be a level of a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value:?} cannot be a level of an MQTT topic: {reason}")]
pub struct TopicError {
    /// The setting that holds it.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub reason: &'static str,
}

impl Topics {
    /// The topics of the device that `config` names.
    ///
    /// # Errors
    /// [`TopicError`] where `site` or `name` is empty, longer than 128 bytes, or holds `/`, `+`, `#` or a control character.
    pub fn new(config: &DeviceConfig) -> Result<Self, TopicError> {
        Ok(Self { site: level("device.site", &config.site)?, device: level("device.name", &config.name)? })
    }

    /// The site's level.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The device's level; also the `device` of every payload.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Retained, QoS 1: [`Status`](super::Status); also the last will's topic.
    pub fn status(&self) -> String {
        self.below("status")
    }

    /// Retained, QoS 1: [`Info`](super::Info).
    pub fn info(&self) -> String {
        self.below("info")
    }

    /// QoS 0: [`Telemetry`](super::Telemetry).
    pub fn telemetry(&self) -> String {
        self.below("telemetry")
    }

    /// QoS 1: [`FacePayload`](crate::report::FacePayload).
    pub fn face(&self) -> String {
        self.below("face")
    }

    /// QoS 1: [`SummaryPayload`](crate::report::SummaryPayload).
    pub fn summary(&self) -> String {
        self.below("summary")
    }

    /// QoS 1: [`GapPayload`](super::payload::GapPayload).
    pub fn gap(&self) -> String {
        self.below("gap")
    }

    /// Filter of all requests.
    pub fn commands(&self) -> String {
        self.below("cmd/+")
    }

    /// The command that a topic asks for: the level after `cmd/`; `None` for any other topic.
    pub fn command<'t>(&self, topic: &'t str) -> Option<&'t str> {
        topic.strip_prefix(&self.below("cmd/")).filter(|name| !name.contains('/'))
    }

    /// Topic of requests for the command `name`.
    pub fn request(&self, name: &str) -> String {
        self.below(&format!("cmd/{name}"))
    }

    /// QoS 1: [`Answer`](super::command::Answer)s to requests for the command `name`.
    pub fn answer(&self, name: &str) -> String {
        self.below(&format!("rsp/{name}"))
    }

    /// The MQTT client id. Two devices of one name take it from each other; the broker tells the loser.
    pub fn client_id(&self) -> String {
        format!("visaged-{}-{}", self.site, self.device)
    }

    fn below(&self, name: &str) -> String {
        format!("visaged/v1/{}/{}/{name}", self.site, self.device)
    }
}

fn level(key: &'static str, value: &str) -> Result<String, TopicError> {
    let reason = if value.is_empty() {
        "it is empty; give it a name"
    } else if value.len() > LONGEST_LEVEL_BYTES {
        "it is longer than 128 bytes; shorten it"
    } else if value.contains(['/', '+', '#']) {
        "it holds one of / + #, which have a meaning in topics; leave them out"
    } else if value.chars().any(char::is_control) {
        "it holds a control character; leave it out"
    } else {
        return Ok(value.to_owned());
    };
    Err(TopicError { key, value: value.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(site: &str, name: &str) -> Result<Topics, TopicError> {
        Topics::new(&DeviceConfig { site: site.into(), name: name.into() })
    }

    #[test]
    fn topics_stand_below_site_and_device() {
        let topics = topics("lobby", "mirror-1").unwrap();
        assert_eq!(topics.status(), "visaged/v1/lobby/mirror-1/status");
        assert_eq!(topics.face(), "visaged/v1/lobby/mirror-1/face");
        assert_eq!(topics.command(&topics.request("ping")), Some("ping"));
        assert_eq!(topics.command("visaged/v1/lobby/mirror-1/cmd/a/b"), None);
        assert_eq!(topics.command("visaged/v1/lobby/mirror-2/cmd/ping"), None);
    }

    #[test]
    fn a_level_that_would_change_the_topics_meaning_is_refused_by_name() {
        for bad in ["", "a/b", "+", "x#", "a\0", "line\nbreak", &"x".repeat(129)] {
            assert_eq!(topics(bad, "d").unwrap_err().key, "device.site", "{bad:?}");
            assert_eq!(topics("s", bad).unwrap_err().key, "device.name", "{bad:?}");
        }
    }

    #[test]
    fn names_of_people_who_do_not_write_ascii_are_levels() {
        assert_eq!(topics("Büro", "鏡").unwrap().info(), "visaged/v1/Büro/鏡/info");
    }
}
