//! What the fleet's tests share: a real Mosquitto, a real PostgreSQL, the program itself, HTTP without a client library.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes longer unless it hangs.
pub(crate) const HANGS: Duration = Duration::from_secs(90);

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Asks again and again until `look` gives something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < HANGS, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A Mosquitto that keeps every message of a session that is away, as `docs/fleet.md` asks for; killed at drop.
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    folder: TempDir,
    child: Child,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let place = folder.path().display();
        let config = format!(
            "user root\npersistence true\npersistence_location {place}/\nlog_dest none\nmax_queued_messages 0\n\
             max_inflight_messages 1000\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
        );
        std::fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
        let child = Self::spawn(folder.path(), port);
        Self { port, folder, child }
    }

    fn spawn(folder: &Path, port: u16) -> Child {
        let program = ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|path| Path::new(path).exists());
        let child = Command::new(program.unwrap_or("mosquitto"))
            .arg("-c")
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto must be installed; `make test` does it");
        wait_for("mosquitto to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        child
    }

    /// Ended in good order, with its sessions written, and started again.
    pub(crate) fn restart(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.folder.path(), self.port);
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A PostgreSQL cluster of its own, as a user that it accepts; stopped at drop.
pub(crate) struct Postgres {
    folder: TempDir,
    child: Child,
    port: u16,
}

impl Postgres {
    /// `None`, with a word, where there is no PostgreSQL.
    pub(crate) fn start() -> Option<Self> {
        let Some(bin) = postgres_bin() else {
            eprintln!("skipped: PostgreSQL is not installed (no initdb below /usr/lib/postgresql)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for path in [folder.path(), &data].into_iter().filter(|path| !owns_it(path)) {
            let _ = Command::new("chown").arg("nobody").arg(path).status();
        }
        let initdb = as_somebody(&bin.join("initdb"))
            .args(["--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        let port = free_port();
        let child = as_somebody(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"])
            .arg(folder.path())
            .args(["-c", "fsync=off", "-c", "max_connections=60"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("PostgreSQL to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        let postgres = Self { folder, child, port };
        wait_for("PostgreSQL to be ready", || {
            let ready =
                Command::new(bin.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
            ready.is_ok_and(|status| status.success()).then_some(())
        });
        Some(postgres)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://fleet@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn postgres_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<_> =
        versions.flatten().map(|v| v.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
    found.sort();
    found.pop()
}

/// PostgreSQL refuses root: a user namespace in which we are somebody else does where it is allowed, else another user.
fn as_somebody(program: &Path) -> Command {
    const NAMESPACE: [&str; 4] = ["--user", "--map-user=1000", "--map-group=1000", "--"];
    let root = std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if !root {
        return Command::new(program);
    }
    let allowed = Command::new("unshare").args(NAMESPACE).arg("true").stderr(Stdio::null()).status();
    let mut command = if allowed.is_ok_and(|status| status.success()) {
        let mut command = Command::new("unshare");
        command.args(NAMESPACE);
        command
    } else {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]);
        command
    };
    command.arg(program).current_dir("/");
    command
}

/// Whether [`as_somebody`] owns what root owns.
fn owns_it(folder: &Path) -> bool {
    as_somebody(Path::new("test")).arg("-O").arg(folder).status().is_ok_and(|status| status.success())
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_visaged-fleet"));
    command.env("VISAGED_FLEET_LOG", "warn");
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `serve`; killed at drop.
pub(crate) struct Serve {
    pub(crate) address: String,
    pub(crate) child: Child,
}

impl Serve {
    pub(crate) fn start(database: &str, args: &[&str]) -> Self {
        let mut child = program()
            .args(["serve", "--database", database, "--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        assert!(!address.is_empty(), "serve did not start: {:?}", child.wait());
        let serve = Self { address, child };
        wait_for("serve to be ready", || (serve.http("GET", "/readyz", None, "").0 == 200).then_some(()));
        serve
    }

    /// As a power cut would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// As systemd does; whether it ended well.
    pub(crate) fn stop(&mut self) -> bool {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        wait_for("serve to end", || self.child.try_wait().unwrap()).success()
    }

    /// Status and body.
    pub(crate) fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let (status, _, body) = self.raw(method, path, &format!("{token}Content-Type: application/json\r\n"), body);
        (status, body)
    }

    pub(crate) fn json(&self, method: &str, path: &str, token: &str, body: &str) -> Value {
        let (status, text) = self.http(method, path, Some(token), body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Status, head and body.
    pub(crate) fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(HANGS)).unwrap();
        let (host, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, head.to_owned(), body.to_owned())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes a token.
pub(crate) fn token(database: &str, role: &str) -> String {
    let output = run(&["token", "--database", database, "create", "--role", role, "--name", &format!("{role}-test")]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

/// A database in a folder of its own.
pub(crate) fn sqlite() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.db").display().to_string();
    (folder, path)
}
