//! Model bundles that this server hosts: what their signature says of them, and the parts that they are sent in.
//!
//! Invariants: what a [`Bundle`] says of task, version and expiry is what its signer wrote; its parts, put together, are the archive. Whether the
//! signature holds is for the devices to say, which know the keys: this server has none, so whoever takes it over can give out nothing new.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::time::Micros;

/// Bytes of a part: the most that a device takes.
pub const PART_BYTES: usize = 32 * 1024;

/// The largest archive that is hosted. Devices take 32 MiB unless they are told otherwise.
pub const LARGEST_ARCHIVE_BYTES: usize = 64 * 1024 * 1024;

const LONGEST_SIGNATURE_BYTES: usize = 4096;
const COMMENT: &str = "trusted comment: ";

/// Three numbers that are compared as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u64; 3]);

impl FromStr for Version {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| {
            let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
            text.parse().ok().filter(|_| plain)
        };
        let numbers: Option<Vec<u64>> = text.split('.').map(number).collect();
        numbers.and_then(|numbers| numbers.try_into().ok()).map(Self).ok_or(())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Why a bundle is not hosted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The archive's size.
    #[error("the archive has {0} bytes: want 1 to {LARGEST_ARCHIVE_BYTES}")]
    Size(usize),
    /// Not what minisign writes.
    #[error(
        "the signature is no minisign signature file: want its four lines, made by `minisign -S -H -t 'visaged:TASK:VERSION'`"
    )]
    Signature,
    /// What the signer wrote.
    #[error(
        "the signature's trusted comment is {0:?}: want visaged:TASK:VERSION, and after a space, where it expires, expires:TIME"
    )]
    Comment(String),
    /// No TAR archive.
    #[error("the archive is no TAR file: give what `visaged models pack` wrote")]
    Archive,
}

/// A bundle as it was uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// What it is for.
    pub task: String,
    /// Its version.
    pub version: Version,
    /// Not to be installed later.
    pub expires: Option<Micros>,
    /// Bytes of the archive.
    pub size: usize,
    /// Of the archive, in hexadecimal digits.
    pub sha256: String,
    /// The text of the signature file.
    pub signature: String,
    /// The archive, cut into parts of [`PART_BYTES`], in Base64 as they are sent.
    pub parts: Vec<String>,
}

impl Bundle {
    /// Reads what the signature says, and cuts the archive.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong, and what would be right.
    pub fn new(archive: &[u8], signature: &str) -> Result<Self, BundleError> {
        if !(1..=LARGEST_ARCHIVE_BYTES).contains(&archive.len()) {
            return Err(BundleError::Size(archive.len()));
        }
        // The magic of every TAR format since 1988.
        if archive.get(257..262) != Some(b"ustar") {
            return Err(BundleError::Archive);
        }
        let lines: Vec<&str> = signature.lines().collect();
        let comment = lines.get(2).and_then(|line| line.strip_prefix(COMMENT));
        let Some(comment) = comment.filter(|_| lines.len() == 4 && signature.len() <= LONGEST_SIGNATURE_BYTES) else {
            return Err(BundleError::Signature);
        };
        let refused = || BundleError::Comment(comment.chars().take(100).collect());
        let mut words = comment.split(' ');
        let said: Vec<&str> = words.next().unwrap_or_default().split(':').collect();
        let ["visaged", task, version] = said[..] else { return Err(refused()) };
        let expires = words.next().map(|word| word.strip_prefix("expires:").and_then(time).ok_or_else(refused));
        let expires = expires.transpose()?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if words.next().is_some() || task.is_empty() || task.len() > 32 || !task.bytes().all(plain) {
            return Err(refused());
        }
        Ok(Self {
            task: task.to_owned(),
            version: version.parse().map_err(|()| refused())?,
            expires,
            size: archive.len(),
            sha256: Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect(),
            signature: signature.to_owned(),
            parts: archive.chunks(PART_BYTES).map(|part| STANDARD.encode(part)).collect(),
        })
    }

    /// What it is called by, such as `derl-0.1.3`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.task, self.version)
    }
}

fn time(text: &str) -> Option<Micros> {
    serde_json::from_value(Value::from(text)).ok()
}

/// The request for a part.
pub fn part_request(id: &str, install: &str, index: i64, data: &str) -> String {
    // Ids and Base64 hold nothing that JSON would escape.
    format!(
        r#"{{"schema":"{}","id":"{id}","args":{{"install":"{install}","index":{index},"data":"{data}"}}}}"#,
        crate::contract::COMMAND_SCHEMA
    )
}

/// The id of the request for a part: that of the installation, the part's number, the attempt.
pub fn part_id(install: &str, index: i64, attempt: i64) -> String {
    format!("{install}.p{index}.{attempt}")
}

/// The installation that a part's id belongs to.
pub fn install_of(part_id: &str) -> Option<&str> {
    let (rest, attempt) = part_id.rsplit_once('.')?;
    let (install, index) = rest.rsplit_once(".p")?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number(attempt) && number(index)).then_some(install)
}

/// How devices get a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// In parts over MQTT.
    Parts,
    /// From this address.
    Url(String),
}

/// The arguments of `models.install` for a hosted bundle.
pub fn install_args(hosted: &crate::store::BundleRow, way: &Way, expires: Micros) -> Map<String, Value> {
    let (key, source) = match way {
        Way::Parts => ("chunks", json!({ "count": hosted.parts, "size": PART_BYTES })),
        Way::Url(url) => ("url", json!(url)),
    };
    let args = json!({
        "task": hosted.task, "version": hosted.version, "sha256": hosted.sha256, "size": hosted.size,
        "signature": hosted.signature, "expires": expires, key: source,
    });
    match args {
        Value::Object(args) => args,
        _ => Map::new(),
    }
}

/// The newest version of each task among `hosted`, by task.
pub fn newest(hosted: &[crate::store::BundleRow]) -> Vec<&crate::store::BundleRow> {
    let mut newest = std::collections::BTreeMap::<&str, (Version, &crate::store::BundleRow)>::new();
    for bundle in hosted {
        let Ok(version) = bundle.version.parse::<Version>() else { continue };
        let known = newest.entry(&bundle.task).or_insert((version, bundle));
        if version > known.0 {
            *known = (version, bundle);
        }
    }
    newest.into_values().map(|(_, bundle)| bundle).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An archive of so many bytes that looks like one.
    pub(crate) fn archive(bytes: usize) -> Vec<u8> {
        let mut archive: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        archive[257..262].copy_from_slice(b"ustar");
        archive
    }

    fn signature(comment: &str) -> String {
        format!("untrusted comment: x\nRUQ\ntrusted comment: {comment}\nabc=\n")
    }

    fn read(comment: &str) -> Result<(String, Option<Micros>), BundleError> {
        Bundle::new(&archive(1000), &signature(comment)).map(|bundle| (bundle.name(), bundle.expires))
    }

    #[test]
    fn a_bundle_is_what_its_signer_wrote() {
        assert_eq!(read("visaged:derl:0.1.3"), Ok(("derl-0.1.3".into(), None)));
        let expires = Micros(1_798_761_600_000_000);
        assert_eq!(read("visaged:derl:0.1.3 expires:2027-01-01T00:00:00Z"), Ok(("derl-0.1.3".into(), Some(expires))));
        for bad in [
            "visaged:derl",
            "visaged:derl:1.2",
            "visaged:derl:1.2.3.4",
            "visaged:derl:01.2.3",
            "visaged:de rl:1.2.3",
            "visaged:../x:1.2.3",
            "other:derl:1.2.3",
            "visaged:derl:1.2.3 expires:soon",
            "visaged:derl:1.2.3 expires:2027-01-01T00:00:00Z x",
            "",
        ] {
            assert!(matches!(read(bad), Err(BundleError::Comment(_))), "{bad}");
        }
        assert_eq!(Bundle::new(&archive(1000), "no signature"), Err(BundleError::Signature));
        assert_eq!(Bundle::new(&[], &signature("")), Err(BundleError::Size(0)));
        assert_eq!(Bundle::new(&[0; 1000], &signature("visaged:derl:0.1.3")), Err(BundleError::Archive));
    }

    #[test]
    fn parts_put_together_are_the_archive_and_fit_into_a_request() {
        let archive = archive(PART_BYTES * 2 + 5);
        let bundle = Bundle::new(&archive, &signature("visaged:derl:0.1.3")).unwrap();
        let parts: Vec<Vec<u8>> = bundle.parts.iter().map(|part| STANDARD.decode(part).unwrap()).collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [PART_BYTES, PART_BYTES, 5]);
        assert_eq!(parts.concat(), archive);
        let id = part_id(&"r".repeat(48), 99_999, 9_999);
        assert!(id.len() <= 64, "{id}");
        let request = part_request(&id, "r", 1, &bundle.parts[0]);
        assert!(request.len() <= 48 * 1024, "{} bytes, where a device takes 48 KiB", request.len());
        let request: crate::contract::Command = serde_json::from_str(&request).unwrap();
        assert_eq!((request.id.as_str(), &request.args["index"]), (id.as_str(), &json!(1)));
    }

    #[test]
    fn a_parts_id_names_its_installation() {
        assert_eq!(install_of(&part_id("abc.7", 12, 0)), Some("abc.7"));
        for other in ["abc.7", "abc", "abc.px.0", "abc.p1.x", ""] {
            assert_eq!(install_of(other), None, "{other}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("0.10.0") > version("0.9.9"));
        assert_eq!(version("1.2.3").to_string(), "1.2.3");
    }
}
