//! The client against a real Mosquitto, and against brokers that misbehave.

mod mqtt_support;

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mqtt_support::{
    Authority, Gate, Mode, Mosquitto, Recorder, assert_the_contract_holds, boot, client, config, event, first_seqs,
    free_port, info, last_status, moment, offer, seqs, setup, topics, wait_empty, wait_error, wait_link, wait_up,
};
use visaged::config::{ClientCertificate, DeviceConfig, HomeAssistantConfig, Login, MqttConfig, TlsConfig};
use visaged::mqtt::{
    Client, Info, Limits, Link, LinkErrorKind, MemorySettings, Setup, Sources, Spool, StartError, Status, Topics,
    discovery, probe,
};
use visaged::report::{Event, EventBody, SummaryEvent};

#[test]
fn mosquitto_keeps_the_contract() {
    assert_the_contract_holds(Mosquitto::start().port);
}

#[test]
fn broker_restart_without_session_loses_no_event() {
    let mut mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let client = client(gate.port);
    let handle = client.handle();
    offer(&handle, 0..50);
    wait_empty(handle.spool());
    // Sent, but the acknowledgements do not come back: in flight when the broker dies.
    gate.set(Mode::Deaf);
    offer(&handle, 50..100);
    recorder.wait("events in flight", |messages| seqs(messages).len() > 50);
    gate.set(Mode::Shut);
    mosquitto.kill();
    offer(&handle, 100..150);
    mosquitto.restart();
    recorder.wait_subscribed(2);
    gate.set(Mode::Open);
    wait_empty(handle.spool());
    offer(&handle, 150..160);
    let messages = recorder.wait("all events", |messages| first_seqs(messages).len() >= 160);
    assert!(first_seqs(&messages).into_iter().eq(0..160), "in order: {:?}", first_seqs(&messages));
    assert_eq!(handle.outbox().lost, 0);
    assert!(handle.outbox().reconnects >= 1);
}

#[test]
fn a_client_that_started_before_its_broker_delivers_what_it_kept() {
    let mut mosquitto = Mosquitto::start();
    mosquitto.kill();
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let client = client(gate.port);
    offer(&client.handle(), 0..20);
    wait_error(&client.handle());
    gate.set(Mode::Shut);
    mosquitto.restart();
    let recorder = Recorder::on(mosquitto.port);
    gate.set(Mode::Open);
    recorder.wait("all events", |messages| first_seqs(messages).into_iter().eq(0..20));
}

#[test]
fn only_events_that_waited_for_a_connection_are_historical() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let limits = Limits { historical_after: Duration::ZERO, ..Limits::default() };
    let client = Client::start(Setup { limits, ..setup(config(gate.port)) }).unwrap();
    offer(&client.handle(), 0..3);
    gate.set(Mode::Open);
    wait_empty(client.handle().spool());
    offer(&client.handle(), 3..6);
    let messages = recorder.wait("all events", |messages| seqs(messages).len() >= 6);
    let face = topics().face();
    let historical: Vec<_> =
        messages.iter().filter(|m| m.topic == face).map(|m| m.json()["historical"].as_bool().unwrap()).collect();
    assert_eq!(historical, [true, true, true, false, false, false]);
}

#[test]
fn a_full_outbox_drops_the_oldest_and_says_how_many_and_which() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let client = Client::start(setup(MqttConfig { queue_events: 5, ..config(gate.port) })).unwrap();
    offer(&client.handle(), 0..12);
    assert_eq!((client.handle().outbox().depth, client.handle().outbox().lost), (5, 7));
    gate.set(Mode::Open);
    let telemetry = topics().telemetry();
    let messages = recorder.wait("what was kept, and telemetry", |messages| {
        seqs(messages).len() >= 5 && messages.iter().any(|m| m.topic == telemetry)
    });
    assert!(seqs(&messages).into_iter().eq(7..12));
    let events_and_gaps: Vec<_> =
        messages.iter().filter(|m| [topics().face(), topics().gap()].contains(&m.topic)).collect();
    let gap = events_and_gaps[0];
    assert_eq!(gap.topic, topics().gap(), "the gap comes where its events would have come");
    mqtt_support::assert_keeps_to_its_schema(gap);
    let gap = gap.json();
    assert_eq!((gap["from"].as_u64(), gap["to"].as_u64(), gap["count"].as_u64()), (Some(0), Some(6), Some(7)));
    assert_eq!((gap["reason"].as_str(), gap["boot"].as_str()), (Some("space"), Some(&*boot().to_string())));
    let telemetry = messages.iter().find(|m| m.topic == telemetry).unwrap().json();
    assert_eq!(telemetry["outbox"]["lost"], 7);
}

#[test]
fn an_event_larger_than_the_broker_takes_is_given_up_and_counted_and_the_next_arrives() {
    let mosquitto = Mosquitto::with(|_| "allow_anonymous true\nmax_packet_size 900\n".into());
    let recorder = Recorder::on(mosquitto.port);
    let long = Topics::new(&DeviceConfig { site: "s".into(), name: "d".repeat(128) }).unwrap();
    let client = Client::start(Setup { topics: long.clone(), ..setup(config(mosquitto.port)) }).unwrap();
    wait_up(&client.handle());
    let most = SummaryEvent {
        window_us: 1,
        entered: u64::MAX,
        left: u64::MAX,
        peak: u64::MAX,
        people: [u64::MAX; 8],
        attention_us: [u64::MAX; 8],
    };
    let large = Event { body: EventBody::Summary(most), ..event(0) };
    client.handle().offer(large);
    offer(&client.handle(), 1..2);
    wait_empty(client.handle().spool());
    let (face, summary) = (long.face(), long.summary());
    let messages = recorder.wait("the small one", |messages| messages.iter().any(|m| m.topic == face));
    assert!(messages.iter().all(|m| m.topic != summary));
    assert_eq!(client.handle().outbox().refused, 1);
    assert_eq!(client.handle().outbox().reconnects, 0);
    let gap = recorder.wait("word of the large one", |messages| messages.iter().any(|m| m.topic == long.gap()));
    let gap = gap.iter().find(|m| m.topic == long.gap()).unwrap().json();
    assert_eq!((gap["from"].as_u64(), gap["to"].as_u64(), gap["reason"].as_str()), (Some(0), Some(0), Some("refused")));
}

#[test]
fn an_event_that_the_broker_forbids_is_given_up_and_counted() {
    let mosquitto = Mosquitto::with(|folder| {
        std::fs::write(
            folder.join("acl"),
            "topic readwrite visaged/v1/+/+/status\ntopic readwrite visaged/v1/+/+/summary\n",
        )
        .unwrap();
        format!("allow_anonymous true\nacl_file {}\n", folder.join("acl").display())
    });
    let client = client(mosquitto.port);
    offer(&client.handle(), 0..3);
    wait_empty(client.handle().spool());
    assert_eq!(client.handle().outbox().refused, 3);
    assert_eq!(client.handle().outbox().reconnects, 0);
}

#[test]
fn a_broker_that_never_acknowledges_is_left_and_found_again() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let limits = Limits { acknowledge: Duration::from_millis(300), ..Limits::default() };
    let client = Client::start(Setup { limits, ..setup(config(gate.port)) }).unwrap();
    wait_up(&client.handle());
    recorder.wait("status", |messages| last_status(messages)["status"] == "online");
    gate.set(Mode::Deaf);
    offer(&client.handle(), 0..40);
    let error = wait_error(&client.handle());
    assert!(matches!(error.kind, LinkErrorKind::Silent(_)), "{error}");
    gate.set(Mode::Open);
    wait_empty(client.handle().spool());
    recorder.wait("all events", |messages| first_seqs(messages).into_iter().eq(0..40));
}

#[test]
fn a_port_where_nobody_listens_is_named_and_a_stop_ends_at_once() {
    let port = free_port();
    let client = client(port);
    let error = wait_error(&client.handle());
    assert!(matches!(error.kind, LinkErrorKind::Unreachable(_)), "{error}");
    assert!(error.to_string().starts_with(&format!("broker 127.0.0.1:{port}: ")), "{error}");
    assert_stops_within_two_seconds(client);
}

#[test]
fn a_broker_that_never_answers_is_given_up_in_time_and_cannot_hold_up_a_stop() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let limits = Limits { connect: Duration::from_millis(200), ..Limits::default() };
    let client = Client::start(Setup { limits, ..setup(config(port)) }).unwrap();
    let error = wait_error(&client.handle());
    assert!(matches!(error.kind, LinkErrorKind::NoAnswer(_)), "{error}");
    assert_stops_within_two_seconds(client);
    let error = probe(&config(port), &topics(), Duration::from_millis(200)).unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
}

#[test]
fn a_broker_that_closes_at_once_is_asked_again_and_said_to_close() {
    let mosquitto = Mosquitto::start();
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let client = client(gate.port);
    let error = wait_error(&client.handle());
    assert!(matches!(error.kind, LinkErrorKind::ClosedAtOnce), "{error}");
    gate.set(Mode::Open);
    wait_up(&client.handle());
    assert_stops_within_two_seconds(client);
}

#[test]
fn a_broker_that_hangs_while_connected_cannot_hold_up_a_stop() {
    let mosquitto = Mosquitto::start();
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let client = client(gate.port);
    wait_up(&client.handle());
    gate.set(Mode::Frozen);
    offer(&client.handle(), 0..1000);
    let spool = Arc::clone(client.handle().spool());
    assert_stops_within_two_seconds(client);
    assert!(spool.depth() > 0, "what was not acknowledged stays");
}

fn assert_stops_within_two_seconds(client: Client) {
    let start = Instant::now();
    client.stop(Duration::from_secs(1));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn garbage_in_place_of_connack_is_an_error_and_not_the_end() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x20\xff\xff\xff\xff\xff", b"\xf0\x00", b"\x20\x00"]
        {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = std::io::Write::write_all(&mut stream, answer);
        }
    });
    let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
    let client = Client::start(Setup { limits, ..setup(config(port)) }).unwrap();
    // When all answers are given the listener is gone.
    wait_link(
        &client.handle(),
        "a refused connection",
        |link| matches!(link, Link::Down { error: Some(error) } if matches!(error.kind, LinkErrorKind::Unreachable(_))),
    );
    assert_stops_within_two_seconds(client);
}

#[test]
fn a_wrong_password_is_refused_with_a_word_on_where_to_look() {
    let mosquitto = Mosquitto::with(|folder| {
        let file = folder.join("passwords");
        let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["mirror", "right"]).status();
        assert!(made.expect("mosquitto_passwd comes with mosquitto").success());
        format!("password_file {}\n", file.display())
    });
    let with = |password: &str| {
        let login = Some(Login { user: "mirror".into(), password: password.into() });
        MqttConfig { login, ..config(mosquitto.port) }
    };
    let client = Client::start(setup(with("wrong"))).unwrap();
    let error = wait_error(&client.handle());
    assert!(matches!(error.kind, LinkErrorKind::Login(_)), "{error}");
    assert!(error.to_string().contains("mqtt.login"), "{error}");
    assert!(!format!("{error:?}").contains("wrong"), "a password is never repeated");
    assert!(probe(&with("wrong"), &topics(), Duration::from_secs(5)).is_err());
    probe(&with("right"), &topics(), Duration::from_secs(5)).unwrap();
    wait_up(&Client::start(setup(with("right"))).unwrap().handle());
}

#[test]
fn tls_takes_the_configured_authority_and_no_other() {
    let (right, wrong) = (Authority::new("Right CA"), Authority::new("Wrong CA"));
    let mosquitto = Mosquitto::with(|folder| {
        let (certificate, key) = right.issue(folder, "localhost");
        let ca = right.write(&folder.join("ca.pem"));
        wrong.write(&folder.join("wrong.pem"));
        right.issue(folder, "mirror");
        format!(
            "allow_anonymous true\nrequire_certificate true\ncafile {}\ncertfile {}\nkeyfile {}\n",
            ca.display(),
            certificate.display(),
            key.display()
        )
    });
    let file = |name: &str| mosquitto.folder.path().join(name);
    let with = |ca: &str, host: &str| {
        let client = ClientCertificate { certificate_file: file("mirror.pem"), key_file: file("mirror.key") };
        let tls = Some(TlsConfig { ca_file: file(ca), client: Some(client) });
        MqttConfig { tls, host: host.into(), ..config(mosquitto.port) }
    };
    let client = Client::start(setup(with("ca.pem", "localhost"))).unwrap();
    offer(&client.handle(), 0..10);
    wait_empty(client.handle().spool());
    drop(client);

    for (ca, host, word) in [("wrong.pem", "localhost", "UnknownIssuer"), ("ca.pem", "127.0.0.1", "not valid for name")]
    {
        let client = Client::start(setup(with(ca, host))).unwrap();
        let error = wait_error(&client.handle());
        assert!(matches!(error.kind, LinkErrorKind::Tls(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("mqtt.tls.ca_file"), "{error}");
    }
}

/// A Mosquitto that speaks TLS 1.3 alone and wants certificates; those of the server and of `mirror` are valid in these years.
struct Certified {
    mosquitto: Mosquitto,
}

impl Certified {
    fn start(server: std::ops::Range<i32>, mirror: std::ops::Range<i32>) -> Self {
        let authority = Authority::new("CA");
        let mosquitto = Mosquitto::with(|folder| {
            let (certificate, key) = authority.issue_for(folder, "localhost", server.clone());
            authority.issue_for(folder, "mirror", mirror.clone());
            format!(
                "allow_anonymous true\nrequire_certificate true\ntls_version tlsv1.3\ncafile {}\ncertfile {}\nkeyfile {}\n",
                authority.write(&folder.join("ca.pem")).display(),
                certificate.display(),
                key.display()
            )
        });
        Self { mosquitto }
    }

    fn client(&self, certified: bool) -> Client {
        let file = |name: &str| self.mosquitto.folder.path().join(name);
        let client = ClientCertificate { certificate_file: file("mirror.pem"), key_file: file("mirror.key") };
        let tls = Some(TlsConfig { ca_file: file("ca.pem"), client: certified.then_some(client) });
        let config = MqttConfig { tls, host: "localhost".into(), ..config(self.mosquitto.port) };
        Client::start(setup(config)).unwrap()
    }

    /// Why `mirror` cannot connect.
    fn error(&self, certified: bool) -> Arc<visaged::mqtt::LinkError> {
        // Where the broker closes before it was read, its reason can be lost once.
        let told = |link: &Link| match link {
            Link::Down { error: Some(error) } => !matches!(
                error.kind,
                LinkErrorKind::Closed { .. } | LinkErrorKind::ClosedAtOnce | LinkErrorKind::Unreachable(_)
            ),
            _ => false,
        };
        match wait_link(&self.client(certified).handle(), "a reason", told) {
            Link::Down { error: Some(error) } => error,
            link => unreachable!("{link:?}"),
        }
    }
}

#[test]
fn tls_1_3_with_a_certificate_of_our_own_connects_and_without_one_says_what_is_missing() {
    let broker = Certified::start(2000..2900, 2000..2900);
    let client = broker.client(true);
    offer(&client.handle(), 0..10);
    wait_empty(client.handle().spool());
    let error = broker.error(false);
    assert!(matches!(error.kind, LinkErrorKind::OwnCertificate(_)), "{error}");
    assert!(error.to_string().contains("mqtt.tls.certificate_file"), "{error}");
}

#[test]
fn a_certificate_that_has_expired_or_is_not_valid_yet_is_said_to_be_a_matter_of_time_and_clocks() {
    let error = Certified::start(2000..2001, 2000..2900).error(true);
    assert!(matches!(error.kind, LinkErrorKind::CertificateTime(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("expired on 2001-01-01T00:00:00Z") && text.contains("clock right"), "{text}");

    // As where a board has no battery for its clock, and starts long before the certificate was made.
    let error = Certified::start(2800..2900, 2000..2900).error(true);
    assert!(matches!(error.kind, LinkErrorKind::CertificateTime(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("valid from 2800-01-01T00:00:00Z on") && text.contains("clock right"), "{text}");

    let error = Certified::start(2000..2900, 2000..2001).error(true);
    assert!(matches!(error.kind, LinkErrorKind::OwnCertificateExpired), "{error}");
    assert!(error.to_string().contains("mqtt.tls.certificate_file"), "{error}");
    let error = Certified::start(2000..2900, 2800..2900).error(true);
    assert!(matches!(error.kind, LinkErrorKind::OwnCertificate(_)), "{error}");
    assert!(error.to_string().contains("is it valid already"), "{error}");
}

#[test]
fn certificate_files_that_cannot_work_are_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, empty) = (folder.path().join("missing.pem"), folder.path().join("empty.pem"));
    std::fs::write(&empty, "not a certificate").unwrap();
    for path in [&missing, &empty] {
        let tls = Some(TlsConfig { ca_file: path.clone(), client: None });
        let error = Client::start(setup(MqttConfig { tls, ..config(1) })).unwrap_err();
        assert!(matches!(error, StartError::Pem { .. } | StartError::NothingInPem { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_last_will_that_comes_late_is_answered_with_the_true_status() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let client = client(mosquitto.port);
    recorder.wait("online", |messages| last_status(messages)["status"] == "online");
    wait_up(&client.handle());
    let will = serde_json::to_string(&Status::last_will(boot())).unwrap();
    recorder.publish(&topics().status(), true, &will);
    recorder.wait("offline, then online again", |messages| {
        let status = topics().status();
        let said: Vec<_> = messages.iter().filter(|m| m.topic == status).map(|m| m.json()["status"].clone()).collect();
        said.ends_with(&["offline".into(), "online".into()])
    });
}

#[test]
fn rubbish_on_the_topics_that_we_read_changes_nothing() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let client = Client::start(setup(with_discovery(mosquitto.port))).unwrap();
    wait_up(&client.handle());
    for rubbish in ["", "offline", "{", "{\"status\":\"offline\"}", "[[[[[[", &"x".repeat(60_000), &"[".repeat(200_000)]
    {
        recorder.publish(&topics().status(), false, rubbish);
        recorder.publish("homeassistant/status", false, rubbish);
    }
    offer(&client.handle(), 0..5);
    recorder.wait("events", |messages| seqs(messages).len() >= 5);
    assert_eq!(client.handle().outbox().reconnects, 0);
}

fn with_discovery(port: u16) -> MqttConfig {
    MqttConfig {
        home_assistant: Some(HomeAssistantConfig { prefix: "homeassistant".into(), versions_topic: None }),
        ..config(port)
    }
}

#[test]
fn discovery_is_published_again_when_home_assistant_starts_and_on_each_connection() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let client = Client::start(setup(with_discovery(gate.port))).unwrap();
    let topic = discovery::config_topic("homeassistant", &topics());
    let count = |wanted: &str| {
        let wanted = wanted.to_owned();
        move |messages: &[mqtt_support::Message]| messages.iter().filter(|m| m.topic == wanted).count()
    };
    let (configs, statuses) = (count(&topic), count(&topics().status()));
    let messages = recorder.wait("discovery", |messages| configs(messages) == 1);
    let config = messages.iter().find(|m| m.topic == topic).unwrap().json();
    assert_eq!(config["dev"]["ids"][0], "visaged_lobby_mirror-1");
    assert_eq!(config["availability_topic"], topics().status());
    assert!(config["o"]["name"].is_string());
    for (name, component) in config["cmps"].as_object().unwrap() {
        assert!(component["p"].is_string() && component["unique_id"].is_string(), "{name}");
    }
    recorder.publish("homeassistant/status", false, "online");
    recorder.wait("discovery and status again", |messages| configs(messages) == 2 && statuses(messages) == 2);
    gate.set(Mode::Shut);
    wait_error(&client.handle());
    gate.set(Mode::Open);
    recorder.wait("discovery on the next connection", |messages| configs(messages) == 3);
}

#[test]
fn discovery_switched_off_removes_the_entities_now_or_after_a_restart() {
    let mosquitto = Mosquitto::start();
    let topic = discovery::config_topic("homeassistant", &topics());
    let removed = |messages: &[mqtt_support::Message]| {
        messages.iter().rev().find(|m| m.topic == topic).is_some_and(|m| m.payload.is_empty())
    };
    let recorder = Recorder::on(mosquitto.port);
    let client = Client::start(setup(with_discovery(mosquitto.port))).unwrap();
    recorder.wait("discovery", |messages| messages.iter().any(|m| m.topic == topic));
    client.handle().set_home_assistant(None);
    recorder.wait("removal", removed);
    client
        .handle()
        .set_home_assistant(Some(HomeAssistantConfig { prefix: "homeassistant".into(), versions_topic: None }));
    recorder.wait("discovery again", |messages| !removed(messages));
    client.stop(Duration::from_secs(1));

    let client = self::client(mosquitto.port);
    recorder.wait("removal by a client without discovery", removed);
    client.stop(Duration::from_secs(1));
    let late = Recorder::on(mosquitto.port);
    let kept = late.wait("what is kept", |messages| messages.iter().any(|m| m.topic == topics().info()));
    assert!(kept.iter().all(|m| m.topic != topic));
}

#[test]
fn the_tap_sees_each_event_once_although_it_is_sent_again() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Open);
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let tap: visaged::mqtt::Tap = {
        let (seen, face) = (Arc::clone(&seen), topics().face());
        Arc::new(move |message| {
            if message.topic == face {
                let payload: serde_json::Value = serde_json::from_slice(message.payload).unwrap();
                seen.lock().unwrap().push(payload["seq"].as_u64().unwrap());
            }
        })
    };
    let client = Client::start(Setup { tap: Some(tap), ..setup(config(gate.port)) }).unwrap();
    wait_up(&client.handle());
    recorder.wait("status", |messages| last_status(messages)["status"] == "online");
    gate.set(Mode::Deaf);
    offer(&client.handle(), 0..10);
    recorder.wait("a first sending", |messages| seqs(messages).len() >= 5);
    gate.set(Mode::Shut);
    wait_error(&client.handle());
    gate.set(Mode::Open);
    wait_empty(client.handle().spool());
    let again = |messages: &[mqtt_support::Message]| first_seqs(messages).len() >= 10 && seqs(messages).len() > 10;
    recorder.wait("all, some of them twice", again);
    assert!(seen.lock().unwrap().iter().copied().eq(0..10));
}

#[test]
fn a_panic_in_the_client_costs_a_connection_and_no_event() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let calls = Arc::<AtomicUsize>::default();
    let panicking = {
        let calls = Arc::clone(&calls);
        move || -> Info {
            assert!(calls.fetch_add(1, Ordering::SeqCst) != 0, "the first call panics, for the test");
            info()
        }
    };
    let sources = Sources { info: Box::new(panicking), telemetry: Box::new(mqtt_support::telemetry) };
    let client = Client::start(Setup { sources, ..setup(config(mosquitto.port)) }).unwrap();
    offer(&client.handle(), 0..10);
    wait_empty(client.handle().spool());
    recorder.wait("all events", |messages| first_seqs(messages).into_iter().eq(0..10));
    assert!(calls.load(Ordering::SeqCst) >= 2);
}

#[test]
fn two_devices_of_one_name_are_told_so() {
    let mosquitto = Mosquitto::start();
    let first = client(mosquitto.port);
    wait_up(&first.handle());
    let second = client(mosquitto.port);
    wait_link(&first.handle(), "word of the other", |link| match link {
        Link::Down { error: Some(error) } => {
            // Mosquitto gives a bare reason code, which the protocol library passes over; the words fit both.
            matches!(error.kind, LinkErrorKind::TakenOver { .. } | LinkErrorKind::Closed { .. })
                && error.to_string().contains("is there a second device of this site and name?")
        }
        _ => false,
    });
    drop(second);
}

#[test]
fn without_a_broker_the_same_status_and_newest_info_are_all_that_is_kept() {
    let spool = Arc::new(Spool::in_memory(&MemorySettings { events: 4, max_age: None }));
    let client = Client::start(Setup { spool: Arc::clone(&spool), ..setup(config(free_port())) }).unwrap();
    wait_error(&client.handle());
    for round in 0..1000 {
        client.handle().set_status(Status::degraded(boot(), moment(), format!("reason {round}")));
        client.handle().refresh_info();
        offer(&client.handle(), round..round + 1);
    }
    assert_eq!((spool.depth(), spool.figures().lost_space), (4, 996));
}
