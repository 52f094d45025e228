//! Changes of a configuration's text that leave its comments and order alone, and what may be told of it.
//!
//! Works on texts; whether the outcome is a valid configuration is [`Config::from_text`](super::Config::from_text)'s to say.

use std::collections::BTreeMap;

use toml_edit::{DocumentMut, Item, Table, TableLike};

/// Stands in a secret's place. In a text that is set it means 'as it is'.
pub const HIDDEN: &str = "<not shown>";

/// What only somebody at the device may change: what may be asked of it, and what it owes the people in view.
pub const PROTECTED: [&str; 6] =
    ["mqtt.commands", "privacy", "deployment", "models.keys", "models.store", "models.ca_file"];

/// Why a text cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is no TOML.
    #[error("no TOML: {0}")]
    Syntax(String),
    /// There is no such place.
    #[error("{key}: {reason}")]
    Key {
        /// Dotted.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn document(text: &str) -> Result<DocumentMut, EditError> {
    text.parse().map_err(|error: toml_edit::TomlError| EditError::Syntax(error.to_string().trim_end().into()))
}

/// `text` with the dotted `keys` set; `null` takes a key out.
///
/// # Errors
/// [`EditError`] where the text is no TOML, or a key or value cannot stand in it.
pub fn with_keys(text: &str, keys: &serde_json::Map<String, serde_json::Value>) -> Result<String, EditError> {
    let mut document = document(text)?;
    for (key, value) in keys {
        set(document.as_table_mut(), key, value).map_err(|reason| EditError::Key { key: key.clone(), reason })?;
    }
    Ok(document.to_string())
}

fn set(root: &mut Table, key: &str, value: &serde_json::Value) -> Result<(), &'static str> {
    let mut segments: Vec<&str> = key.split('.').collect();
    let (Some(last), false) = (segments.pop(), key.split('.').any(str::is_empty)) else {
        return Err("is no dotted key, such as mqtt.host");
    };
    if segments.is_empty() {
        return Err("is no dotted key, such as mqtt.host");
    }
    let value = value_of(value)?;
    let mut at: &mut dyn TableLike = root;
    for segment in segments {
        if value.is_none() && !at.contains_key(segment) {
            return Ok(());
        }
        let next = at.entry(segment).or_insert(Item::Table(Table::new()));
        at = next.as_table_like_mut().ok_or("lies in something that is no table")?;
    }
    match (value, at.get_mut(last)) {
        (None, _) => {
            at.remove(last);
        }
        // What stands around the old value, a comment as a rule, stays.
        (Some(mut value), Some(Item::Value(old))) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        (Some(_), Some(_)) => return Err("is a table: name the keys in it one by one"),
        (Some(value), None) => {
            at.insert(last, Item::Value(value));
        }
    }
    Ok(())
}

/// `None` for `null`.
fn value_of(value: &serde_json::Value) -> Result<Option<toml_edit::Value>, &'static str> {
    use serde_json::Value as Json;
    Ok(Some(match value {
        Json::Null => return Ok(None),
        Json::Bool(truth) => (*truth).into(),
        Json::String(text) => text.as_str().into(),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(float)) if !number.is_u64() => float.into(),
            _ => return Err("is a number beyond what TOML holds"),
        },
        Json::Array(values) => {
            let values: Result<Vec<_>, _> = values.iter().map(|v| value_of(v)?.ok_or("holds a null")).collect();
            toml_edit::Value::Array(values?.into_iter().collect())
        }
        Json::Object(_) => return Err("takes no object: name the keys in it one by one, dotted"),
    }))
}

/// `text` with [`HIDDEN`] in place of every secret, comments that speak of one included.
///
/// # Errors
/// [`EditError::Syntax`]
pub fn without_secrets(text: &str) -> Result<String, EditError> {
    let mut document = document(text)?;
    each_secret(document.as_table_mut(), "", &mut |_, value| *value = HIDDEN.into());
    let hide = |line: &str| {
        let is_comment = line.trim_start().starts_with('#');
        match is_comment && line.to_lowercase().contains("password") && !line.contains("password_file") {
            true => format!("# {HIDDEN}\n"),
            false => format!("{line}\n"),
        }
    };
    Ok(document.to_string().lines().map(hide).collect())
}

/// `text` with the secrets of `former` where it holds [`HIDDEN`].
///
/// # Errors
/// [`EditError`] where there is no secret to put there.
pub fn with_secrets_of(text: &str, former: &str) -> Result<String, EditError> {
    let mut known = BTreeMap::new();
    each_secret(document(former)?.as_table_mut(), "", &mut |key, value| {
        known.insert(key.to_owned(), value.clone());
    });
    let mut document = document(text)?;
    let mut missing = None;
    each_secret(document.as_table_mut(), "", &mut |key, value| {
        if value.as_str() == Some(HIDDEN) {
            match known.get(key) {
                Some(secret) => *value = secret.clone(),
                None => missing = Some(key.to_owned()),
            }
        }
    });
    match missing {
        Some(key) => Err(EditError::Key { key, reason: "is to stay as it is, but there is none yet" }),
        None => Ok(document.to_string()),
    }
}

fn each_secret(table: &mut dyn TableLike, path: &str, visit: &mut dyn FnMut(&str, &mut toml_edit::Value)) {
    for (key, item) in table.iter_mut() {
        let path = if path.is_empty() { key.get().to_owned() } else { format!("{path}.{}", key.get()) };
        if let Some(value) = item.as_value_mut().filter(|_| key.get() == "password") {
            visit(&path, value);
        } else if let Some(table) = item.as_table_like_mut() {
            each_secret(table, &path, visit);
        }
    }
}

/// The dotted keys whose values differ between two texts.
///
/// # Errors
/// [`EditError::Syntax`] where one of them is no TOML.
pub fn changed_keys(former: &str, new: &str) -> Result<Vec<String>, EditError> {
    let flat = |text: &str| -> Result<BTreeMap<String, toml::Value>, EditError> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| EditError::Syntax(e.to_string()))?;
        let mut leaves = BTreeMap::new();
        flatten("", toml::Value::Table(table), &mut leaves);
        Ok(leaves)
    };
    let (former, new) = (flat(former)?, flat(new)?);
    let mut keys: Vec<String> = former.keys().chain(new.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| former.get(key) != new.get(key));
    // A table that lost its last key says so by that key.
    let parents = keys.clone();
    keys.retain(|key| {
        !parents.iter().any(|other| other.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')))
    });
    Ok(keys)
}

/// A table that is empty counts as one key: `[mqtt.home_assistant]` alone means something.
fn flatten(path: &str, value: toml::Value, leaves: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) if path.is_empty() || !table.is_empty() => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(&path, value, leaves);
            }
        }
        other => {
            leaves.insert(path.into(), other);
        }
    }
}

/// The first of `keys` that is [`PROTECTED`].
pub fn protected(keys: &[String]) -> Option<&str> {
    let within = |key: &str, section: &str| {
        key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let below = |key: &str| PROTECTED.iter().any(|section| within(key, section));
    keys.iter().map(String::as_str).find(|key| below(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "# ours\n[mqtt]\nhost = \"a\" # the broker\npassword = \"hunter2\" # changed in May\n# password = \"hunter1\"\n\n[faces]\nmin_score = 0.5\n";

    fn keys(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn keys_are_set_and_taken_out_and_comments_stay() {
        let change =
            keys(json!({ "mqtt.host": "b", "faces.min_score": null, "report.sample_every_s": 2.5, "mqtt.port": 1884 }));
        let text = with_keys(TEXT, &change).unwrap();
        assert!(text.contains("# ours\n[mqtt]\nhost = \"b\" # the broker\n"), "{text}");
        assert!(!text.contains("min_score"), "{text}");
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["mqtt"]["port"].as_integer(), Some(1884));
        assert_eq!(table["report"]["sample_every_s"].as_float(), Some(2.5));
        let mut changed = vec!["faces.min_score", "mqtt.host", "mqtt.port", "report.sample_every_s"];
        changed.sort_unstable();
        assert_eq!(changed_keys(TEXT, &text).unwrap(), changed);
    }

    #[test]
    fn keys_that_cannot_stand_there_are_refused_by_name() {
        for bad in [
            json!({ "mqtt": 1 }),
            json!({ "": 1 }),
            json!({ "mqtt..host": 1 }),
            json!({ "mqtt.host.name": 1 }),
            json!({ "mqtt.host": { "a": 1 } }),
            json!({ "mqtt.port": u64::MAX }),
            json!({ "a.mqtt": [null] }),
        ] {
            let key = bad.as_object().unwrap().keys().next().unwrap().clone();
            match with_keys(TEXT, &keys(bad)) {
                Err(EditError::Key { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
        assert!(matches!(with_keys("[", &keys(json!({}))), Err(EditError::Syntax(_))));
    }

    #[test]
    fn secrets_are_not_shown_and_come_back_where_they_were_not_shown() {
        let shown = without_secrets(TEXT).unwrap();
        assert!(!shown.contains("hunter") && shown.contains(HIDDEN), "{shown}");
        let back = with_secrets_of(&shown.replace("\"a\"", "\"b\""), TEXT).unwrap();
        assert_eq!(changed_keys(TEXT, &back).unwrap(), ["mqtt.host"]);
        assert!(with_secrets_of(&shown, "[mqtt]\n").is_err());
    }

    #[test]
    fn what_only_somebody_at_the_device_may_change_is_known() {
        let named = |key: &str| protected(&[key.to_owned()]).is_some();
        assert!(named("mqtt.commands.allow") && named("privacy.require_consent") && named("deployment.context"));
        assert!(named("models.keys") && named("models.store") && named("models.ca_file"), "whose bundles are taken");
        assert!(!named("mqtt.host") && !named("mqtt.commandsx") && !named("privacyx.a"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_and_no_keys_make_an_edit_panic(text in "[ -~\n]{0,120}", key in "[a-z.\"# ]{0,12}", value in "[ -~]{0,10}") {
            let _ = with_keys(&text, &keys(json!({ key.clone(): value.clone() })));
            let _ = without_secrets(&text);
            let _ = with_secrets_of(&text, TEXT);
            if let Ok(edited) = with_keys(TEXT, &keys(json!({ key: value }))) {
                proptest::prop_assert!(changed_keys(TEXT, &edited).is_ok(), "{edited}");
            }
        }
    }
}
