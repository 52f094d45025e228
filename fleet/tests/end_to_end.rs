//! Devices, broker, several servers, one of them killed: everything arrives once, and the audit says so.

mod support;

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use support::{Mosquitto, Postgres, Serve, program, run, sqlite, stderr, stdout, token, wait_for};

/// Runs devices with every fault, kills one of three servers on the way, and holds the store to what the devices say they made.
fn three_servers_one_killed(database: &str) {
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger").display().to_string();
    let serve = |name: &str| Serve::start(database, &["--broker", &broker.url(), "--instance", name, "--lease-s", "3"]);
    let [first, mut second, third] = ["one", "two", "three"].map(serve);
    let read = token(database, "read");

    let devices = program()
        .args([
            "simulate",
            "--broker",
            &broker.url(),
            "--devices",
            "40",
            "--rate",
            "8",
            "--seconds",
            "14",
            "--seed",
            "7",
        ])
        .args(["--drop-s", "6", "--restart-s", "8", "--clock-s", "5", "--overflow-s", "4", "--telemetry-s", "2"])
        .args(["--duplicate-percent", "10", "--late-percent", "10", "--ledger", &ledger])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the first thousand events", || {
        let overview = first.json("GET", "/api/v1/overview", &read, "");
        (overview["events_last_hour"].as_i64()? > 1000).then_some(())
    });
    second.kill();
    let output = devices.wait_with_output().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    for fault in ["drops", "restarts", "clock_jumps", "duplicated", "late", "declared_lost"] {
        assert!(report[fault].as_u64().unwrap() > 0, "no {fault}: {report}");
    }

    // The dead one's session is emptied by a living one, once its lease is over; then nothing is on its way any more.
    let made = report["events"].as_i64().unwrap() - report["declared_lost"].as_i64().unwrap();
    let adopted = |serve: &Serve| {
        metric(&serve.http("GET", "/metrics", Some(&read), "").1, "visaged_fleet_sessions_adopted_total")
    };
    wait_for("the dead one's session to be taken over", || (adopted(&first) + adopted(&third) == 1).then_some(()));
    let audit =
        || -> Value { serde_json::from_str(&stdout(&run(&["audit", "--database", database, "--json"]))).unwrap() };
    let found = wait_for("all events", || Some(audit()).filter(|found| found["events"].as_i64() >= Some(made)));
    assert_eq!(found["events"], made, "each once: {report}");
    assert_eq!(found["missing"], serde_json::json!([]));
    assert_eq!(found["declared"], report["declared_lost"], "{report}");
    let made_something =
        std::fs::read_to_string(&ledger).unwrap().lines().filter(|line| !line.contains("\"events\":0,")).count();
    assert_eq!(found["boots"], made_something);

    let duplicates: f64 = [&first, &third]
        .map(|s| metric(&s.http("GET", "/metrics", Some(&read), "").1, "visaged_fleet_events_duplicate_total") as f64)
        .iter()
        .sum();
    assert!(duplicates > 0.0, "what came twice was seen twice");
    assert!(shared_evenly(&[&first, &third], &read));
    each_boot_is_whole(database, &ledger, &first, &read);
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Every server had a part of the work.
fn shared_evenly(servers: &[&Serve], read: &str) -> bool {
    servers
        .iter()
        .all(|s| metric(&s.http("GET", "/metrics", Some(read), "").1, "visaged_fleet_events_stored_total") > 100)
}

/// Numbers, not only sums: for one device, what is stored of each boot is what the device made less what it gave up.
fn each_boot_is_whole(database: &str, ledger: &str, serve: &Serve, read: &str) {
    let lines: Vec<Value> =
        std::fs::read_to_string(ledger).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let device = lines[0]["device"].as_str().unwrap();
    let events = serve.json("GET", &format!("/api/v1/devices/{device}/events?limit=1000"), read, "");
    let mut stored = BTreeMap::<String, Vec<u64>>::new();
    for event in events.as_array().unwrap() {
        assert_eq!(event["payload"]["seq"], event["seq"]);
        stored.entry(event["boot"].as_str().unwrap().to_owned()).or_default().push(event["seq"].as_u64().unwrap());
    }
    for line in lines.iter().filter(|line| line["device"] == device) {
        let lost: Vec<u64> = line["declared_lost"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let expected: Vec<u64> = (0..line["events"].as_u64().unwrap()).filter(|seq| !lost.contains(seq)).collect();
        let mut found = stored.remove(line["boot"].as_str().unwrap()).unwrap_or_default();
        found.sort_unstable();
        assert_eq!(found, expected, "{device} in {database}");
    }
}

#[test]
fn three_servers_and_a_killed_one_store_each_event_once_in_sqlite() {
    let (_folder, database) = sqlite();
    three_servers_one_killed(&database);
}

#[test]
fn three_servers_and_a_killed_one_store_each_event_once_in_postgresql() {
    let Some(postgres) = Postgres::start() else { return };
    three_servers_one_killed(&postgres.url());
}

#[test]
fn the_audit_names_what_vanished_without_a_word_and_ends_with_1() {
    let broker = Mosquitto::start();
    let (folder, database) = sqlite();
    let ledger = folder.path().join("ledger").display().to_string();
    let _serve = Serve::start(&database, &["--broker", &broker.url()]);
    let devices = run(&[
        "simulate",
        "--broker",
        &broker.url(),
        "--devices",
        "5",
        "--rate",
        "100",
        "--events",
        "200",
        "--calm",
        "--undeclared-loss-permille",
        "30",
        "--ledger",
        &ledger,
    ]);
    assert!(devices.status.success(), "{}", stderr(&devices));
    let report: Value = serde_json::from_str(&stdout(&devices)).unwrap();
    let stored = report["events"].as_i64().unwrap() - report["vanished"].as_i64().unwrap();
    let audit = wait_for("all events", || {
        let audit = run(&["audit", "--database", &database]);
        stdout(&audit).contains(&format!("{stored} events")).then_some(audit)
    });
    assert_eq!(audit.status.code(), Some(1));
    assert!(stderr(&audit).contains("no device declared lost"), "{}", stderr(&audit));
    // All but those after the last event that arrived, which nobody but the device can know of.
    let mut expected = Vec::new();
    for line in std::fs::read_to_string(&ledger).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let vanished: Vec<u64> = line["vanished"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let last = (0..line["events"].as_u64().unwrap()).rev().find(|seq| !vanished.contains(seq)).unwrap();
        expected.extend(
            vanished.iter().filter(|seq| **seq < last).map(|seq| (line["device"].as_str().unwrap().to_owned(), *seq)),
        );
    }
    assert!(!expected.is_empty());
    let mut found = Vec::new();
    for line in stdout(&audit).lines().filter(|line| line.starts_with("missing: ")) {
        let words: Vec<_> = line.split(' ').collect();
        let (from, to): (u64, u64) = (words[5].parse().unwrap(), words[7].parse().unwrap());
        found.extend((from..=to).map(|seq| (words[1].to_owned(), seq)));
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_server_that_was_away_gets_what_came_meanwhile() {
    let broker = Mosquitto::start();
    let (_folder, database) = sqlite();
    let args = ["--broker", &broker.url(), "--instance", "only"];
    let mut serve = Serve::start(&database, &args);
    assert!(serve.stop(), "SIGTERM is a good end");
    let devices =
        run(&["simulate", "--broker", &broker.url(), "--devices", "4", "--rate", "200", "--events", "400", "--calm"]);
    assert!(devices.status.success(), "{}", stderr(&devices));
    let _serve = Serve::start(&database, &args);
    wait_for("all events", || {
        let audit = run(&["audit", "--database", &database]);
        stdout(&audit).contains("1600 events").then_some(())
    });
}

#[test]
fn a_server_that_serves_alone_gets_what_came_between_the_brokers_restart_and_its_own() {
    let mut broker = Mosquitto::start();
    let (_folder, database) = sqlite();
    let shared = ["--broker", &broker.url(), "--instance", "only"];
    let alone = ["--broker", &broker.url(), "--instance", "only", "--alone"];
    // Was not alone before, so that shared subscriptions are in its session.
    assert!(Serve::start(&database, &shared).stop());
    assert!(Serve::start(&database, &alone).stop());
    broker.restart();
    let devices =
        run(&["simulate", "--broker", &broker.url(), "--devices", "4", "--rate", "200", "--events", "400", "--calm"]);
    assert!(devices.status.success(), "{}", stderr(&devices));
    let _serve = Serve::start(&database, &alone);
    wait_for("all events", || {
        let audit = run(&["audit", "--database", &database]);
        stdout(&audit).contains("1600 events").then_some(())
    });
}

/// Restores an older backup, and holds what the audit then says to what the devices made.
#[test]
fn an_older_backup_misses_what_was_acknowledged_after_it_and_the_audit_names_it() {
    let broker = Mosquitto::start();
    let (folder, database) = sqlite();
    let start = || Serve::start(&database, &["--broker", &broker.url(), "--instance", "only"]);
    let mut serve = start();
    let read = token(&database, "read");
    let devices = program()
        .args(["simulate", "--broker", &broker.url(), "--devices", "4", "--rate", "25", "--seconds", "12", "--calm"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stored = |serve: &Serve, events: i64| {
        wait_for("events", || {
            (serve.json("GET", "/api/v1/overview", &read, "")["events_last_hour"].as_i64()? > events).then_some(())
        });
    };
    stored(&serve, 100);
    let backup = folder.path().join("backup.db").display().to_string();
    backup_while_it_runs(&database, &backup);
    stored(&serve, 300);
    assert!(serve.stop());
    for part in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{database}{part}"));
    }
    std::fs::rename(&backup, &database).unwrap();

    let _serve = start();
    let output = devices.wait_with_output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let made = report["events"].as_i64().unwrap();
    let lost = |audit: &Value| -> i64 {
        let missing = audit["missing"].as_array().unwrap().iter();
        missing.map(|m| m["to"].as_i64().unwrap() - m["from"].as_i64().unwrap() + 1).sum()
    };
    let (code, audit) = wait_for("what came after the backup, and what did not", || {
        let audit = run(&["audit", "--database", &database, "--json"]);
        let found: Value = serde_json::from_str(&stdout(&audit)).unwrap();
        (found["events"].as_i64().unwrap() + lost(&found) == made).then_some((audit.status.code(), found))
    });
    assert_eq!(code, Some(1));
    assert!(lost(&audit) >= 150, "at least what came between backup and restore: {audit}");
    assert_eq!(audit["missing"].as_array().unwrap().len(), 4, "one hole a device: {audit}");
}

/// What `sqlite3 FILE ".backup COPY"` does, as far as the server can tell: a reader takes all of it while a writer goes on.
fn backup_while_it_runs(database: &str, copy: &str) {
    sqlx::any::install_default_drivers();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pool = sqlx::AnyPool::connect(&format!("sqlite://{database}")).await.unwrap();
        sqlx::query("VACUUM INTO $1").bind(copy.to_owned()).execute(&pool).await.unwrap();
        pool.close().await;
    });
}

#[test]
fn systemd_is_told_when_the_server_is_ready_and_as_long_as_it_works() {
    let (folder, database) = sqlite();
    let socket = folder.path().join("notify");
    let told = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    told.set_read_timeout(Some(support::HANGS)).unwrap();
    // The broker is not there: the server is ready all the same, and says so.
    let mut child = program()
        .args(["serve", "--database", &database, "--listen", "127.0.0.1:0"])
        .args(["--broker", &format!("mqtt://127.0.0.1:{}", support::free_port())])
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "1500000")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut heard = Vec::new();
    let enough = |heard: &[String]| heard.iter().filter(|word| *word == "WATCHDOG=1").count() >= 3;
    while !enough(&heard) {
        let mut buffer = [0; 4096];
        let length = told.recv(&mut buffer).unwrap();
        heard.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    assert_eq!(heard[0], "READY=1");
    assert!(heard.iter().any(|word| word.starts_with("STATUS=no connection to the broker")), "{heard:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn without_a_broker_the_embedded_one_serves_devices() {
    let (_folder, database) = sqlite();
    let port = support::free_port();
    let listen = format!("127.0.0.1:{port}");
    let serve = Serve::start(&database, &["--embedded-listen", &listen]);
    let url = format!("mqtt://{listen}");
    let devices = run(&["simulate", "--broker", &url, "--devices", "3", "--rate", "50", "--events", "50", "--calm"]);
    assert!(devices.status.success(), "{}", stderr(&devices));
    let read = token(&database, "read");
    wait_for("all events and last words", || {
        let overview = serve.json("GET", "/api/v1/overview", &read, "");
        (overview["events_last_hour"] == 150 && overview["offline"] == 3).then_some(())
    });
    let audit = run(&["audit", "--database", &database]);
    assert!(audit.status.success(), "{}", stdout(&audit));
}

#[test]
fn the_last_will_says_that_a_device_is_gone() {
    let broker = Mosquitto::start();
    let (_folder, database) = sqlite();
    let serve = Serve::start(&database, &["--broker", &broker.url()]);
    let read = token(&database, "read");
    let mut devices = program()
        .args(["simulate", "--broker", &broker.url(), "--devices", "2", "--calm"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = |wanted: &str| {
        let devices = serve.json("GET", "/api/v1/devices", &read, "");
        let all = devices.as_array().unwrap();
        (all.len() == 2 && all.iter().all(|device| device["status"] == wanted)).then(|| devices.clone())
    };
    wait_for("online", || status("online"));
    devices.kill().unwrap();
    devices.wait().unwrap();
    let gone = wait_for("offline by the last will", || status("offline"));
    assert_eq!(gone[0]["reason"], "connection lost");
}

#[test]
fn wrong_usage_is_exit_2_and_what_cannot_be_done_is_exit_1_in_one_line() {
    for args in [
        &["serve", "--broker", "http://x"][..],
        &["serve", "--database", "mysql://x/y"],
        &["serve", "--instance", "a/b"],
        &["simulate"],
        &["simulate", "--broker", "mqtt://x", "--rate", "0"],
        &["token", "create", "--role", "king", "--name", "x"],
        &["nonsense"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
    let output = run(&["audit", "--database", "/nonexistent/fleet.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    let output = run(&["audit", "--database", "postgres://fleet:geheim@127.0.0.1:1/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!stderr(&output).contains("geheim"), "a password is never repeated: {}", stderr(&output));
}
