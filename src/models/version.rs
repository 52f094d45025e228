//! The version of a bundle: three numbers that are compared as numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `major.minor.patch`, without leading zeros, signs or suffixes: one version has one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// Another one has another interface.
    pub major: u64,
    /// As major, while major is 0.
    pub minor: u64,
    /// Grows with every bundle of one interface.
    pub patch: u64,
}

impl Version {
    /// Stands for no bundle where one is compared with what is in place: 0.0.0, older than every bundle.
    pub const NONE: Self = Self { major: 0, minor: 0, patch: 0 };
}

/// A text that is no [`Version`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not major.minor.patch in plain numbers")]
pub struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let mut parts = text.split('.').map(number);
        match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self { major, minor, patch }),
            _ => Err(NoVersion(text.chars().take(64).collect())),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl TryFrom<String> for Version {
    type Error = NoVersion;

    fn try_from(text: String) -> Result<Self, NoVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_and_have_one_spelling() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("0.1.10") > version("0.1.9") && version("1.0.0") > version("0.99.99"));
        assert_eq!(version("0.1.10").to_string(), "0.1.10");
        for text in
            ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.+2.3", "1.2.-3", "1.2.3-rc1", " 1.2.3", "1.2.99999999999999999999"]
        {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
