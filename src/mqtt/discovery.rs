//! Home Assistant's MQTT discovery: one retained message that describes the device and all its entities.
//!
//! Follows the device discovery of Home Assistant's MQTT integration: `dev`, `o`, `cmps`, each component with `p` and
//! `unique_id`, availability shared. An empty payload on the same topic removes the device.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::command::Name;
use super::payload::Info;
use super::topics::Topics;
use crate::expression::Emotion;

/// Where Home Assistant looks unless told otherwise.
pub const DEFAULT_PREFIX: &str = "homeassistant";

/// Topic on which Home Assistant says `online` when it has started.
pub fn status_topic(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// Topic of the retained discovery message.
pub fn config_topic(prefix: &str, topics: &Topics) -> String {
    format!("{prefix}/device/{}/config", device_id(topics))
}

/// The discovery message. What can be asked of the device is offered only where it would be done: a switch for consent where
/// analysis waits for it and its commands are allowed, the versions of bundles as updates where these can be installed. Newer versions than
/// the installed ones are known only where `versions_topic` says them.
pub fn config(topics: &Topics, info: &Info, consent_required: bool, versions_topic: Option<&str>) -> Value {
    let id = device_id(topics);
    let entity = |name: &str, platform: &str, more: Value| {
        let unique = format!("{id}_{name}");
        // Until Home Assistant 2025.9 this was `object_id`, which later versions do not know; those before pass over it.
        let entity = format!("{platform}.{}", unique.to_lowercase().replace('-', "_"));
        // Each by itself: versions as late as 2026.2 take a QoS for the whole device, and read with 0 all the same.
        let mut component = json!({ "p": platform, "unique_id": unique, "default_entity_id": entity, "qos": 1 });
        if let (Some(component), Value::Object(more)) = (component.as_object_mut(), more) {
            component.extend(more);
        }
        component
    };
    let telemetry = topics.telemetry();
    let face = topics.face();
    let can = |command: Name| info.capabilities.contains(&format!("cmd/{command}"));
    let mut config = json!({
        "dev": {
            "ids": [id],
            "name": topics.device(),
            "mf": "visaged",
            "mdl": info.board.as_deref().unwrap_or("visaged"),
            "sw": info.version,
        },
        "o": { "name": "visaged", "sw": info.version },
        "availability_topic": topics.status(),
        "availability_template": "{{ 'offline' if value_json.status == 'offline' else 'online' }}",
        "cmps": {
            "emotion": entity("emotion", "sensor", json!({
                "name": "Emotion",
                "icon": "mdi:emoticon-outline",
                "device_class": "enum",
                "options": Emotion::ALL.map(Emotion::name),
                "state_topic": face,
                "value_template": "{{ value_json.emotion }}",
            })),
            "person": entity("person", "event", json!({
                "name": "Person",
                "icon": "mdi:account-eye",
                "event_types": ["enter", "leave"],
                "state_topic": face,
                "value_template": "{% if value_json.event in ['enter', 'leave'] and not value_json.historical %}\
                    {{ {'event_type': value_json.event, 'track': value_json.track, 'emotion': value_json.emotion} | tojson }}\
                    {% endif %}",
            })),
            "people": entity("people", "sensor", json!({
                "name": "People in view",
                "icon": "mdi:account-multiple",
                "state_class": "measurement",
                "state_topic": telemetry,
                "value_template": "{{ value_json.people_in_view }}",
            })),
            "fps": entity("fps", "sensor", json!({
                "name": "Frame rate",
                "icon": "mdi:speedometer",
                "entity_category": "diagnostic",
                "state_class": "measurement",
                "unit_of_measurement": "fps",
                "suggested_display_precision": 1,
                "state_topic": telemetry,
                "value_template": "{{ value_json.capture_fps }}",
            })),
            "temperature": entity("temperature", "sensor", json!({
                "name": "Temperature",
                "entity_category": "diagnostic",
                "device_class": "temperature",
                "state_class": "measurement",
                "unit_of_measurement": "°C",
                "state_topic": telemetry,
                "value_template": "{{ value_json.temperature_celsius }}",
            })),
            "status": entity("status", "sensor", json!({
                "name": "Status",
                "icon": "mdi:heart-pulse",
                "entity_category": "diagnostic",
                "device_class": "enum",
                "options": ["online", "degraded", "offline"],
                "state_topic": topics.status(),
                "value_template": "{{ value_json.status }}",
                "json_attributes_topic": topics.status(),
            })),
        },
    });
    if consent_required && can(Name::ConsentSet) {
        config["cmps"]["consent"] = entity(
            "consent",
            "switch",
            json!({
                "name": "Consent",
                "icon": "mdi:account-check",
                "command_topic": topics.request(Name::ConsentSet.as_str()),
                "command_template": CONSENT_REQUEST,
                "state_topic": topics.status(),
                "value_template": "{{ 'ON' if value_json.consent and value_json.consent.granted else 'OFF' }}",
            }),
        );
    }
    if can(Name::ModelsInstall) {
        for model in &info.models {
            let name = format!("model_{}", model.name);
            config["cmps"][&name] = entity(
                &name,
                "update",
                json!({
                    "name": format!("Model {}", model.name),
                    "title": model.name,
                    "entity_category": "diagnostic",
                    "device_class": "firmware",
                    "state_topic": topics.info(),
                    "value_template": format!(
                        "{{% for model in value_json.models if model.name == '{}' %}}\
                         {{{{ {{'installed_version': model.version{}}} | tojson }}}}\
                         {{% endfor %}}",
                        model.name,
                        // What nobody can know of is as good as not there. A version said here would go over the one said there.
                        if versions_topic.is_none() { ", 'latest_version': model.version" } else { "" },
                    ),
                }),
            );
            if let Some(topic) = versions_topic {
                let component = &mut config["cmps"][&name];
                component["latest_version_topic"] = topic.into();
                component["latest_version_template"] = format!(
                    "{{% for model in value_json.models if model.task == '{}' %}}{{{{ model.version }}}}{{% endfor %}}",
                    model.name
                )
                .into();
            }
        }
    }
    config
}

/// Each press is a request of its own: its id is the time.
const CONSENT_REQUEST: &str = "{\"schema\":\"visaged.cmd.v1\",\"id\":\"ha-{{ (as_timestamp(now()) * 1000) | int }}\",\
                               \"args\":{\"granted\":{{ 'true' if value == 'ON' else 'false' }}}}";

/// Names the device to Home Assistant, which allows letters, digits, `_` and `-` only. Where that changes the name or
/// joins it ambiguously, part of its hash keeps it apart from others.
pub fn device_id(topics: &Topics) -> String {
    let plain = |level: &str| level.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let raw = format!("visaged_{}_{}", topics.site(), topics.device());
    if plain(topics.site()) && plain(topics.device()) {
        return raw;
    }
    let hash = Sha256::digest(format!("{}/{}", topics.site(), topics.device()));
    let mut id: String =
        raw.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect();
    for byte in &hash[..4] {
        id.push_str(&format!("{byte:02x}"));
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;

    fn id(site: &str, name: &str) -> String {
        device_id(&Topics::new(&DeviceConfig { site: site.into(), name: name.into() }).unwrap())
    }

    fn components(commands: &[&str], consent_required: bool) -> serde_json::Map<String, Value> {
        components_with(commands, consent_required, None)
    }

    fn components_with(
        commands: &[&str],
        consent_required: bool,
        versions_topic: Option<&str>,
    ) -> serde_json::Map<String, Value> {
        let topics = Topics::new(&DeviceConfig { site: "lobby".into(), name: "mirror-1".into() }).unwrap();
        let model = super::super::payload::ModelInfo {
            name: "derl".into(),
            version: "0.1.0".into(),
            sha256: String::new(),
            engine: "int8".into(),
        };
        let info = Info {
            schema: Default::default(),
            device: "mirror-1".into(),
            boot: crate::report::Boot::random(),
            version: "0".into(),
            board: None,
            camera: None,
            models: vec![model],
            capabilities: commands.iter().map(|name| format!("cmd/{name}")).collect(),
        };
        config(&topics, &info, consent_required, versions_topic)["cmps"].as_object().unwrap().clone()
    }

    #[test]
    fn home_assistant_is_offered_what_the_device_would_do_and_no_more() {
        let offers = |commands: &[&str], required, name: &str| components(commands, required).contains_key(name);
        assert!(offers(&["consent.set"], true, "consent"));
        assert!(!offers(&["consent.set"], false, "consent") && !offers(&["consent.grant"], true, "consent"));
        assert!(offers(&["models.install"], false, "model_derl") && !offers(&[], false, "model_derl"));
        let all = components(&["consent.set", "models.install"], true);
        assert_eq!(all["consent"]["p"], "switch");
        assert_eq!(all["consent"]["default_entity_id"], "switch.visaged_lobby_mirror_1_consent");
        assert_eq!(all["consent"]["command_topic"], "visaged/v1/lobby/mirror-1/cmd/consent.set");
        assert_eq!(all["model_derl"]["p"], "update");
    }

    #[test]
    fn home_assistant_reads_every_component_with_qos_1() {
        let all = components(&["consent.set", "models.install"], true);
        assert!(all.len() > 6 && all.values().all(|component| component["qos"] == 1), "{all:?}");
    }

    #[test]
    fn home_assistant_hears_of_newer_versions_where_a_topic_says_them() {
        let update = |topic| components_with(&["models.install"], false, topic)["model_derl"].clone();
        let (alone, told) = (update(None), update(Some("visaged/fleet/models")));
        let says_latest = |update: &Value| update["value_template"].as_str().unwrap().contains("latest_version");
        assert!(says_latest(&alone) && alone.get("latest_version_topic").is_none());
        assert!(!says_latest(&told), "{told}");
        assert_eq!(told["latest_version_topic"], "visaged/fleet/models");
        assert!(told["latest_version_template"].as_str().unwrap().contains("model.task == 'derl'"));
    }

    #[test]
    fn the_consent_switch_sends_a_request_that_is_understood() {
        let template = components(&["consent.set"], true)["consent"]["command_template"].as_str().unwrap().to_owned();
        let rendered = template
            .replace("{{ (as_timestamp(now()) * 1000) | int }}", "1767225600000")
            .replace("{{ 'true' if value == 'ON' else 'false' }}", "true");
        let request: crate::mqtt::command::Request = serde_json::from_str(&rendered).unwrap();
        let command = crate::mqtt::command::parse_args(Name::ConsentSet, &request.args);
        assert_eq!(command, Ok(crate::mqtt::command::Command::Consent { granted: true, lasting: None }));
    }

    #[test]
    fn a_plain_name_stays_readable() {
        assert_eq!(id("lobby", "mirror-1"), "visaged_lobby_mirror-1");
    }

    #[test]
    fn names_that_look_alike_once_home_assistant_takes_them_stay_apart() {
        let ids = [id("a_b", "c"), id("a", "b_c"), id("a b", "c"), id("a", "b c"), id("ä", "c"), id("ö", "c")];
        for (i, id) in ids.iter().enumerate() {
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{id}");
            assert!(!ids[..i].contains(id), "{id}");
        }
    }
}
