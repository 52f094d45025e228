//! Archives from outside: over HTTPS with resumption, and from files.
//!
//! Invariants: never more bytes than allowed, in memory or on disk; no plain HTTP, also not by a redirect; what is resumed is
//! the same resource by its strong ETag. Nothing here is believed: hash and signature are for the store to verify.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::sha256_hex;
use super::store::{Control, Progress};

const CONNECT: Duration = Duration::from_secs(20);
/// A server or a link that gives nothing for this long is tried again.
const SILENCE: Duration = Duration::from_secs(30);
/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 5;
const MAX_CA_BYTES: u64 = 4 << 20;
const PART: &str = ".part";
const ETAG: &str = ".etag";
const BUFFER_BYTES: usize = 64 << 10;

/// Why an archive did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither https nor a file.
    #[error("{0}: archives come from https:// or file:// addresses, or from files")]
    Scheme(String),
    /// Larger than allowed.
    #[error(
        "the archive{} is larger than the {most} bytes that [models] max_archive_bytes allows",
        bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default()
    )]
    TooLarge {
        /// Its size, where that is known.
        bytes: Option<u64>,
        /// Allowed.
        most: u64,
    },
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server says no.
    #[error("{url}: the server answers {status}")]
    Status {
        /// Asked for.
        url: String,
        /// 4xx or 5xx.
        status: u16,
    },
    /// The connection.
    #[error("{url}: {reason}; given up after {attempts} attempts")]
    Connection {
        /// Asked for.
        url: String,
        /// What was wrong last.
        reason: String,
        /// In a row without a byte.
        attempts: u32,
    },
    /// The certificates of the authorities.
    #[error("{}: {reason}: name a PEM file of certificates in [models] ca_file", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Not all pieces came.
    #[error("{missing} bytes of the archive are missing, the first of them {from} to {to}: send them")]
    Missing {
        /// In all.
        missing: u64,
        /// Start of the first hole.
        from: u64,
        /// Its end.
        to: u64,
    },
    /// It was told to stop.
    #[error("the download was stopped: it goes on where it was when it is asked for again")]
    Cancelled,
}

impl FetchError {
    /// The error code of the command contract.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Scheme(_) => "invalid_args",
            Self::TooLarge { .. } => "too_large",
            _ => "download",
        }
    }
}

/// A file's content.
pub(super) fn file(path: &Path, most: u64) -> Result<Vec<u8>, FetchError> {
    let failed = |source| FetchError::File { path: path.into(), source };
    // Looked at first: opening a pipe waits for its other end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("this is not a file")));
    }
    whole(File::open(path).map_err(failed)?, most, path)
}

fn whole(file: File, most: u64, path: &Path) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|source| FetchError::File { path: path.into(), source })?;
    if bytes.len() as u64 > most { Err(FetchError::TooLarge { bytes: None, most }) } else { Ok(bytes) }
}

/// A download.
pub(super) struct Order<'a> {
    pub(super) url: &'a str,
    /// What is not complete waits here, also over restarts.
    pub(super) folder: &'a Path,
    pub(super) max_bytes: u64,
    /// Announced.
    pub(super) size: Option<u64>,
    pub(super) ca_file: Option<&'a Path>,
}

/// Fetches, and resumes where an earlier attempt ended.
pub(super) fn https(order: &Order<'_>, control: Control<'_>) -> Result<Vec<u8>, FetchError> {
    let agent = agent(order.ca_file)?;
    let part = Part::of(order);
    part.make_room(order.folder);
    let (mut in_vain, mut pause) = (0, FIRST_PAUSE);
    loop {
        let before = part.bytes();
        let reason = match attempt(&agent, order, &part, control) {
            Ok(()) => break,
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(reason)) => reason,
        };
        if control.cancelled() {
            return Err(FetchError::Cancelled);
        }
        (in_vain, pause) = if part.bytes() > before { (0, FIRST_PAUSE) } else { (in_vain + 1, pause) };
        if in_vain == ATTEMPTS {
            return Err(FetchError::Connection { url: order.url.into(), reason, attempts: ATTEMPTS });
        }
        tracing::warn!(url = order.url, reason, "download interrupted; it goes on where it was");
        (control.pause)(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    let archive = file(&part.path, order.max_bytes);
    part.remove();
    archive
}

/// What is there of a download.
struct Part {
    path: PathBuf,
    etag: PathBuf,
}

impl Part {
    fn of(order: &Order<'_>) -> Self {
        let name = &sha256_hex(order.url.as_bytes())[..16];
        let file = |suffix: &str| order.folder.join(format!("{name}{suffix}"));
        Self { path: file(PART), etag: file(ETAG) }
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Where to go on, and by what the resource is known; `None` where it begins anew.
    fn resumable(&self) -> Option<(u64, String)> {
        let etag = fs::read_to_string(&self.etag).ok().filter(|text| is_strong(text))?;
        Some((self.bytes(), etag)).filter(|(bytes, _)| *bytes > 0)
    }

    fn remove(&self) {
        for path in [&self.path, &self.etag] {
            let _ = fs::remove_file(path);
        }
    }

    /// Other downloads that were never finished are given up: the place is bounded.
    fn make_room(&self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let unfinished = path.extension().is_some_and(|e| e == "part" || e == "etag");
            if unfinished && path != self.path && path != self.etag {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn is_strong(etag: &str) -> bool {
    etag.len() <= 256 && etag.starts_with('"') && etag.ends_with('"') && etag.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// Why an attempt ended early.
enum Trouble {
    /// Worth another attempt.
    Passing(String),
    Final(FetchError),
}

fn attempt(agent: &Agent, order: &Order<'_>, part: &Part, control: Control<'_>) -> Result<(), Trouble> {
    let resume = part.resumable();
    let mut request = agent.get(order.url);
    if let Some((bytes, etag)) = &resume {
        request = request.header(header::RANGE, format!("bytes={bytes}-")).header(header::IF_RANGE, etag);
    }
    let response = request.call().map_err(|error| judge(order.url, error))?;
    let (head, body) = response.into_parts();
    let from = match (head.status, &resume) {
        (StatusCode::OK, _) => 0,
        (StatusCode::PARTIAL_CONTENT, Some((bytes, _))) if begins_at(&head.headers, *bytes) => *bytes,
        (StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT, _) => {
            part.remove();
            return Err(Trouble::Passing("the server has another archive now".into()));
        }
        (status, _) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Trouble::Passing(format!("the server answers {status}")));
        }
        (status, _) => {
            return Err(Trouble::Final(FetchError::Status { url: order.url.into(), status: status.as_u16() }));
        }
    };
    let length = number(&head.headers, header::CONTENT_LENGTH);
    let total = length.map(|length| length.saturating_add(from));
    if total.is_some_and(|total| total > order.max_bytes) {
        part.remove();
        return Err(Trouble::Final(FetchError::TooLarge { bytes: total, most: order.max_bytes }));
    }
    let file = open(part, from, &head.headers).map_err(|source| disk(part, source))?;
    receive(body, file, Received { order, part, from, total }, control)
}

fn open(part: &Part, from: u64, headers: &HeaderMap) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if from > 0 {
        return options.append(true).open(&part.path);
    }
    let file = options.write(true).truncate(true).open(&part.path)?;
    let etag = headers.get(header::ETAG).and_then(|value| value.to_str().ok()).filter(|etag| is_strong(etag));
    match etag {
        Some(etag) => fs::write(&part.etag, etag)?,
        None => drop(fs::remove_file(&part.etag)),
    }
    Ok(file)
}

struct Received<'a> {
    order: &'a Order<'a>,
    part: &'a Part,
    from: u64,
    total: Option<u64>,
}

fn receive(body: Body, mut file: File, received: Received<'_>, control: Control<'_>) -> Result<(), Trouble> {
    let Received { order, part, from, total } = received;
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], from);
    loop {
        if control.cancelled() {
            return Err(Trouble::Final(FetchError::Cancelled));
        }
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(Trouble::Passing(error.to_string())),
        };
        bytes += count as u64;
        if bytes > order.max_bytes {
            part.remove();
            return Err(Trouble::Final(FetchError::TooLarge { bytes: None, most: order.max_bytes }));
        }
        file.write_all(&buffer[..count]).map_err(|source| disk(part, source))?;
        (control.progress)(Progress::Fetching { bytes, of: total.or(order.size) });
    }
    match total {
        Some(total) if bytes < total => {
            Err(Trouble::Passing(format!("the connection ended after {bytes} of {total} bytes")))
        }
        _ => Ok(()),
    }
}

/// A full disk does not empty itself by waiting, and what is there of the archive makes it no emptier.
fn disk(part: &Part, source: io::Error) -> Trouble {
    part.remove();
    Trouble::Final(FetchError::File { path: part.path.clone(), source })
}

fn judge(url: &str, error: ureq::Error) -> Trouble {
    use ureq::Error as E;
    let reason = error.to_string();
    match error {
        E::Io(_) | E::Timeout(_) | E::HostNotFound | E::ConnectionFailed | E::Protocol(_) => Trouble::Passing(reason),
        _ => Trouble::Final(FetchError::Connection { url: url.into(), reason, attempts: 1 }),
    }
}

/// `Content-Range: bytes 100-199/200`
fn begins_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(from)
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The proxy is that of the environment (`HTTPS_PROXY`, `NO_PROXY`).
fn agent(ca_file: Option<&Path>) -> Result<Agent, FetchError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(authorities(ca_file)?)))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("visaged/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls);
    Ok(config.build().new_agent())
}

fn authorities(ca_file: Option<&Path>) -> Result<Vec<Certificate<'static>>, FetchError> {
    let Some(path) = ca_file else {
        let found = rustls_native_certs::load_native_certs();
        return Ok(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect());
    };
    let refuse = |reason: String| FetchError::Authorities { path: path.into(), reason };
    let pem = file(path, MAX_CA_BYTES).map_err(|error| refuse(error.to_string()))?;
    let items = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(refuse(error.to_string()))),
    });
    let found: Vec<Certificate<'static>> = items.collect::<Result<_, _>>()?;
    if found.is_empty() { Err(refuse("holds no certificate".into())) } else { Ok(found) }
}

#[cfg(test)]
mod tests;
