//! What can be asked over MQTT, with the real program and a real Mosquitto: each command's way, hostile requests, and
//! configurations that break something.

mod mqtt_support;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use mqtt_support::{Gate, Message, Mode, Mosquitto, Recorder, free_port, topics};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

/// A program on the test pattern, its folder, and who listens.
struct Device {
    _mosquitto: Mosquitto,
    /// Between the program and the broker.
    gate: Gate,
    recorder: Recorder,
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Device {
    fn start(allow: &[&str], more: &str) -> Self {
        Self::with_environment(allow, more, Vec::new())
    }

    fn with_environment(allow: &[&str], more: &str, environment: Vec<(&'static str, String)>) -> Self {
        let pattern = "source = \"pattern\" # no camera yet\nwidth_px = 160\nheight_px = 120\nfps = 10";
        Self::with_camera(pattern, allow, more, environment)
    }

    fn with_camera(camera: &str, allow: &[&str], more: &str, environment: Vec<(&'static str, String)>) -> Self {
        let device = Self::launch(camera, allow, more, environment);
        device.wait_online(0);
        device
    }

    /// Without waiting for it.
    fn launch(camera: &str, allow: &[&str], more: &str, environment: Vec<(&'static str, String)>) -> Self {
        let mosquitto = Mosquitto::start();
        let recorder = Recorder::on(mosquitto.port);
        let gate = Gate::to(mosquitto.port, Mode::Open);
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "# this device\n[device]\nsite = \"lobby\"\nname = \"mirror-1\"\n\
             [camera]\n{camera}\n\
             [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"mirror\"\npassword = \"hunter2\"\n\
             reconnect_first_s = 0.05\nreconnect_longest_s = 0.2\ntelemetry_every_s = 1\n\
             [mqtt.spool]\npath = {:?}\n\
             [mqtt.commands]\nallow = {allow:?}\nburst = 50\npath = {:?}\n{more}",
            gate.port,
            folder.path().join("spool"),
            folder.path().join("commands"),
        );
        std::fs::write(folder.path().join("visaged.toml"), text).unwrap();
        let mut device = Self { _mosquitto: mosquitto, gate, recorder, folder, environment, child: None };
        device.run();
        device
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("visaged.toml")
    }

    /// The contents of the files in these of its folders.
    fn files_of(&self, folders: &[&str]) -> Vec<Vec<u8>> {
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(self.folder.path().join(folder)).unwrap());
        entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_visaged"))
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .args(["run", "--config"])
            .arg(self.file())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn wait_ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LONG, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_running(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    fn send(&self, name: &str, payload: &str) {
        self.recorder.publish(&topics().request(name), false, payload);
    }

    fn request(&self, name: &str, id: &str, args: Value) {
        self.send(name, &json!({ "schema": "visaged.cmd.v1", "id": id, "args": args }).to_string());
    }

    /// The `n`-th answer to `id`, counted from 0.
    fn answer(&self, name: &str, id: &str, n: usize) -> Value {
        let what = format!("answer {n} to {name} {id}; log: {}", self.log());
        let messages = self.wait(&what, |messages| answers(messages, name, id).len() > n);
        answers(&messages, name, id).swap_remove(n)
    }

    fn ask(&self, name: &str, id: &str, args: Value) -> Value {
        self.request(name, id, args);
        self.answer(name, id, 0)
    }

    fn code(&self, name: &str, id: &str, args: Value) -> String {
        let answer = self.ask(name, id, args);
        answer["error"]["code"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn wait(&self, what: &str, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        self.recorder.wait(what, enough)
    }

    /// Waits for `online` after the first `from` messages; gives the boot.
    fn wait_online(&self, from: usize) -> String {
        let online = |messages: &[Message]| {
            let newer = messages.iter().skip(from).rev().find(|m| m.topic == topics().status());
            newer.map(Message::json).filter(|status| status["status"] == "online")
        };
        let messages = self.wait(&format!("online; log: {}", self.log()), |messages| online(messages).is_some());
        online(&messages).unwrap()["boot"].as_str().unwrap().to_owned()
    }

    fn boot(&self) -> String {
        self.wait_online(0)
    }

    fn heard(&self) -> usize {
        self.recorder.messages().len()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the program's log: {}", self.log());
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Answers to `id`, each once: an answer may come twice where a connection broke before its acknowledgement.
fn answers(messages: &[Message], name: &str, id: &str) -> Vec<Value> {
    let topic = topics().answer(name);
    let mut found: Vec<Value> =
        messages.iter().filter(|m| m.topic == topic).map(Message::json).filter(|answer| answer["id"] == id).collect();
    found.dedup();
    found
}

fn states(messages: &[Message], name: &str, id: &str) -> Vec<String> {
    answers(messages, name, id).iter().map(|answer| answer["state"].as_str().unwrap().to_owned()).collect()
}

fn check_schemas(messages: &[Message]) {
    let schemas = visaged::mqtt::payload::schemas();
    let schema = &schemas.iter().find(|(file, _)| *file == "rsp.schema.json").unwrap().1;
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    for message in messages.iter().filter(|m| m.topic.contains("/rsp/")) {
        assert!(validator.is_valid(&message.json()), "{}", message.json());
        assert!(!message.retained);
    }
}

#[test]
fn ping_info_and_the_configuration_are_told_without_secrets() {
    let device = Device::start(&["config.get"], "");
    let ping = device.ask("ping", "p", json!({}));
    assert_eq!((&ping["state"], &ping["boot"]), (&json!("succeeded"), &json!(device.boot())));
    assert!(ping["result"]["uptime_s"].as_f64().unwrap() > 0.0);
    let info = device.ask("info", "i", json!({}));
    assert_eq!(info["result"]["schema"], "visaged.info.v1");
    let commands = info["result"]["capabilities"].as_array().unwrap();
    assert!(commands.contains(&json!("cmd/ping")) && commands.contains(&json!("cmd/config.get")));
    assert!(!commands.contains(&json!("cmd/config.set")));
    let config = device.ask("config.get", "c", json!({}));
    let text = config["result"]["toml"].as_str().unwrap();
    assert!(text.contains("# this device") && !text.contains("hunter2"), "{text}");
    assert_eq!(config["result"]["sha256"], visaged::daemon::trial::sha256(device.text()));
    assert_eq!(device.code("restart", "r", json!({})), "not_enabled");
    assert_eq!(device.code("dance", "d", json!({})), "unknown_command");
    check_schemas(&device.recorder.messages());
}

#[test]
fn an_answer_goes_to_the_response_topic_too_with_the_correlation_data() {
    let device = Device::start(&[], "");
    let request = |id: &str| json!({ "schema": "visaged.cmd.v1", "id": id, "args": {} }).to_string();
    device.recorder.ask(&topics().request("ping"), &request("1"), "visaged/v1/office/7", b"\x00\xffc");
    let messages = device.wait("a copy", |messages| messages.iter().any(|m| m.topic == "visaged/v1/office/7"));
    let copy = messages.iter().find(|m| m.topic == "visaged/v1/office/7").unwrap();
    assert_eq!(copy.correlation.as_deref(), Some(b"\x00\xffc".as_slice()));
    device.answer("ping", "1", 0);
    let own = device.recorder.messages().into_iter().find(|m| m.topic == topics().answer("ping")).unwrap();
    assert_eq!((own.payload, own.correlation), (copy.payload.clone(), copy.correlation.clone()));
    device.recorder.ask(&topics().request("ping"), &request("2"), "somewhere/else", b"c");
    device.answer("ping", "2", 0);
    device.ask("ping", "3", json!({}));
    assert!(device.recorder.messages().iter().all(|m| m.topic != "somewhere/else"));
}

#[test]
fn no_picture_is_given_away() {
    let device = Device::start(&["snapshot"], "");
    assert_eq!(device.code("snapshot", "s", json!({})), "forbidden");
}

#[test]
fn a_picture_leaves_only_where_images_are_raw_and_consent_is_given_and_none_is_on_the_disk() {
    let device = Device::start(&["snapshot", "consent.grant"], "[privacy]\nimages = \"raw\"\nrequire_consent = true\n");
    assert_eq!(device.code("snapshot", "1", json!({})), "forbidden");
    device.ask("consent.grant", "2", json!({}));
    assert_eq!(device.answer("consent.grant", "2", 0)["state"], "succeeded");
    device.ask("snapshot", "3", json!({}));
    let answer = device.answer("snapshot", "3", 0);
    let result = &answer["result"];
    assert_eq!(result["media_type"], "image/jpeg", "{answer}");
    let jpeg = base64::engine::general_purpose::STANDARD.decode(result["data"].as_str().unwrap()).unwrap();
    let picture = image::load_from_memory(&jpeg).unwrap();
    assert_eq!(
        (json!(picture.width()), json!(picture.height())),
        (result["width_px"].clone(), result["height_px"].clone())
    );
    device.ask("consent.grant", "4", json!({}));
    device.answer("consent.grant", "4", 0);
    let written = device.files_of(&["commands", "spool"]);
    assert!(!written.is_empty());
    let picture = &result["data"].as_str().unwrap().as_bytes()[..64];
    assert!(written.iter().all(|file| file.windows(picture.len()).all(|part| part != picture)));
}

/// A camera that sees one person.
fn portrait() -> String {
    let faces = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/sfhq_0000.jpg");
    format!("source = \"clip\"\npath = {faces:?}")
}

#[test]
fn an_avatar_leaves_in_place_of_a_picture_and_is_marked_as_synthetic() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles/identity");
    let more = format!("[privacy]\nimages = \"avatar\"\navatar = 1\n[models]\nidentity = {bundle:?}\n");
    let device = Device::with_camera(&portrait(), &["snapshot"], &more, Vec::new());
    device.ask("snapshot", "1", json!({}));
    let answer = device.answer("snapshot", "1", 0);
    let result = &answer["result"];
    assert_eq!((&result["synthetic"], &result["width_px"]), (&json!(true), &json!(128)), "{answer}");
    let jpeg = base64::engine::general_purpose::STANDARD.decode(result["data"].as_str().unwrap()).unwrap();
    let mark = b"trainedAlgorithmicMedia";
    assert!(jpeg.windows(mark.len()).any(|part| part == mark));
    let picture = image::load_from_memory(&jpeg).unwrap().to_rgb8();
    let corner = picture.get_pixel(2, 2);
    for (x, y) in [(125, 2), (2, 125), (125, 125)] {
        let off = picture.get_pixel(x, y).0.iter().zip(corner.0).map(|(a, b)| a.abs_diff(b)).max();
        assert!(off < Some(12), "around the face there is one tone: {off:?} at {x},{y}");
    }
}

#[test]
fn no_picture_leaves_where_no_avatar_can_be_made() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles/identity");
    let cases = [
        ("[privacy]\nimages = \"avatar\"\n[models]\nstore = \"\"\n".to_string(), "no identity bundle"),
        (
            format!("[privacy]\nimages = \"avatar\"\navatar = 7\n[models]\nidentity = {bundle:?}\n"),
            "privacy.avatar is 7",
        ),
    ];
    for (more, said) in cases {
        if said.starts_with("no") && option_env!("VISAGED_BUILD_BUNDLES").unwrap_or_default().contains("identity") {
            continue;
        }
        let device = Device::launch(&portrait(), &["snapshot"], &more, Vec::new());
        // Without any avatar it is degraded, and says why.
        device.wait("its status", |messages| {
            let said = messages.iter().filter(|m| m.topic == topics().status()).map(|m| m.json().to_string());
            said.filter(|said| !said.contains("being opened"))
                .any(|said| said.contains("\"online\"") || said.contains("no picture leaves"))
        });
        device.ask("snapshot", "1", json!({}));
        let answer = device.answer("snapshot", "1", 0);
        assert!(answer["result"].is_null() && answer.to_string().contains(said), "{answer}");
    }
}

#[test]
fn consent_is_needed_given_taken_back_and_ends_and_the_status_says_so() {
    let device = Device::start(&["consent.grant", "consent.revoke"], "[privacy]\nrequire_consent = true\n");
    let wait = |what: &str, from: usize, expected: Value| {
        device.wait(what, |messages| {
            let statuses = messages.iter().skip(from).filter(|m| m.topic == topics().status());
            statuses.map(Message::json).any(|status| status["consent"] == expected)
        });
    };
    let none = json!({ "granted": false, "until": null });
    wait("consent to be needed", 0, none.clone());
    let from = device.heard();
    assert_eq!(device.ask("consent.grant", "1", json!({}))["result"], json!({ "granted": true, "until": null }));
    wait("consent", from, json!({ "granted": true, "until": null }));
    assert_eq!(device.ask("consent.revoke", "2", json!({}))["result"], none);
    wait("no consent", from, none.clone());
    let from = device.heard();
    let limited = device.ask("consent.set", "3", json!({ "granted": true, "for_s": 1 }));
    assert!(limited["result"]["until"].is_string(), "{limited}");
    wait("the end of consent", from, none);
    let telemetry = |m: &Message| m.topic == topics().telemetry() && !m.json()["consent"].is_null();
    device.wait("telemetry with consent", |messages| messages.iter().any(telemetry));
}

#[test]
fn home_assistants_switch_gives_consent() {
    let more = "[mqtt.home_assistant]\n[privacy]\nrequire_consent = true\n";
    let device = Device::start(&["consent.grant", "consent.revoke"], more);
    let topic = "homeassistant/device/visaged_lobby_mirror-1/config";
    let messages = device.wait("discovery", |messages| messages.iter().any(|m| m.topic == topic));
    let discovery = messages.iter().find(|m| m.topic == topic).unwrap().json();
    let switch = &discovery["cmps"]["consent"];
    let press = switch["command_template"].as_str().unwrap();
    let press = press.replace("{{ (as_timestamp(now()) * 1000) | int }}", "1767225600000");
    let press = press.replace("{{ 'true' if value == 'ON' else 'false' }}", "true");
    device.recorder.publish(switch["command_topic"].as_str().unwrap(), false, &press);
    assert_eq!(device.answer("consent.set", "ha-1767225600000", 0)["result"]["granted"], true);
    let state = switch["state_topic"].as_str().unwrap();
    device.wait("the switch to be on", |messages| {
        messages.iter().any(|m| m.topic == state && m.json()["consent"]["granted"] == true)
    });
}

#[test]
fn where_no_consent_is_required_none_can_be_given() {
    let device = Device::start(&["consent.grant"], "");
    assert_eq!(device.code("consent.grant", "1", json!({})), "forbidden");
}

#[test]
fn the_log_says_more_for_a_while() {
    let device = Device::start(&["log.level"], "[log]\nfilter = \"warn\"\n");
    assert_eq!(device.code("log.level", "1", json!({ "level": "a=b=c" })), "invalid_args");
    let answer = device.ask("log.level", "2", json!({ "level": "visaged=info", "for_s": 1 }));
    assert_eq!(answer["result"], json!({ "level": "visaged=info" }));
    let told = |device: &Device| device.log().matches("a command is carried out").count();
    assert_eq!(told(&device), 0);
    device.ask("log.level", "3", json!({ "level": "visaged=info", "for_s": 1 }));
    assert_eq!(told(&device), 1, "{}", device.log());
    std::thread::sleep(Duration::from_millis(1500));
    device.ask("log.level", "4", json!({ "level": "visaged=info", "for_s": 1 }));
    assert_eq!(told(&device), 1, "the configured filter is back: {}", device.log());
}

#[test]
fn a_restart_says_offline_and_is_answered_by_the_next_boot_once_whoever_asks_again() {
    let mut device = Device::start(&["restart"], "");
    let (boot, from) = (device.boot(), device.heard());
    let begun = device.ask("restart", "again", json!({}));
    assert_eq!((&begun["state"], &begun["boot"]), (&json!("in_progress"), &json!(boot)));
    let done = device.answer("restart", "again", 1);
    assert_eq!(done["state"], "succeeded");
    assert_ne!(done["boot"], json!(boot));
    assert!(device.is_running(), "where there is no systemd it starts itself");
    let statuses: Vec<Value> = device
        .recorder
        .messages()
        .iter()
        .skip(from)
        .filter(|m| m.topic == topics().status())
        .map(Message::json)
        .collect();
    assert!(statuses.iter().any(|s| s["status"] == "offline" && s["reason"] == "stopped"), "{statuses:?}");
    let later = device.wait_online(from);
    device.recorder.ask(
        &topics().request("restart"),
        &json!({ "schema": "visaged.cmd.v1", "id": "again", "args": {} }).to_string(),
        "visaged/v1/office/7",
        b"c",
    );
    let messages =
        device.wait("the answer again", |messages| messages.iter().any(|m| m.topic == "visaged/v1/office/7"));
    assert_eq!(messages.iter().find(|m| m.topic == "visaged/v1/office/7").unwrap().json(), done);
    assert_eq!(device.ask("ping", "p", json!({}))["boot"], json!(later), "and it did not start anew again");
}

#[test]
fn under_systemd_a_restart_ends_the_process_so_that_it_is_started_again() {
    let notify = tempfile::tempdir().unwrap();
    let socket = notify.path().join("notify");
    let _socket = UnixDatagram::bind(&socket).unwrap();
    let mut device = Device::with_environment(&["restart"], "", vec![("NOTIFY_SOCKET", socket.display().to_string())]);
    device.request("restart", "1", json!({}));
    assert_eq!(device.wait_ended().code(), Some(1));
    assert_eq!(states(&device.recorder.messages(), "restart", "1"), ["in_progress"]);
    device.run();
    assert_eq!(device.answer("restart", "1", 1)["state"], "succeeded");
}

#[test]
fn hostile_requests_are_answered_or_ignored_and_the_daemon_goes_on() {
    let device = Device::start(&[], "");
    let oversized = json!({ "schema": "visaged.cmd.v1", "id": "big", "args": { "x": "y".repeat(50_000) } }).to_string();
    device.send("ping", &oversized);
    assert_eq!(device.answer("ping", "", 0)["error"]["code"], "too_large");
    for (n, malformed) in ["", "\0", "{\"schema\":", "[[[[[[[[", "null"].into_iter().enumerate() {
        device.send("info", malformed);
        assert_eq!(device.answer("info", "", n)["error"]["code"], "malformed", "{malformed:?}");
    }
    let retained = json!({ "schema": "visaged.cmd.v1", "id": "kept", "args": {} }).to_string();
    device.recorder.publish(&topics().request("ping"), true, &retained);
    let flood = 500;
    for n in 0..flood {
        device.request("ping", &format!("flood-{n}"), json!({}));
    }
    let messages = device.wait("an answer to each of the flood", |messages| {
        (0..flood).all(|n| !answers(messages, "ping", &format!("flood-{n}")).is_empty())
    });
    let done = (0..flood).filter(|n| states(&messages, "ping", &format!("flood-{n}")) == ["succeeded"]).count();
    assert!((10..200).contains(&done), "{done} of {flood} were carried out");
    let refused = (0..flood).map(|n| answers(&messages, "ping", &format!("flood-{n}")).swap_remove(0));
    let codes: Vec<Value> = refused.filter(|a| a["state"] == "rejected").map(|a| a["error"]["code"].clone()).collect();
    assert_eq!(codes.len(), flood - done);
    assert!(codes.iter().all(|code| code == "rate_limited" || code == "busy"), "{codes:?}");
    assert!(answers(&messages, "ping", "kept").is_empty());
    assert!(device.log().contains("a command is ignored"), "{}", device.log());
    check_schemas(&messages);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(device.ask("ping", "after", json!({}))["state"], "succeeded");
}

const ALL: [&str; 3] = ["config.get", "config.set", "restart"];

fn set(keys: Value) -> Value {
    json!({ "set": keys, "confirm_after_s": 10 })
}

#[test]
fn a_configuration_that_works_is_kept_without_a_restart_where_none_is_needed() {
    let device = Device::start(&ALL, "");
    let (boot, former) = (device.boot(), device.text());
    let begun = device.ask("config.set", "1", set(json!({ "report.enter_after_s": 0.5, "log.filter": "debug" })));
    assert_eq!(begun["state"], "in_progress", "{begun}");
    assert_eq!(device.code("config.set", "2", set(json!({ "faces.min_score": 0.5 }))), "busy");
    assert_eq!(device.code("restart", "3", json!({})), "busy");
    let done = device.answer("config.set", "1", 1);
    assert_eq!((&done["state"], &done["boot"]), (&json!("succeeded"), &json!(boot)), "{done}");
    assert_eq!(done["result"]["changed"], json!(["log.filter", "report.enter_after_s"]));
    let text = device.text();
    assert!(text.starts_with(&former) && text.contains("enter_after_s = 0.5"), "{text}");
    let shown = device.ask("config.get", "4", json!({}));
    assert_eq!(shown["result"]["sha256"], done["result"]["sha256"]);
    assert!(!device.folder.path().join("visaged.toml.trial").exists());
    let same = device.ask("config.set", "5", json!({ "toml": shown["result"]["toml"] }));
    assert_eq!((&same["state"], &same["result"]["changed"]), (&json!("succeeded"), &json!([])), "{same}");
}

#[test]
fn a_configuration_that_is_wrong_forbidden_or_meant_for_another_changes_nothing() {
    let device = Device::with_environment(&ALL, "", vec![("VISAGED_FACES__MIN_SCORE", "0.7".into())]);
    let former = device.text();
    let answer = device.ask("config.set", "1", set(json!({ "mqtt.prot": 1, "camera.fps": 0 })));
    assert_eq!((&answer["state"], &answer["error"]["code"]), (&json!("rejected"), &json!("invalid_config")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("did you mean port?") && message.contains("camera.fps = 0"), "{message}");
    for (id, keys) in [
        ("2", json!({ "mqtt.commands.allow": ["snapshot"] })),
        ("3", json!({ "privacy.require_consent": true })),
        ("4", json!({ "deployment.context": "retail" })),
        ("5", json!({ "mqtt.enabled": false })),
        ("6", json!({ "faces.min_score": 0.5 })),
    ] {
        assert_eq!(device.code("config.set", id, set(keys)), "forbidden", "{id}");
    }
    let other = json!({ "set": { "faces.max_faces": 2 }, "if_sha256": "00".repeat(32) });
    assert_eq!(device.code("config.set", "7", other), "invalid_args");
    assert_eq!(device.code("config.set", "8", json!({ "toml": "[mqtt" })), "invalid_config");
    assert_eq!(device.text(), former);
    assert_eq!(std::fs::read_dir(device.folder.path()).unwrap().count(), 4, "file, log, spool, commands");
}

/// After a configuration was taken back: the former file, online, and the answer.
fn assert_rolled_back(device: &Device, id: &str, former: &str, from: usize) -> Value {
    let done = device.answer("config.set", id, 1);
    assert_eq!((&done["state"], &done["error"]["code"]), (&json!("failed"), &json!("rolled_back")), "{done}");
    assert_eq!(device.text(), former);
    device.wait_online(from);
    let start = Instant::now();
    while device.folder.path().join("visaged.toml.trial").exists() {
        assert!(start.elapsed() < LONG, "the journal stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    done
}

#[test]
fn a_configuration_that_breaks_the_camera_is_rolled_back() {
    let device = Device::start(&ALL, "");
    let former = device.text();
    let keys = json!({ "camera.source": "v4l2", "camera.device": "/dev/there-is-no-camera" });
    assert_eq!(device.ask("config.set", "1", set(keys))["state"], "in_progress");
    device.wait("degraded", |messages| {
        let statuses = messages.iter().filter(|m| m.topic == topics().status()).map(Message::json);
        statuses.filter(|s| s["reason"].as_str().is_some_and(|r| r.contains("there-is-no-camera"))).count() > 0
    });
    let from = device.heard();
    let done = assert_rolled_back(&device, "1", &former, from);
    assert!(done["error"]["message"].as_str().unwrap().contains("there-is-no-camera"), "{done}");
}

#[test]
fn a_configuration_that_breaks_the_brokers_address_is_rolled_back() {
    let device = Device::start(&ALL, "");
    let (former, boot) = (device.text(), device.boot());
    assert_eq!(device.ask("config.set", "1", set(json!({ "mqtt.port": free_port() })))["state"], "in_progress");
    let from = device.heard();
    let done = assert_rolled_back(&device, "1", &former, from);
    assert!(done["error"]["message"].as_str().unwrap().contains("no connection"), "{done}");
    assert_ne!(device.boot(), boot);
}

#[test]
fn a_configuration_that_names_another_broker_takes_the_events_and_the_answer_there() {
    let device = Device::start(&ALL, "[report]\nsummary_every_s = 0.3\n");
    let (boot, other) = (device.boot(), Mosquitto::start());
    let there = Recorder::on(other.port);
    let places = |messages: &[Message], boot: &str| -> std::collections::BTreeSet<u64> {
        let events = messages.iter().filter(|m| m.topic == topics().summary()).map(Message::json);
        events.filter(|event| event["boot"] == *boot).map(|event| event["seq"].as_u64().unwrap()).collect()
    };
    device.wait("events", |messages| places(messages, &boot).len() >= 3);
    assert_eq!(device.ask("config.set", "1", set(json!({ "mqtt.port": other.port })))["state"], "in_progress");
    // What is made from now on is acknowledged by no broker but the other one.
    device.gate.set(Mode::Deaf);
    let done = there.wait("an answer", |messages| !answers(messages, "config.set", "1").is_empty());
    let done = answers(&done, "config.set", "1").pop().unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_ne!(done["boot"], json!(boot));
    let new = done["boot"].as_str().unwrap().to_owned();
    let came = there.wait("events of the new boot", |messages| places(messages, &new).len() >= 3);
    let mut all = places(&device.recorder.messages(), &boot);
    all.extend(&places(&came, &boot));
    assert!(all.iter().copied().eq(0..=*all.last().unwrap()), "{all:?}");
    let orders = came.iter().filter(|m| m.topic == topics().summary()).map(|m| m.json()["boot"] == *new);
    assert!(orders.is_sorted(), "those of the former boot come first");
}

#[test]
fn a_configuration_with_which_the_daemon_does_not_start_is_rolled_back_at_once() {
    let device = Device::start(&ALL, "");
    let former = device.text();
    let from = device.heard();
    device.request("config.set", "1", json!({ "set": { "models.derl": "/there/is/none" }, "confirm_after_s": 600 }));
    let done = assert_rolled_back(&device, "1", &former, from);
    assert!(done["error"]["message"].as_str().unwrap().contains("/there/is/none"), "{done}");
}

#[test]
fn a_kill_between_a_configuration_and_its_confirmation_rolls_it_back() {
    let mut device = Device::start(&ALL, "");
    let former = device.text();
    let long = |keys: Value| json!({ "set": keys, "confirm_after_s": 600 });
    device.ask("config.set", "1", long(json!({ "faces.min_score": 0.5 })));
    assert_ne!(device.text(), former);
    device.kill();
    let from = device.heard();
    device.run();
    assert_rolled_back(&device, "1", &former, from);

    let boot = device.wait_online(from);
    device.ask("config.set", "2", long(json!({ "camera.fps": 5 })));
    device.wait("the start that the configuration needs", |messages| {
        let mut statuses = messages.iter().filter(|m| m.topic == topics().status()).map(Message::json);
        statuses.next_back().is_some_and(|s| s["status"] == "online" && s["boot"] != *boot)
    });
    assert_ne!(device.text(), former);
    device.kill();
    let from = device.heard();
    device.run();
    assert_rolled_back(&device, "2", &former, from);
}

#[test]
fn a_configuration_that_needs_a_restart_is_kept_when_the_next_boot_is_well() {
    let device = Device::start(&ALL, "");
    let boot = device.boot();
    assert_eq!(
        device.ask("config.set", "1", set(json!({ "camera.fps": 5, "mqtt.password": "hunter3" })))["state"],
        "in_progress"
    );
    let done = device.answer("config.set", "1", 1);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_ne!(done["boot"], json!(boot));
    assert!(device.text().contains("fps = 5") && device.text().contains("hunter3"));
    // It goes once the answer is kept, or a crash between the two would lose the answer.
    let (trial, start) = (device.folder.path().join("visaged.toml.trial"), Instant::now());
    while trial.exists() {
        assert!(start.elapsed() < LONG, "the trial never ends");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!device.log().contains("hunter3") && !done.to_string().contains("hunter3"));
}

#[test]
fn a_broker_that_was_away_gets_the_answer_when_it_is_back() {
    let device = Device::start(&ALL, "");
    assert_eq!(device.ask("config.set", "1", set(json!({ "faces.min_score": 0.5 })))["state"], "in_progress");
    device.gate.set(Mode::Shut);
    let start = Instant::now();
    while !device.log().contains("is taken back") {
        assert!(start.elapsed() < LONG, "{}", device.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(states(&device.recorder.messages(), "config.set", "1"), ["in_progress"]);
    device.gate.set(Mode::Open);
    let done = device.answer("config.set", "1", 1);
    assert_eq!(done["error"]["code"], "rolled_back", "without a broker it could not be confirmed: {done}");
}

/// A signer, and the built-in detector as a newer version: archive, signature, SHA-256.
struct Bundle {
    archive: Vec<u8>,
    signature: String,
    sha256: String,
}

fn bundle(keys: &minisign::KeyPair, version: &str) -> Bundle {
    use sha2::Digest as _;
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized/detector");
    for name in ["model.onnx", "weights.safetensors"] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let manifest = std::fs::read_to_string(source.join("manifest.toml")).unwrap();
    let lines = manifest.lines().map(|line| match line.starts_with("version = ") {
        true => format!("version = \"{version}\"\n"),
        false => format!("{line}\n"),
    });
    std::fs::write(folder.path().join("manifest.toml"), lines.collect::<String>()).unwrap();
    let (_, archive) = visaged::models::archive::pack(folder.path()).unwrap();
    let comment = format!("visaged:detector:{version}");
    let signed = minisign::sign(Some(&keys.pk), &keys.sk, archive.as_slice(), Some(&comment), None).unwrap();
    let sha256 = sha2::Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    Bundle { archive, signature: signed.into_string(), sha256 }
}

impl Bundle {
    fn args(&self, version: &str, source: (&str, Value)) -> Value {
        let mut args = json!({
            "task": "detector", "version": version, "sha256": self.sha256, "size": self.archive.len(),
            "signature": self.signature, "expires": "2100-01-01T00:00:00Z",
        });
        args[source.0] = source.1;
        args
    }
}

/// A device that takes what `keys` signs.
fn with_store(keys: &minisign::KeyPair) -> (Device, tempfile::TempDir) {
    let store = tempfile::tempdir().unwrap();
    let more = format!(
        "[models]\nstore = {:?}\nkeys = [\"{}\"]\ntrial_s = 1\n",
        store.path().join("bundles"),
        keys.pk.to_base64()
    );
    (Device::start(&["models.install", "models.rollback", "config.set", "restart"], &more), store)
}

#[test]
fn a_bundle_that_comes_in_parts_is_on_trial_and_answered_when_it_was_proven_and_can_be_rolled_back() {
    use base64::Engine as _;
    // So many parts that they would be beyond the rate if they counted.
    const PART: usize = 4096;
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let (device, _store) = with_store(&keys);
    let bundle = bundle(&keys, "0.1.90");
    let parts: Vec<&[u8]> = bundle.archive.chunks(PART).collect();
    let source = ("chunks", json!({ "count": parts.len(), "size": PART }));
    let begun = device.ask("models.install", "new", bundle.args("0.1.90", source));
    assert_eq!(begun["state"], "in_progress", "{begun}");
    assert!(parts.len() > 60, "{}", parts.len());
    let set = json!({ "set": { "log.filter": "debug" } });
    assert_eq!(device.code("config.set", "set", set), "busy", "a new start would lose the parts");
    assert_eq!(device.code("restart", "restart", json!({})), "busy");
    // The last one first, the first one twice.
    let order = (1..parts.len()).rev().chain([1, 0]);
    for (n, index) in order.enumerate() {
        let data = base64::engine::general_purpose::STANDARD.encode(parts[index]);
        let id = format!("part-{n}");
        let answer = device.ask("models.chunk", &id, json!({ "install": "new", "index": index, "data": data }));
        assert_eq!(answer["state"], "succeeded", "{answer}");
        let left = answer["result"]["missing"] == 0;
        assert_eq!(left, index == 0, "{answer}");
    }
    let states = |n| device.answer("models.install", "new", n);
    assert_eq!((&states(1)["state"], &states(1)["result"]["version"]), (&json!("in_progress"), &json!("0.1.90")));
    let done = states(2);
    assert_eq!((&done["state"], &done["result"]["version"]), (&json!("succeeded"), &json!("0.1.90")), "{done}");
    assert_ne!(done["boot"], begun["boot"], "by the boot that proved it");

    let begun = device.ask("models.rollback", "back", json!({ "task": "detector" }));
    assert_eq!(begun["state"], "in_progress", "{begun}");
    let done = device.answer("models.rollback", "back", 1);
    assert_eq!((&done["state"], &done["result"]["previous"]), (&json!("succeeded"), &json!("0.1.90")), "{done}");
    assert_eq!(device.code("models.rollback", "again", json!({ "task": "detector" })), "version");
}

#[test]
fn a_bundle_that_is_refused_over_mqtt_is_answered_with_the_code_of_the_reason() {
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let (device, folder) = with_store(&keys);
    let bundle = bundle(&keys, "0.1.90");
    let path = folder.path().join("a.tar");
    std::fs::write(&path, &bundle.archive).unwrap();
    let url = ("url", json!(format!("file://{}", path.display())));
    let ended = |id: &str, args: Value| {
        let begun = device.ask("models.install", id, args);
        assert_eq!(begun["state"], "in_progress", "{begun}");
        let ended = device.answer("models.install", id, 1);
        assert_eq!(ended["state"], "failed");
        ended["error"]["code"].as_str().unwrap().to_owned()
    };
    let stranger = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let strange = self::bundle(&stranger, "0.1.90");
    assert_eq!(ended("signed", strange.args("0.1.90", url.clone())), "signature");
    assert_eq!(ended("older", bundle.args("0.0.1", url.clone())), "version");
    assert_eq!(ended("none", bundle.args("0.1.90", ("url", json!("file:///there/is/none.tar")))), "download");
    let mut damaged = bundle.args("0.1.90", url.clone());
    damaged["sha256"] = json!("0".repeat(64));
    assert_eq!(ended("damaged", damaged), "hash");
    let mut other = bundle.args("0.1.90", url);
    other["task"] = json!("nose");
    assert_eq!(device.code("models.install", "nose", other), "invalid_args");
    assert_eq!(device.ask("ping", "p", json!({}))["state"], "succeeded");
}
