//! Who may give this device a bundle: minisign signatures under the keys that the configuration names.
//!
//! Invariant: a [`Seal`] that exists was read from a trusted comment whose signature, and whose archive's signature, hold
//! under one of the keys. Nothing of an archive is parsed before that.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use minisign_verify::{PublicKey, Signature};

use super::{Task, Version};

/// What a trusted comment begins with.
const PREFIX: &str = "visaged";
/// A signature file has four short lines.
const MAX_SIGNATURE_BYTES: usize = 4096;

/// A minisign public key whose archives are taken.
#[derive(Clone, PartialEq, Eq)]
pub struct ModelKey {
    text: String,
    key: PublicKey,
}

impl fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelKey").field(&self.text).finish()
    }
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is no minisign public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no minisign public key: take the second line of minisign.pub, which begins with RW")]
pub struct NoKey;

impl FromStr for ModelKey {
    type Err = NoKey;

    /// The key's line in base64, as in `minisign.pub`.
    fn from_str(text: &str) -> Result<Self, NoKey> {
        let text = text.trim();
        let key = PublicKey::from_base64(text).map_err(|_| NoKey)?;
        Ok(Self { text: text.into(), key })
    }
}

/// What the signer says of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What it is for.
    pub task: Task,
    /// Its version.
    pub version: Version,
    /// Not to be installed later than this.
    pub expires: Option<Timestamp>,
}

/// Why an archive's signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The configuration names no key.
    #[error("no key is trusted: name the key that signs bundles in [models] keys")]
    NoKeys,
    /// The signature's text is not minisign's.
    #[error("this is no minisign signature: it has four lines and is made by `minisign -S` or `rsign sign`")]
    Malformed,
    /// Signed in the mode of old versions of minisign.
    #[error("the signature is of minisign's legacy mode: sign with `minisign -S -H`")]
    Legacy,
    /// None of the configured keys made it.
    #[error("the archive is signed by a key that is not in [models] keys: sign it with one that is, or add the key")]
    UnknownKey,
    /// Archive or signature are not what was signed.
    #[error("the signature does not fit the archive: one of them was changed or damaged, or they are not of one kind")]
    Wrong,
    /// The trusted comment says something else.
    #[error(
        "the trusted comment is `{0}`: sign with -t 'visaged:TASK:VERSION', or -t 'visaged:TASK:VERSION expires:TIME'"
    )]
    Comment(String),
}

impl Seal {
    /// Verifies `signature` (the text of a `.minisig` file) over `archive` under one of `keys`, and reads what it says.
    ///
    /// # Errors
    /// [`SealError`]; on each the archive is not to be used.
    pub fn verify(archive: &[u8], signature: &str, keys: &[ModelKey]) -> Result<Self, SealError> {
        if keys.is_empty() {
            return Err(SealError::NoKeys);
        }
        if signature.len() > MAX_SIGNATURE_BYTES {
            return Err(SealError::Malformed);
        }
        let signature = Signature::decode(signature).map_err(|_| SealError::Malformed)?;
        let mut refused = SealError::UnknownKey;
        for key in keys {
            match key.key.verify(archive, &signature, false) {
                Ok(()) => return signature.trusted_comment().parse(),
                Err(minisign_verify::Error::UnexpectedKeyId) => {}
                Err(minisign_verify::Error::UnexpectedAlgorithm) => refused = SealError::Legacy,
                Err(_) => refused = SealError::Wrong,
            }
        }
        Err(refused)
    }
}

/// `visaged:derl:0.1.3`, and after a space `expires:` with a time of RFC 3339 where there is one.
impl FromStr for Seal {
    type Err = SealError;

    fn from_str(comment: &str) -> Result<Self, SealError> {
        let refuse = || SealError::Comment(comment.chars().filter(|c| !c.is_control()).take(100).collect());
        let mut words = comment.split(' ');
        let mut parts = words.next().unwrap_or_default().split(':');
        let (prefix, task, version) = (parts.next(), parts.next(), parts.next());
        let task = task.and_then(Task::from_name).ok_or_else(refuse)?;
        let version = version.and_then(|text| text.parse().ok()).ok_or_else(refuse)?;
        let expires = match words.next() {
            None => None,
            Some(word) => {
                let time = word.strip_prefix("expires:").and_then(|time| time.parse().ok());
                Some(time.ok_or_else(refuse)?)
            }
        };
        if prefix != Some(PREFIX) || parts.next().is_some() || words.next().is_some() {
            return Err(refuse());
        }
        Ok(Self { task, version, expires })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A signer as the operator's side has one.
    pub(crate) struct Signer(minisign::KeyPair);

    impl Signer {
        pub(crate) fn new() -> Self {
            Self(minisign::KeyPair::generate_unencrypted_keypair().unwrap())
        }

        pub(crate) fn key(&self) -> ModelKey {
            self.0.pk.to_base64().parse().unwrap()
        }

        pub(crate) fn sign(&self, archive: &[u8], comment: &str) -> String {
            let signed = minisign::sign(Some(&self.0.pk), &self.0.sk, Cursor::new(archive), Some(comment), None);
            signed.unwrap().into_string()
        }
    }

    const COMMENT: &str = "visaged:derl:0.1.3";

    #[test]
    fn an_archive_signed_by_any_configured_key_is_taken_and_its_comment_read() {
        let (old, new) = (Signer::new(), Signer::new());
        let keys = [old.key(), new.key()];
        for signer in [&old, &new] {
            let seal = Seal::verify(b"archive", &signer.sign(b"archive", COMMENT), &keys).unwrap();
            assert_eq!(seal, Seal { task: Task::Derl, version: "0.1.3".parse().unwrap(), expires: None });
        }
        let dated = new.sign(b"archive", "visaged:detector:0.1.9 expires:2030-01-01T00:00:00Z");
        let seal = Seal::verify(b"archive", &dated, &keys).unwrap();
        assert_eq!(seal.expires.unwrap().to_string(), "2030-01-01T00:00:00Z");
    }

    #[test]
    fn a_changed_archive_signature_or_comment_and_a_strange_key_are_refused() {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let signature = signer.sign(b"archive", COMMENT);
        let verify = |archive: &[u8], text: &str, keys: &[ModelKey]| Seal::verify(archive, text, keys).unwrap_err();
        assert_eq!(verify(b"Archive", &signature, &[signer.key()]), SealError::Wrong);
        let forged = signature.replace("0.1.3", "0.1.4");
        assert_eq!(verify(b"archive", &forged, &[signer.key()]), SealError::Wrong);
        assert_eq!(verify(b"archive", &signature, &[stranger.key()]), SealError::UnknownKey);
        assert_eq!(verify(b"archive", &signature, &[]), SealError::NoKeys);
        assert_eq!(verify(b"archive", "nothing", &[signer.key()]), SealError::Malformed);
        assert_eq!(verify(b"archive", &"x".repeat(10_000), &[signer.key()]), SealError::Malformed);
    }

    #[test]
    fn a_comment_that_says_anything_else_is_refused_although_it_is_signed() {
        let signer = Signer::new();
        let wrong = [
            "derl:0.1.3",
            "visaged:derl",
            "visaged:nose:0.1.3",
            "visaged:derl:0.1",
            "visaged:derl:0.1.3:x",
            "visaged:derl:0.1.3 expires:soon",
            "visaged:derl:0.1.3 for ever",
            "visaged:derl:0.1.3 expires:2030-01-01T00:00:00Z more",
        ];
        for comment in wrong {
            let error = Seal::verify(b"a", &signer.sign(b"a", comment), &[signer.key()]).unwrap_err();
            assert_eq!(error, SealError::Comment(comment.into()));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_whatever_makes_the_reader_of_signatures_panic(text in "(untrusted comment: )?[ -~\n]{0,300}") {
            let _ = Seal::verify(b"a", &text, &[Signer::new().key()]);
            let _ = text.parse::<Seal>();
            let _ = text.parse::<ModelKey>();
        }
    }
}
