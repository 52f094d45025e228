//! The real binary as an operator meets it: exit codes, signals, ports in use, wrong files.
#![cfg(feature = "demo")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);

fn visaged() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_visaged"));
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    visaged().args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes numbers only; the child is ours and not yet waited for, so its pid is not another's.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process never ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A free port; another program could take it before we do, which no other program here does.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_demonstration_prints_every_message_as_json_and_ends_by_itself() {
    let output = run(&["demo", "--seconds", "8", "--json", "--no-web"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let payloads = |topic: &str| -> Vec<&Value> {
        let end = format!("/{topic}");
        lines.iter().filter(|l| l["topic"].as_str().unwrap().ends_with(&end)).map(|l| &l["payload"]).collect()
    };
    assert!(payloads("face").iter().any(|event| event["event"] == "enter"), "somebody is in the clip");
    assert_eq!(payloads("status").last().unwrap()["status"], "offline");
    assert!(!payloads("info").is_empty() && !payloads("telemetry").is_empty());
}

#[test]
fn a_reader_that_goes_away_ends_the_demonstration() {
    let mut child =
        visaged().args(["demo", "--json", "--no-web"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("{\"topic\":"), "{first}");
    assert!(wait(&mut child).success());
}

#[test]
fn a_broker_port_in_use_is_exit_1_and_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["demo", "--seconds", "1", "--mqtt-port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&port) && stderr(&output).contains("in use"), "{}", stderr(&output));
}

#[test]
fn a_page_port_asked_for_and_in_use_is_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["demo", "--seconds", "1", "--web-port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("in use"), "{}", stderr(&output));
}

#[test]
fn a_wrong_configuration_is_exit_2_with_every_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "wrong.toml", "[mqtt]\nprot = 1\n[camera]\nfps = 0\n[faces]\nmin_score = 7\n");
    for command in ["run", "check"] {
        let output = run(&[command, "--config", &file]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let text = stderr(&output);
        for part in ["mqtt.prot: is unknown: did you mean port?", "camera.fps = 0", "faces.min_score"] {
            assert!(text.contains(part), "{command}: {part} is missing in {text}");
        }
    }
}

#[test]
fn a_missing_configuration_and_unknown_words_are_exit_2() {
    assert_eq!(run(&["run", "--config", "/nowhere.toml"]).status.code(), Some(2));
    assert_eq!(run(&["dance"]).status.code(), Some(2));
    assert_eq!(run(&["demo", "--seconds", "0"]).status.code(), Some(2));
}

#[test]
fn check_says_what_works_what_does_not_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let spool = folder.path().join("state/spool");
    let text = format!(
        "[camera]\ndevice = \"/dev/null\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n[mqtt.spool]\npath = {spool:?}\n[web]\nenabled = true\nlisten = \"127.0.0.1:0\"\n"
    );
    let file = write(folder.path(), "board.toml", &text);
    let output = run(&["check", "--json", "--config", &file]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |part: &str| -> Value {
        findings["findings"].as_array().unwrap().iter().find(|f| f["part"] == part).unwrap().clone()
    };
    assert_eq!(of("configuration")["works"], true);
    assert_eq!(of("models")["works"], true);
    assert_eq!(of("web")["works"], true);
    assert_eq!(of("metrics")["works"], Value::Null);
    assert_eq!(of("camera")["works"], false);
    assert!(of("camera")["detail"].as_str().unwrap().contains("not a camera"), "{}", of("camera"));
    assert_eq!(of("broker")["works"], false);
    assert!(of("broker")["detail"].as_str().unwrap().contains("is it running"), "{}", of("broker"));
    assert_eq!(of("spool")["works"], true, "{}", of("spool"));
    assert!(of("spool")["detail"].as_str().unwrap().contains("67.1 MB at most, room for"), "{}", of("spool"));
    assert!(!folder.path().join("state").exists(), "a check changes nothing");
}

#[test]
fn check_says_what_keeps_the_spool_from_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = write(folder.path(), "file", "");
    let check = |spool: &str| {
        let text = format!("[camera]\nsource = \"pattern\"\n[mqtt.spool]\n{spool}\n");
        let file = write(folder.path(), "board.toml", &text);
        let output = run(&["check", "--config", &file]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains("spool")).unwrap().to_owned()
    };
    let said = check(&format!("path = \"{in_the_way}/spool\""));
    assert!(said.starts_with("FAILS") && said.contains("file in the way"), "{said}");
    // The most that can be asked for, on the smallest file system there is.
    let said = check("path = \"/dev/spool\"\nmax_bytes = 68719476736");
    assert!(said.starts_with("FAILS") && said.contains("ask for less"), "{said}");
}

#[test]
fn two_daemons_on_one_spool_are_refused_with_exit_1_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let spool = folder.path().join("spool");
    let text = format!(
        "[camera]\nsource = \"pattern\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n[mqtt.spool]\npath = {spool:?}\n"
    );
    let file = write(folder.path(), "run.toml", &text);
    let mut first = visaged().args(["run", "--config", &file]).stderr(Stdio::piped()).spawn().unwrap();
    read_until(&mut BufReader::new(first.stderr.take().unwrap()), "frames come");
    let second = run(&["run", "--config", &file]);
    assert_eq!(second.status.code(), Some(1));
    let said = stderr(&second);
    assert!(said.contains("another process") && said.contains("mqtt.spool.path"), "{said}");
    signal(&first, libc::SIGTERM);
    assert!(wait(&mut first).success());
}

#[test]
fn a_spool_that_cannot_be_used_makes_the_daemon_degraded_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = write(folder.path(), "file", "");
    let socket_path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    let text =
        format!("[camera]\nsource = \"pattern\"\n[mqtt]\nport = 1\n[mqtt.spool]\npath = \"{in_the_way}/spool\"\n");
    let file = write(folder.path(), "run.toml", &text);
    let mut command = visaged();
    command.args(["run", "--config", &file]).env("NOTIFY_SOCKET", &socket_path);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let said = told(&socket, |all| all.contains("STATUS=degraded: spool "));
    assert!(said.contains("Not a directory"), "{said}");
    std::fs::remove_file(&in_the_way).unwrap();
    told(&socket, |all| all.contains("STATUS=online"));
    signal(&child, libc::SIGTERM);
    assert!(wait(&mut child).success());
}

#[test]
fn a_bundle_that_is_none_stops_the_daemon_at_once_with_exit_1() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[models]\nderl = \"{}\"\n[mqtt]\nenabled = false\n", folder.path().display());
    let file = write(folder.path(), "v.toml", &text);
    let output = run(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("manifest.toml"), "{}", stderr(&output));
}

/// A running daemon on the test pattern, its page and its log.
fn daemon(folder: &Path, more: &str) -> (Child, u16, BufReader<std::process::ChildStderr>) {
    let port = free_port();
    let text = format!(
        "[camera]\nsource = \"pattern\"\n[web]\nenabled = true\nlisten = \"127.0.0.1:{port}\"\n[mqtt]\nenabled = false\n{more}"
    );
    let file = write(folder, "run.toml", &text);
    let mut child = visaged().args(["run", "--config", &file]).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    (child, port, log)
}

fn read_until(log: &mut impl std::io::BufRead, what: &str) -> String {
    let mut all = String::new();
    loop {
        let before = all.len();
        assert!(log.read_line(&mut all).unwrap() > 0, "the log ended without {what}: {all}");
        if all[before..].contains(what) {
            return all;
        }
    }
}

#[test]
fn sigterm_ends_the_daemon_within_two_seconds_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, port, mut log) = daemon(folder.path(), "");
    read_until(&mut log, "frames come");
    let mut viewer = TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(
        &mut viewer,
        format!("GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").as_bytes(),
    )
    .unwrap();
    let mut head = [0; 15];
    viewer.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let start = Instant::now();
    signal(&child, libc::SIGTERM);
    let status = wait(&mut child);
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?} with somebody watching", start.elapsed());
}

#[test]
fn sighup_takes_over_a_right_file_and_leaves_a_wrong_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, port, mut log) = daemon(folder.path(), "");
    read_until(&mut log, "frames come");
    write(folder.path(), "run.toml", "[faces]\nmin_scroe = 0.5\n");
    signal(&child, libc::SIGHUP);
    assert!(read_until(&mut log, "not taken over").contains("min_score"));
    write(folder.path(), "run.toml", "[camera]\nsource = \"pattern\"\nfps = 5\n[mqtt]\nenabled = false\n");
    signal(&child, libc::SIGHUP);
    let text = read_until(&mut log, "configuration read again");
    assert!(text.contains("camera") && text.contains("web"), "what waits for a restart is named: {text}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the page is still served");
    signal(&child, libc::SIGINT);
    assert!(wait(&mut child).success());
}

/// What systemd is told until `done`.
fn told(socket: &UnixDatagram, mut done: impl FnMut(&str) -> bool) -> String {
    socket.set_read_timeout(Some(LONG)).unwrap();
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while !done(&all) {
        let len = socket.recv(&mut buffer).expect("systemd was told no more");
        all.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        all.push('\n');
    }
    all
}

#[test]
fn systemd_hears_when_the_daemon_is_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let socket_path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    let text = "[camera]\nsource = \"pattern\"\n[mqtt]\nenabled = false\n";
    let file = write(folder.path(), "run.toml", text);
    let mut command = visaged();
    command.args(["run", "--config", &file]).env("NOTIFY_SOCKET", &socket_path).env("WATCHDOG_USEC", "2000000");
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let begun = told(&socket, |all| all.contains("STATUS=online"));
    assert!(begun.starts_with("READY=1"), "{begun}");
    told(&socket, |all| all.matches("WATCHDOG=1").count() >= 2);
    signal(&child, libc::SIGTERM);
    told(&socket, |all| all.contains("STOPPING=1"));
    assert!(wait(&mut child).success());
}

#[test]
fn json_logs_are_one_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, _, mut log) = daemon(folder.path(), "[log]\nformat = \"json\"\n");
    let text = read_until(&mut log, "frames come");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["level"].is_string());
    }
    signal(&child, libc::SIGTERM);
    assert!(wait(&mut child).success());
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("visaged"), "{shell}");
    }
}
