//! Against a server of our own over TLS that cuts off, forgets, redirects and lies.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

/// What a request asked for, by header, lower-case.
type Asked = Vec<String>;

struct Server {
    address: SocketAddr,
    ca_file: PathBuf,
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Answers request `i` with what `answer` makes of it: the bytes of a whole response, after which the line is cut.
    fn start(answer: impl Fn(usize, &Asked, SocketAddr) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        fs::write(&ca_file, certified.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let (config, asked) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for (i, socket) in listener.incoming().flatten().enumerate() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, socket));
                let mut headers = Vec::new();
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                    headers.push(line.trim().to_ascii_lowercase());
                    line.clear();
                }
                let reply = answer(i, &headers, address);
                log.lock().unwrap().push(headers);
                let stream = stream.get_mut();
                let _ = stream.write_all(&reply);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Self { address, ca_file, folder, asked }
    }

    fn fetch(&self, most: u64) -> Result<Vec<u8>, FetchError> {
        self.fetch_with(most, Some(&self.ca_file), &AtomicBool::new(false), &|_| ())
    }

    fn fetch_with(
        &self,
        max_bytes: u64,
        ca_file: Option<&Path>,
        cancel: &AtomicBool,
        progress: &dyn Fn(Progress),
    ) -> Result<Vec<u8>, FetchError> {
        let url = format!("https://{}/a.tar", self.address);
        let incoming = self.folder.path().join("incoming");
        fs::create_dir_all(&incoming).unwrap();
        let order = Order { url: &url, folder: &incoming, max_bytes, size: None, ca_file };
        https(&order, Control { cancel, progress, pause: &|_| () })
    }

    fn left(&self) -> usize {
        fs::read_dir(self.folder.path().join("incoming")).unwrap().count()
    }

    fn asked(&self, request: usize, header: &str) -> Option<String> {
        let asked = self.asked.lock().unwrap();
        asked[request].iter().find_map(|line| line.strip_prefix(header).map(ToString::to_string))
    }
}

fn body() -> Vec<u8> {
    (0..100_000_u32).map(|i| (i % 251) as u8).collect()
}

/// A response that says it has `length` bytes and gives `body`.
fn reply(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

const TAGGED: &str = "ETag: \"v1\"\r\n";

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_was() {
    let server = Server::start(|i, _, _| match i {
        0 => reply("200 OK", TAGGED, 100_000, &body()[..40_000]),
        1 => reply("503 Service Unavailable", "", 0, b""),
        _ => {
            let headers = format!("{TAGGED}Content-Range: bytes 40000-99999/100000\r\n");
            reply("206 Partial Content", &headers, 60_000, &body()[40_000..])
        }
    });
    assert_eq!(server.fetch(100_000).unwrap(), body());
    assert_eq!(server.asked(2, "range: ").as_deref(), Some("bytes=40000-"));
    assert_eq!(server.asked(2, "if-range: ").as_deref(), Some("\"v1\""));
    assert_eq!((server.asked(0, "range: "), server.left()), (None, 0));
}

#[test]
fn a_download_that_was_stopped_goes_on_when_it_is_asked_for_again() {
    let server = Server::start(|i, _, _| match i {
        0 => reply("200 OK", TAGGED, 100_000, &body()),
        _ => reply("206 Partial Content", "Content-Range: bytes 0-0/0\r\n", 0, b""),
    });
    let cancel = AtomicBool::new(false);
    let stop = |_| cancel.store(true, Ordering::Relaxed);
    let stopped = server.fetch_with(100_000, Some(&server.ca_file), &cancel, &stop);
    assert!(matches!(stopped, Err(FetchError::Cancelled)), "{stopped:?}");
    assert_eq!(server.left(), 2, "what came, and its tag");
    let _ = server.fetch(100_000);
    assert!(server.asked(1, "range: bytes=").is_some());
}

#[test]
fn a_server_that_has_another_file_meanwhile_or_no_tag_is_asked_for_all_of_it() {
    let server = Server::start(|i, _, _| match i {
        0 => reply("200 OK", TAGGED, 100_000, &body()[..40_000]),
        1 => reply("200 OK", "ETag: W/\"weak\"\r\n", 100_000, &body()[..50_000]),
        _ => reply("200 OK", "", 100_000, &body()),
    });
    assert_eq!(server.fetch(100_000).unwrap(), body());
    assert_eq!(server.asked(2, "range: "), None);
}

#[test]
fn nothing_larger_than_allowed_is_taken_whatever_the_server_says_of_it() {
    let honest = Server::start(|_, _, _| reply("200 OK", TAGGED, 100_000, &body()));
    assert!(matches!(honest.fetch(99_999), Err(FetchError::TooLarge { bytes: Some(100_000), .. })));
    let silent = Server::start(|_, _, _| [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body().as_slice()].concat());
    let error = silent.fetch(50_000).unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { bytes: None, .. }) && error.code() == "too_large", "{error}");
    assert_eq!((honest.left(), silent.left()), (0, 0));
    assert_eq!(silent.fetch(100_000).unwrap(), body());
}

#[test]
fn redirects_are_followed_over_https_only_and_not_for_ever() {
    let plain = Server::start(|_, _, at| reply("302 Found", &format!("Location: http://{at}/b.tar\r\n"), 0, b""));
    assert!(matches!(plain.fetch(100_000), Err(FetchError::Connection { attempts: 1, .. })));
    let endless = Server::start(|_, _, at| reply("302 Found", &format!("Location: https://{at}/b.tar\r\n"), 0, b""));
    assert!(endless.fetch(100_000).is_err());
    assert_eq!(endless.asked.lock().unwrap().len(), MAX_REDIRECTS as usize + 1);
    let one = Server::start(|i, _, at| match i {
        0 => reply("302 Found", &format!("Location: https://{at}/b.tar\r\n"), 0, b""),
        _ => reply("200 OK", TAGGED, 100_000, &body()),
    });
    assert_eq!(one.fetch(100_000).unwrap(), body());
}

#[test]
fn a_server_that_says_no_or_nothing_is_given_up_with_a_reason() {
    let missing = Server::start(|_, _, _| reply("404 Not Found", "", 0, b""));
    assert!(matches!(missing.fetch(10), Err(FetchError::Status { status: 404, .. })));
    let broken = Server::start(|_, _, _| reply("200 OK", TAGGED, 100, b""));
    let error = broken.fetch(100).unwrap_err();
    assert!(
        matches!(error, FetchError::Connection { attempts: ATTEMPTS, .. }) && error.code() == "download",
        "{error}"
    );
}

#[test]
fn a_server_whose_authority_is_not_trusted_is_refused() {
    let server = Server::start(|_, _, _| reply("200 OK", TAGGED, 100_000, &body()));
    let other = Server::start(|_, _, _| Vec::new());
    let never = AtomicBool::new(false);
    for ca_file in [None, Some(other.ca_file.as_path())] {
        assert!(server.fetch_with(100_000, ca_file, &never, &|_| ()).is_err());
    }
    assert!(server.asked.lock().unwrap().iter().all(Vec::is_empty), "nothing was asked for");
    let empty = other.folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let error = server.fetch_with(10, Some(&empty), &never, &|_| ()).unwrap_err();
    assert!(matches!(error, FetchError::Authorities { .. }), "{error}");
}

#[test]
fn files_are_read_up_to_what_is_allowed_and_pipes_and_folders_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    fs::write(&path, b"12345").unwrap();
    assert_eq!(file(&path, 5).unwrap(), b"12345");
    assert!(matches!(file(&path, 4), Err(FetchError::TooLarge { .. })));
    assert!(matches!(file(folder.path(), 5), Err(FetchError::File { .. })));
    assert!(matches!(file(Path::new("/dev/zero"), 5), Err(FetchError::File { .. })));
    assert!(file(&folder.path().join("none"), 5).unwrap_err().to_string().contains("none"));
}

#[test]
fn only_https_and_file_addresses_and_paths_are_sources() {
    use super::super::store::Source;
    assert!(matches!(Source::parse("HTTPS://x/a.tar"), Ok(Source::Https(_))));
    assert!(matches!(Source::parse("file:///srv/a.tar"), Ok(Source::File(path)) if path == Path::new("/srv/a.tar")));
    assert!(matches!(Source::parse("a.tar"), Ok(Source::File(_))));
    for other in ["http://x/a.tar", "ftp://x", "file://host/a.tar"] {
        assert!(matches!(Source::parse(other), Err(FetchError::Scheme(_))), "{other}");
    }
}
