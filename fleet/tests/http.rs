//! The API with a broker and simulated devices behind it.

mod support;

use std::process::{Child, Stdio};

use serde_json::{Value, json};
use support::{Mosquitto, Serve, program, run, sqlite, token, wait_for};

/// A server with simulated devices; all end with it.
struct Fleet {
    serve: Serve,
    read: String,
    operate: String,
    devices: Child,
    _broker: Mosquitto,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn start(count: usize, more: &[&str]) -> Self {
        let broker = Mosquitto::start();
        let (folder, database) = sqlite();
        let serve = Serve::start(&database, &["--broker", &broker.url()]);
        let (read, operate) = (token(&database, "read"), token(&database, "operate"));
        let devices = program()
            .args([
                "simulate",
                "--broker",
                &broker.url(),
                "--devices",
                &count.to_string(),
                "--calm",
                "--command-s",
                "0.2",
            ])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let fleet = Self { serve, read, operate, devices, _broker: broker, _folder: folder };
        wait_for("all devices to be online", || (fleet.get("/api/v1/overview")["online"] == count).then_some(()));
        fleet
    }

    fn get(&self, path: &str) -> Value {
        self.serve.json("GET", path, &self.read, "")
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.serve.json("POST", path, &self.operate, &body.to_string())
    }

    fn rollout(&self, body: &Value) -> String {
        self.post("/api/v1/rollouts", body)["id"].as_str().unwrap().to_owned()
    }

    fn wait_settled(&self, id: &str) -> Value {
        wait_for("the roll-out to settle", || {
            let rollout = self.get(&format!("/api/v1/rollouts/{id}"));
            (rollout["settled"] == true).then_some(rollout)
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.devices.kill();
        let _ = self.devices.wait();
    }
}

fn slower(waves: &[&str], timeout_s: u32) -> Value {
    json!({
        "name": "slower", "command": "config.set", "args": {"set": {"camera.fps": 15}, "confirm_after_s": 10},
        "plan": {"waves": waves, "timeout_s": timeout_s},
    })
}

#[test]
fn a_roll_out_reaches_every_device_and_a_failing_one_stops_at_its_wave() {
    let fleet = Fleet::start(8, &["--sites", "2"]);
    let id = fleet.rollout(&slower(&["1", "50%"], 60));
    let rollout = fleet.wait_settled(&id);
    assert_eq!((&rollout["state"], &rollout["devices"]), (&json!("completed"), &json!({"succeeded": 8})));
    let devices = fleet.get(&format!("/api/v1/rollouts/{id}/devices"));
    let waves: Vec<_> = devices.as_array().unwrap().iter().map(|device| device["wave"].as_i64().unwrap()).collect();
    assert_eq!(waves, [0, 1, 1, 1, 1, 2, 2, 2]);
    let ended = |wave: i64| {
        let of = devices.as_array().unwrap().iter().filter(move |device| device["wave"] == wave);
        of.map(|device| (device["begun"].as_str().unwrap().to_owned(), device["ended"].as_str().unwrap().to_owned()))
    };
    assert!(
        ended(0).map(|d| d.1).max() <= ended(1).map(|d| d.0).min(),
        "the second wave began after the first had ended"
    );

    let hash = "ab".repeat(32);
    let install = json!({
        "name": "derl 2", "command": "models.install", "target": {"site": "site-01"},
        "args": {"task": "derl", "version": "2", "url": "https://models.example/derl-2.tar", "sha256": hash, "size": 1000, "signature": "s",
            "expires": "2099-01-01T00:00:00Z"},
        "plan": {"waves": ["1"], "timeout_s": 60},
    });
    let rollout = fleet.wait_settled(&fleet.rollout(&install));
    assert_eq!((&rollout["state"], &rollout["devices"]), (&json!("completed"), &json!({"succeeded": 4})));
    let versions = || {
        let devices = fleet.get("/api/v1/devices");
        let of = |site: &str| -> Vec<Value> {
            let devices = devices.as_array().unwrap().iter().filter(|device| device["site"] == site);
            devices.map(|device| device["info"]["models"][0]["version"].clone()).collect()
        };
        (of("site-00"), of("site-01"))
    };
    wait_for("the registry to show the new models", || {
        (versions() == (vec![json!("1"); 4], vec![json!("2"); 4])).then_some(())
    });
}

#[test]
fn a_roll_out_that_fails_touches_nobody_beyond_its_wave() {
    let fleet = Fleet::start(6, &["--command-failure-percent", "100"]);
    let id = fleet.rollout(&slower(&["2"], 60));
    let rollout = fleet.wait_settled(&id);
    assert_eq!(rollout["state"], "aborted");
    assert!(rollout["reason"].as_str().unwrap().starts_with("wave 1: "), "{rollout}");
    assert_eq!(rollout["devices"]["canceled"], 4);
    let commanded: i64 = (fleet.get("/api/v1/devices").as_array().unwrap().iter())
        .map(|d| {
            fleet.get(&format!(
                "/api/v1/devices/{}/{}/commands",
                d["site"].as_str().unwrap(),
                d["device"].as_str().unwrap()
            ))
        })
        .map(|commands| commands.as_array().unwrap().len() as i64)
        .sum();
    assert_eq!(commanded, 2, "no other device got a command");
}

#[test]
fn a_roll_out_is_paused_resumed_and_canceled_by_operators_alone_and_the_log_says_who() {
    let fleet = Fleet::start(3, &[]);
    let mut slow = slower(&["1", "1"], 60);
    slow["name"] = json!("by hand");
    let id = fleet.rollout(&slow);
    let act = |token: &str, action: &str| {
        fleet.serve.http("POST", &format!("/api/v1/rollouts/{id}/{action}"), Some(token), "").0
    };
    assert_eq!(act(&fleet.read, "pause"), 403);
    assert_eq!(act(&fleet.operate, "pause"), 204);
    assert_eq!(act(&fleet.operate, "pause"), 409, "it is paused already");
    assert_eq!(fleet.get(&format!("/api/v1/rollouts/{id}"))["state"], "paused");
    assert_eq!(act(&fleet.operate, "resume"), 204);
    assert_eq!(act(&fleet.operate, "cancel"), 204);
    assert_eq!(act(&fleet.operate, "resume"), 409);
    assert_eq!(act(&fleet.operate, "explode"), 400);
    let rollout = fleet.wait_settled(&id);
    assert_eq!((&rollout["state"], &rollout["reason"]), (&json!("canceled"), &json!("canceled by operate-test")));
    let log = fleet.get("/api/v1/audit-log");
    let of_it: Vec<_> = log.as_array().unwrap().iter().filter(|entry| entry["object"] == id.as_str()).collect();
    let actions: Vec<_> = of_it.iter().rev().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["rollout.create", "rollout.pause", "rollout.resume", "rollout.cancel"]);
    assert!(of_it.iter().all(|entry| entry["actor"] == "operate-test"));
}

#[test]
fn a_command_is_answered_and_its_answer_can_be_asked_for() {
    let fleet = Fleet::start(1, &[]);
    let path = "/api/v1/devices/site-00/device-00000";
    let ask =
        |name: &str| fleet.post(&format!("{path}/commands"), &json!({"name": name}))["id"].as_str().unwrap().to_owned();
    let answered = |id: &str, state: &str| {
        wait_for(state, || {
            let command = fleet.get(&format!("/api/v1/commands/{id}"));
            (command["state"] == state).then_some(command)
        })
    };
    let pong = answered(&ask("ping"), "succeeded");
    assert!(pong["result"]["uptime_s"].as_f64().unwrap() >= 0.0);
    let refused = answered(&ask("snapshot"), "rejected");
    assert_eq!(refused["error_code"], "not_enabled");
    let before = fleet.get(path)["boot"].clone();
    answered(&ask("restart"), "succeeded");
    assert_ne!(fleet.get(path)["boot"], before, "the answer to a restart comes from the next boot");
    let (status, text) =
        fleet.serve.http("POST", &format!("{path}/commands"), Some(&fleet.operate), r#"{"name":"format.disk"}"#);
    assert_eq!(status, 400, "{text}");
    fleet.serve.json("PUT", &format!("{path}/tags"), &fleet.operate, r#"{"tags":["entrance","b"]}"#);
    assert_eq!(fleet.get("/api/v1/devices?tag=entrance")[0]["tags"], json!(["b", "entrance"]));
    assert_eq!(fleet.serve.http("PUT", &format!("{path}/tags"), Some(&fleet.operate), r#"{"tags":["a b"]}"#).0, 400);
    assert_eq!(fleet.serve.http("PUT", &format!("{path}/tags"), Some(&fleet.read), r#"{"tags":[]}"#).0, 403);
}

#[test]
fn nothing_is_told_without_a_valid_token_and_nothing_changed_from_a_foreign_page() {
    let (_folder, database) = sqlite();
    let port = support::free_port();
    let serve = Serve::start(&database, &["--embedded-listen", &format!("127.0.0.1:{port}")]);
    let (read, operate) = (token(&database, "read"), token(&database, "operate"));
    let document = serve.json("GET", "/api/v1/openapi.json", &read, "");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 16, "{paths:?}");
    for (path, methods) in paths {
        let path = format!("/api/v1{path}")
            .replace("{site}", "s")
            .replace("{device}", "d")
            .replace("{id}", "x")
            .replace("{action}", "pause")
            .replace("{name}", "x");
        for method in methods.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            assert_eq!(serve.http(&method, &path, None, "{}").0, 401, "{method} {path}");
            assert_eq!(serve.http(&method, &path, Some("vft_wrong"), "{}").0, 401, "{method} {path}");
            let (status, text) = serve.http(&method, &path, Some(&read), "{}");
            if method == "GET" {
                assert!(status == 200 || status == 404, "{method} {path}: {status} {text}");
            } else {
                assert_eq!(status, 403, "{method} {path} wants the role operate: {text}");
                let (status, text) = serve.http(&method, &path, Some(&operate), "{}");
                assert!(
                    (400..500).contains(&status) && status != 401 && status != 403,
                    "{method} {path}: {status} {text}"
                );
                serde_json::from_str::<Value>(&text).unwrap()["error"].as_str().expect("an error is JSON");
            }
        }
    }
    for (path, code) in [("/api/v1/devices?limit=many", 400), ("/api/v1/devices/%F3/d", 400), ("/api/v1/nothing", 404)]
    {
        let (status, text) = serve.http("GET", path, Some(&read), "");
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
        assert!(status == code && said["error"].is_string(), "{path}: {status} {said}");
    }
    for path in ["/", "/rollouts", "/audit-log", "/live", "/metrics", "/devices/s/d"] {
        assert_eq!(serve.http("GET", path, None, "").0, 401, "{path}");
    }
    for path in ["/login", "/page.css", "/page.js", "/icon.svg", "/healthz", "/readyz"] {
        assert_eq!(serve.http("GET", path, None, "").0, 200, "{path}");
    }

    let (status, head, _) =
        serve.raw("POST", "/login", "Content-Type: application/x-www-form-urlencoded\r\n", &format!("token={operate}"));
    assert_eq!(status, 303);
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie =
        format!("Cookie: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n", cookie.split(';').next().unwrap());
    assert_eq!(serve.raw("GET", "/", &cookie, "").0, 200);
    let post = |origin: &str| serve.raw("POST", "/rollouts/x/pause", &format!("{cookie}{origin}"), "").0;
    assert_eq!(post(""), 403, "a browser always says where a change comes from");
    assert_eq!(post("Origin: http://evil.example\r\n"), 403);
    assert_eq!(
        post(&format!("Origin: http://{}\r\n", serve.address)),
        404,
        "our own page may; there is no such roll-out"
    );

    let (_, head, _) = serve.raw("GET", "/login", "", "");
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "x-frame-options: DENY"]
    {
        assert!(head.contains(header), "{header} in {head}");
    }
    let revoked = run(&["token", "--database", &database, "revoke", "operate-test"]);
    assert!(revoked.status.success());
    assert_eq!(serve.raw("GET", "/", &cookie, "").0, 401, "a revoked token opens nothing");
    let listed = support::stdout(&run(&["token", "--database", &database, "list"]));
    assert!(listed.contains("operate-test\toperate\t") && !listed.contains(&operate), "{listed}");
}
