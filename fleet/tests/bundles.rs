//! Hosted model bundles: from upload to every device's outcome, with simulated devices and with the daemon itself.

mod support;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Mosquitto, Serve, program, run, sqlite, stderr, stdout, token, wait_for};

fn sign(keys: &minisign::KeyPair, archive: &[u8], comment: &str) -> String {
    minisign::sign(Some(&keys.pk), &keys.sk, Cursor::new(archive), Some(comment), None).unwrap().into_string()
}

/// A server with what is needed to ask it.
struct Operator {
    serve: Serve,
    token: String,
}

impl Operator {
    fn start(database: &str, broker: &Mosquitto, more: &[&str]) -> Self {
        let url = broker.url();
        let serve = Serve::start(database, &[&["--broker", url.as_str()][..], more].concat());
        let token = token(database, "operate");
        Self { serve, token }
    }

    fn get(&self, path: &str) -> Value {
        self.serve.json("GET", path, &self.token, "")
    }

    /// A roll-out that has begun.
    fn roll_out(&self, args: &Value, site: &str) -> String {
        let body = json!({
            "name": "n", "command": "models.install", "args": args, "target": {"site": site},
            // The clock of the machine of a test may not be synchronised.
            "plan": {"waves": ["1"], "timeout_s": 120, "without_expiry": true},
        });
        let made = self.serve.json("POST", "/api/v1/rollouts", &self.token, &body.to_string());
        made["id"].as_str().unwrap().to_owned()
    }

    fn settled(&self, id: &str) -> Value {
        wait_for("the roll-out to settle", || {
            let rollout = self.get(&format!("/api/v1/rollouts/{id}"));
            (rollout["settled"] == true).then_some(rollout)
        })
    }

    fn devices(&self, id: &str) -> Vec<Value> {
        self.get(&format!("/api/v1/rollouts/{id}/devices")).as_array().unwrap().clone()
    }
}

#[test]
fn a_hosted_bundle_reaches_devices_in_parts_and_is_there_over_http_from_any_byte_on() {
    let broker = Mosquitto::start();
    let (folder, database) = sqlite();
    let operator = Operator::start(&database, &broker, &["--public-url", "https://fleet.example/"]);
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let mut archive: Vec<u8> =
        (0..1_000_000).map(|i: u32| b'a' + (i.wrapping_mul(2_654_435_761) >> 20) as u8 % 26).collect();
    archive[257..262].copy_from_slice(b"ustar");
    let file = folder.path().join("derl.tar").display().to_string();
    std::fs::write(&file, &archive).unwrap();
    let signature = sign(&keys, &archive, "visaged:derl:2.0.0");
    std::fs::write(format!("{file}.minisig"), &signature).unwrap();
    let add = ["models", "--database", &database, "add", &file];
    for _ in 0..2 {
        let added = run(&add);
        assert_eq!((stdout(&added).as_str(), added.status.code()), ("derl-2.0.0\n", Some(0)), "{}", stderr(&added));
    }
    let other = sign(&keys, &archive[..999_999], "visaged:derl:2.0.0");
    let upload = |archive: &[u8], signature: &str| {
        let body = json!({"archive": STANDARD.encode(archive), "signature": signature});
        operator.serve.http("POST", "/api/v1/bundles", Some(&operator.token), &body.to_string()).0
    };
    assert_eq!(upload(&archive, &signature), 200, "the same again");
    assert_eq!(upload(&archive[..999_999], &other), 409, "another one under this version");
    assert_eq!(upload(&archive, "signed by me"), 400);

    let hosted = operator.get("/api/v1/bundles")[0].clone();
    assert_eq!((&hosted["name"], &hosted["parts"]), (&json!("derl-2.0.0"), &json!(31)));
    let path = format!("/bundles/{}/derl-2.0.0.tar", hosted["sha256"].as_str().unwrap());
    let (status, head, body) = operator.serve.raw("GET", &path, "", "");
    assert_eq!((status, body.as_bytes() == archive), (200, true));
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    for from in [0, 1, 40_000, 999_999] {
        let (status, head, body) =
            operator.serve.raw("GET", &path, &format!("Range: bytes={from}-\r\nIf-Range: {tag}\r\n"), "");
        assert_eq!((status, body.as_bytes() == &archive[from..]), (206, true), "from {from}");
        assert!(head.contains(&format!("content-range: bytes {from}-999999/1000000")), "{head}");
    }
    let other = operator.serve.raw("GET", &path, "Range: bytes=5-\r\nIf-Range: \"other\"\r\n", "");
    assert_eq!((other.0, other.2.len()), (200, 1_000_000), "it was another one: the whole");
    assert_eq!(operator.serve.raw("GET", &path, "Range: bytes=1000000-\r\n", "").0, 416);

    let devices = program()
        .args(["simulate", "--broker", &broker.url(), "--devices", "3", "--sites", "1", "--calm", "--command-s", "0.2"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let devices = Ended(devices);
    wait_for("all devices", || (operator.get("/api/v1/overview")["online"] == 3).then_some(()));
    let via = |via: &str| operator.roll_out(&json!({"bundle": "derl-2.0.0", "via": via}), "site-00");
    let rollout = via("mqtt");
    let ended = operator.settled(&rollout);
    assert_eq!((&ended["state"], &ended["devices"]), (&json!("completed"), &json!({"succeeded": 3})), "{ended}");
    assert!(operator.devices(&rollout).iter().all(|device| device["parts_arrived"] == 31));
    let rollout = operator.settled(&via("https"));
    assert_eq!(rollout["args"]["url"], format!("https://fleet.example{path}"));
    assert_eq!(rollout["state"], "completed");
    drop(devices);

    // Where nobody listens any more it stays on its way, and so it stays here.
    let args = json!({"bundle": "derl-2.0.0", "via": "mqtt"});
    let waiting = operator.roll_out(&args, "site-00");
    let remove = || operator.serve.http("DELETE", "/api/v1/bundles/derl-2.0.0", Some(&operator.token), "").0;
    assert_eq!(remove(), 409);
    operator.serve.http("POST", &format!("/api/v1/rollouts/{waiting}/cancel"), Some(&operator.token), "");
    assert_eq!(operator.serve.http("DELETE", "/api/v1/bundles/none", Some(&operator.token), "").0, 404);
    let none = json!({"name": "n", "command": "models.install", "args": {"bundle": "nose-1.0.0"}, "plan": {"waves": [], "timeout_s": 9}});
    let (status, text) = operator.serve.http("POST", "/api/v1/rollouts", Some(&operator.token), &none.to_string());
    assert!(status == 400 && text.contains("derl-2.0.0"), "what there is is said: {text}");
}

#[test]
fn the_newest_hosted_version_of_each_task_is_said_and_kept_by_the_broker() {
    let broker = Mosquitto::start();
    let (folder, database) = sqlite();
    let operator = Operator::start(&database, &broker, &[]);
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    for (number, version) in ["0.9.0", "0.10.0", "0.2.0"].into_iter().enumerate() {
        let mut archive = vec![b'0' + number as u8; 1024];
        archive[257..262].copy_from_slice(b"ustar");
        let file = folder.path().join(format!("{version}.tar")).display().to_string();
        std::fs::write(&file, &archive).unwrap();
        std::fs::write(format!("{file}.minisig"), sign(&keys, &archive, &format!("visaged:derl:{version}"))).unwrap();
        assert!(run(&["models", "--database", &database, "add", &file]).status.success());
    }
    let said = || {
        let args = ["-V", "5", "-p", &broker.port.to_string(), "-t", "visaged/fleet/models", "-C", "1", "-W", "2"];
        let heard = Command::new("mosquitto_sub").args(args).output().unwrap();
        serde_json::from_slice::<Value>(&heard.stdout).ok()
    };
    let said = wait_for("the newest version", || said().filter(|said| said["models"][0]["version"] == "0.10.0"));
    assert_eq!((&said["models"][0]["task"], said["models"].as_array().unwrap().len()), (&json!("derl"), 1));
    drop(operator);
}

/// Ended, whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon beside this program, as `cargo test --workspace` builds both; or the one that `VISAGED_BIN` names.
fn visaged() -> Command {
    let beside = || Path::new(env!("CARGO_BIN_EXE_visaged-fleet")).with_file_name("visaged");
    let binary = std::env::var_os("VISAGED_BIN").map_or_else(beside, PathBuf::from);
    assert!(binary.exists(), "no {}: build the whole workspace, or name the daemon in VISAGED_BIN", binary.display());
    let mut command = Command::new(binary);
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

/// The built-in bundle of `task` as a much newer version: its version, and the archive as the daemon's own tool packs it.
fn pack(folder: &Path, task: &str, patch: u32) -> (String, Vec<u8>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models-quantized").join(task);
    let copy = folder.join(format!("{task}-{patch}"));
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(&source).unwrap().flatten().filter(|file| file.file_name() != "CARD.md") {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let manifest = std::fs::read_to_string(source.join("manifest.toml")).unwrap();
    let was = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"')).unwrap();
    let version = format!("{}.{patch}", was.rsplit_once('.').unwrap().0);
    let changed = manifest.replace(&format!("version = \"{was}\""), &format!("version = \"{version}\""));
    std::fs::write(copy.join("manifest.toml"), changed).unwrap();
    let archive = folder.join(format!("{task}-{patch}.tar"));
    let packed = visaged().args(["models", "pack"]).arg(&copy).arg("-o").arg(&archive).output().unwrap();
    assert!(packed.status.success(), "{}", stderr(&packed));
    (version, std::fs::read(archive).unwrap())
}

/// A configured daemon on the bundled clip; `run` starts it.
fn device(folder: &Path, broker: &Mosquitto, site: &str, name: &str, key: &str) -> impl Fn() -> Ended + use<> {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).unwrap();
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo.gif");
    let at = |part: &str| folder.join(part);
    let text = format!(
        "[device]\nsite = \"{site}\"\nname = \"{name}\"\n[camera]\nsource = \"clip\"\npath = {clip:?}\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nreconnect_first_s = 0.05\nreconnect_longest_s = 0.2\n\
         [mqtt.spool]\npath = {:?}\n[mqtt.commands]\nallow = [\"models.install\"]\npath = {:?}\n\
         [models]\nstore = {:?}\nkeys = [\"{key}\"]\ntrial_s = 1\n",
        broker.port,
        at("spool"),
        at("commands"),
        at("bundles"),
    );
    std::fs::write(at("visaged.toml"), text).unwrap();
    let (config, log) = (at("visaged.toml"), at("log"));
    move || {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        Ended(visaged().args(["run", "--config"]).arg(&config).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

#[test]
fn daemons_install_a_good_bundle_refuse_a_strangers_and_one_killed_amid_the_parts_comes_to_an_end() {
    let broker = Mosquitto::start();
    let (folder, database) = sqlite();
    let operator = Operator::start(&database, &broker, &[]);
    let [keys, stranger] = [(); 2].map(|()| minisign::KeyPair::generate_unencrypted_keypair().unwrap());
    let host = |task: &str, patch: u32, keys: &minisign::KeyPair| {
        let (version, archive) = pack(folder.path(), task, patch);
        let signature = sign(keys, &archive, &format!("visaged:{task}:{version}"));
        let body = json!({"archive": STANDARD.encode(&archive), "signature": signature}).to_string();
        let hosted = operator.serve.json("POST", "/api/v1/bundles", &operator.token, &body);
        (json!({"bundle": hosted["name"]}), version)
    };
    let device = |site: &str, name: &str| device(folder.path(), &broker, site, name, &keys.pk.to_base64());
    let online = |n: u64| {
        wait_for("the daemons to be online", || (operator.get("/api/v1/overview")["online"] == n).then_some(()));
    };
    let runs = |site: &str, name: &str, task: &str| {
        let info = operator.get(&format!("/api/v1/devices/{site}/{name}"))["info"].clone();
        let model = info["models"].as_array().unwrap().iter().find(|model| model["name"] == task).unwrap().clone();
        model["version"].as_str().unwrap().to_owned()
    };
    let hall = [device("hall", "one")(), device("hall", "two")()];
    online(2);

    let (good, version) = host("detector", 900, &keys);
    let id = operator.roll_out(&good, "hall");
    let ended = operator.settled(&id);
    assert_eq!((&ended["state"], &ended["devices"]), (&json!("completed"), &json!({"succeeded": 2})), "{ended}");
    let devices = operator.devices(&id);
    assert_eq!((&devices[0]["wave"], &devices[1]["wave"]), (&json!(0), &json!(1)));
    assert!(devices[0]["ended"].as_str() <= devices[1]["begun"].as_str(), "one after the other: {devices:?}");
    assert_eq!([runs("hall", "one", "detector"), runs("hall", "two", "detector")], [version.clone(), version]);

    let (strange, _) = host("detector", 901, &stranger);
    let id = operator.roll_out(&strange, "hall");
    let ended = operator.settled(&id);
    assert_eq!(
        (&ended["state"], &ended["devices"]),
        (&json!("aborted"), &json!({"failed": 1, "canceled": 1})),
        "{ended}"
    );
    let detail = operator.devices(&id)[0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with("signature: "), "{detail}");
    drop(hall);
    // Else the last of the hall could be taken for the first of the cellar.
    online(0);

    let cellar = device("cellar", "three");
    let running = cellar();
    online(1);
    let (large, version) = host("derl", 900, &keys);
    let id = operator.roll_out(&large, "cellar");
    let parts = wait_for("some parts to have arrived", || {
        let device = operator.devices(&id).remove(0);
        device["parts_arrived"]
            .as_i64()
            .filter(|arrived| *arrived >= 8)
            .map(|arrived| (arrived, device["parts"].clone()))
    });
    drop(running);
    assert!(json!(parts.0).as_i64() < parts.1.as_i64(), "killed amid the parts: {parts:?}");
    let _running = cellar();
    let ended = operator.settled(&id);
    assert_eq!((&ended["state"], &ended["devices"]), (&json!("aborted"), &json!({"failed": 1})), "{ended}");
    let detail = operator.devices(&id)[0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("before the bundle was in place"), "{detail}");
    let ended = operator.settled(&operator.roll_out(&large, "cellar"));
    assert_eq!((&ended["state"], &ended["devices"]), (&json!("completed"), &json!({"succeeded": 1})), "{ended}");
    assert_eq!(runs("cellar", "three", "derl"), version);
}
