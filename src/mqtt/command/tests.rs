use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;

struct Rig {
    gate: Gate,
    now: Instant,
    clock: Clock,
}

fn rig(allowed: &[Name]) -> Rig {
    with_limits(allowed, Limits { burst: 1000, per_second: 1.0 })
}

fn with_limits(allowed: &[Name], limits: Limits) -> Rig {
    let now = Instant::now();
    let wall = "2026-03-01T09:30:00Z".parse().unwrap();
    let gate = Gate::new(allowed.iter().copied().collect(), limits, Past::default(), Boot(Uuid::nil()), now);
    Rig { gate, now, clock: Clock { monotonic: now, wall, trust: ClockTrust::Synchronised } }
}

fn incoming(name: &str, payload: impl Into<Vec<u8>>) -> Incoming {
    Incoming { name: name.into(), payload: payload.into(), retained: false, reply: ReplyTo::default(), token: Token(0) }
}

fn request(id: &str, args: Value) -> String {
    json!({ "schema": "visaged.cmd.v1", "id": id, "args": args }).to_string()
}

impl Rig {
    fn ask(&mut self, name: &str, payload: impl Into<Vec<u8>>) -> Verdict {
        self.gate.receive(&incoming(name, payload), &self.clock)
    }

    fn refused(&mut self, name: &str, payload: impl Into<Vec<u8>>) -> (String, ErrorCode, String) {
        match self.ask(name, payload) {
            Verdict::Answer(Answer { id, state: AnswerState::Rejected, result: None, error: Some(error), .. }, _) => {
                (id, error.code, error.message)
            }
            other => panic!("not rejected: {other:?}"),
        }
    }

    fn code(&mut self, name: &str, payload: impl Into<Vec<u8>>) -> ErrorCode {
        self.refused(name, payload).1
    }

    fn done(&mut self, name: &str, payload: impl Into<Vec<u8>>) -> Command {
        match self.ask(name, payload) {
            Verdict::Do(accepted) => accepted.command,
            other => panic!("not to be carried out: {other:?}"),
        }
    }
}

#[test]
fn ping_and_info_are_carried_out_and_everything_else_waits_to_be_allowed() {
    let mut rig = rig(&[]);
    assert_eq!(rig.done("ping", request("1", json!({}))), Command::Ping);
    assert_eq!(rig.done("info", request("2", json!({}))), Command::Info);
    for name in Name::ALL.into_iter().filter(|name| !name.is_always_allowed()) {
        let (id, code, message) = rig.refused(name.as_str(), request("3", json!({})));
        assert_eq!((id.as_str(), code), ("3", ErrorCode::NotEnabled), "{name}");
        assert!(message.contains("mqtt.commands.allow"), "{message}");
    }
    assert_eq!(rig.code("reboot", request("4", json!({}))), ErrorCode::UnknownCommand);
}

#[test]
fn what_belongs_to_another_command_is_allowed_with_it() {
    let allowed: BTreeSet<_> = [Name::ConsentGrant].into();
    assert!(!Name::ConsentSet.is_allowed(&allowed));
    assert!(Name::ConsentSet.is_allowed(&[Name::ConsentGrant, Name::ConsentRevoke].into()));
    assert!(Name::ModelsChunk.is_allowed(&[Name::ModelsInstall].into()));
}

#[test]
fn a_request_that_is_none_is_malformed_and_its_id_comes_back_where_it_can_be_read() {
    let mut rig = rig(&[]);
    let cases = [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        (r#"{"schema":"visaged.cmd.v1","id":"a b","args":{}}"#, ""),
        (r#"{"schema":"visaged.cmd.v1","id":"","args":{}}"#, ""),
        (r#"{"schema":"visaged.cmd.v1","id":"1"}"#, "1"),
        (r#"{"schema":"visaged.cmd.v1","id":"1","args":[]}"#, "1"),
        (r#"{"schema":"visaged.cmd.v2","id":"1","args":{}}"#, "1"),
        (r#"{"schema":"visaged.cmd.v1","id":"1","args":{},"more":1}"#, "1"),
        (r#"{"schema":"visaged.cmd.v1","id":"1","id":"2","args":{}}"#, "2"),
        (r#"{"schema":"visaged.cmd.v1","id":"1","args":{},"not_after":"tomorrow"}"#, "1"),
    ];
    for (payload, id) in cases {
        let (found, code, _) = rig.refused("ping", payload);
        assert_eq!((found.as_str(), code), (id, ErrorCode::Malformed), "{payload}");
    }
    assert!(rig.gate.past.is_empty());
}

#[test]
fn an_oversized_request_is_rejected_before_it_is_parsed() {
    let mut rig = rig(&[]);
    let long = request("1", json!({ "x": "y".repeat(ARGS_BYTES) }));
    let (id, code, _) = rig.refused("ping", long);
    assert_eq!((id.as_str(), code), ("", ErrorCode::TooLarge));
}

#[test]
fn a_retained_request_is_neither_done_nor_answered() {
    let mut rig = rig(&[]);
    let retained = Incoming { retained: true, ..incoming("ping", request("1", json!({}))) };
    assert!(matches!(rig.gate.receive(&retained, &rig.clock), Verdict::Ignore(_)));
}

#[test]
fn a_flood_is_rejected_beyond_the_rate_and_heard_again_later() {
    let mut rig = with_limits(&[], Limits { burst: 3, per_second: 0.5 });
    for id in ["1", "2", "3"] {
        rig.done("ping", request(id, json!({})));
    }
    let (id, code, message) = rig.refused("ping", request("4", json!({})));
    assert_eq!((id.as_str(), code), ("4", ErrorCode::RateLimited), "{message}");
    rig.clock.monotonic = rig.now + Duration::from_secs(2);
    rig.done("ping", request("4", json!({})));
    assert_eq!(rig.code("ping", request("5", json!({}))), ErrorCode::RateLimited);
}

#[test]
fn the_same_id_is_answered_again_and_not_done_twice() {
    let mut rig = rig(&[Name::Restart]);
    rig.done("restart", request("1", json!({})));
    let Verdict::Answer(begun, _) = rig.ask("restart", request("1", json!({}))) else { panic!("done twice") };
    assert_eq!(begun.state, AnswerState::InProgress);
    let done = Answer::new("1", "restart", Ok(Map::new()), Boot(Uuid::nil()), Moment(rig.clock.wall));
    rig.gate.past.settle(&done);
    rig.gate.past = Past::from_bytes(&rig.gate.past.to_bytes().unwrap()).unwrap();
    let reply = ReplyTo::new(Some("visaged/v1/office/7"), Some(b"c"));
    let again = Incoming { reply: reply.clone(), ..incoming("restart", request("1", json!({}))) };
    assert_eq!(rig.gate.receive(&again, &rig.clock), Verdict::Answer(done, reply), "after a restart, too");
    assert_eq!(rig.code("ping", request("1", json!({}))), ErrorCode::Malformed);
}

#[test]
fn the_last_256_ids_are_remembered_and_those_under_way_beyond() {
    let mut rig = rig(&[Name::ConfigSet]);
    rig.done("config.set", request("long", json!({ "set": { "a.b": 1 } })));
    for id in 0..300 {
        let id = id.to_string();
        rig.done("ping", request(&id, json!({})));
        rig.gate.past.settle(&Answer::new(&id, "ping", Ok(Map::new()), Boot(Uuid::nil()), Moment(rig.clock.wall)));
    }
    assert_eq!(rig.gate.past.len(), IDS_KEPT);
    assert!(rig.gate.past.find("long").is_some() && rig.gate.past.find("299").is_some());
    assert!(rig.gate.past.find("45").is_some() && rig.gate.past.find("44").is_none());
}

#[test]
fn what_comes_too_late_is_not_done() {
    let mut rig = rig(&[]);
    let ask = |not_after: &str| {
        json!({ "schema": "visaged.cmd.v1", "id": "1", "args": {}, "not_after": not_after }).to_string()
    };
    assert_eq!(rig.code("ping", ask("2026-03-01T09:29:59Z")), ErrorCode::Expired);
    rig.done("ping", ask("2026-03-01T09:30:00Z"));
}

#[test]
fn a_clock_that_is_not_synchronised_says_so_instead_of_guessing() {
    let mut rig = rig(&[]);
    rig.clock.trust = ClockTrust::Unsynchronised;
    rig.clock.wall = jiff::Timestamp::UNIX_EPOCH;
    let payload = json!({ "schema": "visaged.cmd.v1", "id": "1", "args": {}, "not_after": "2026-03-01T09:30:00Z" });
    let (_, code, message) = rig.refused("ping", payload.to_string());
    assert_eq!(code, ErrorCode::Expired);
    assert!(message.contains("not synchronised") && message.contains("1970-01-01T00:00:00"), "{message}");
    rig.done("ping", request("1", json!({})));
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let mut rig = rig(&Name::ALL);
    let sha = "0f".repeat(32);
    let install = |more: Value| {
        let mut args = json!({ "task": "derl", "version": "1.0.0", "sha256": sha, "size": 10, "signature": "s",
            "expires": "2027-01-01T00:00:00Z" });
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    };
    for (name, args, part) in [
        ("ping", json!({ "x": 1 }), "x"),
        ("config.set", json!({}), "set or toml"),
        ("config.set", json!({ "set": {}, "toml": "" }), "set or toml"),
        ("config.set", json!({ "set": {}, "confirm_after_s": 9 }), "confirm_after_s"),
        ("config.set", json!({ "set": {}, "if_sha256": "F" }), "if_sha256"),
        ("consent.grant", json!({ "for_s": 0 }), "for_s"),
        ("consent.grant", json!({ "for_s": -1 }), "invalid value"),
        ("consent.revoke", json!({ "for_s": 5 }), "by itself"),
        ("consent.set", json!({}), "granted"),
        ("log.level", json!({}), "level"),
        ("models.rollback", json!({}), "task"),
        ("models.install", install(json!({})), "url or chunks"),
        ("models.install", install(json!({ "url": "http://a/b" })), "https://"),
        (
            "models.install",
            install(json!({ "chunks": { "count": 3, "size": 4 }, "url": "https://a" })),
            "url or chunks",
        ),
        ("models.install", install(json!({ "chunks": { "count": 2, "size": 4 } })), "args.chunks"),
        ("models.install", install(json!({ "url": "https://a", "sha256": "x" })), "sha256"),
        ("models.chunk", json!({ "install": "1", "index": 0, "data": "???" }), "Base64"),
        ("models.chunk", json!({ "install": "1", "index": 0, "data": "" }), "bytes"),
    ] {
        let (_, code, message) = rig.refused(name, request("1", args));
        assert_eq!(code, ErrorCode::InvalidArgs, "{message}");
        assert!(message.contains(part), "{name}: {part} is missing in {message}");
    }
    let chunks = json!({ "chunks": { "count": 3, "size": 4 } });
    assert!(matches!(rig.done("models.install", request("2", install(chunks))), Command::ModelsInstall(_)));
}

#[test]
fn awaited_parts_of_an_archive_do_not_count_against_the_rate() {
    let mut rig = with_limits(&[Name::ModelsInstall], Limits { burst: 1, per_second: 0.01 });
    let part = |i: u32| request(&format!("c{i}"), json!({ "install": "1", "index": i, "data": "AAAA" }));
    rig.done("models.chunk", part(0));
    assert_eq!(rig.code("models.chunk", part(1)), ErrorCode::RateLimited);
    rig.gate.awaits_chunks = true;
    for i in 1..50 {
        rig.done("models.chunk", part(i));
    }
    assert!(rig.gate.past.is_empty(), "and they push no other request out of memory");
}

#[test]
fn answers_go_only_to_response_topics_that_are_nobodys() {
    let topic = |topic: &str| ReplyTo::new(Some(topic), None).topic.is_some();
    assert!(topic("visaged/v1/fleet/answers/7"));
    for bad in [
        "visaged/v2/x",
        "other",
        "visaged/v1/",
        "visaged/v1/a/+/b",
        "visaged/v1/a/#",
        "visaged/v1/lobby/m2/cmd/restart",
        "visaged/v1/lobby/m2/status",
        "visaged/v1/lobby/m2/rsp/ping",
        "visaged/v1/a//b",
        "visaged/v1/a\0",
        &format!("visaged/v1/{}", "x".repeat(2000)),
    ] {
        assert!(!topic(bad), "{bad}");
    }
    assert_eq!(ReplyTo::new(None, Some(&[0; 1025])).correlation, None);
}

#[test]
fn what_is_no_memory_is_refused_and_not_believed() {
    let entry = json!({ "id": "1", "digest": "", "name": "ping", "reply": {}, "answer": null, "delivered": false });
    let many: Vec<_> = (0..=IDS_KEPT).map(|_| entry.clone()).collect();
    for bad in [json!({}), json!({ "version": 1, "requests": [{}] }), json!({ "version": 1, "requests": many })] {
        assert!(Past::from_bytes(bad.to_string().as_bytes()).is_err());
    }
    assert!(Past::from_bytes(b"").is_err());
    assert_eq!(Past::from_bytes(json!({ "version": 1, "requests": [entry] }).to_string().as_bytes()).unwrap().len(), 1);
}

/// Bytes that are now nothing, now nearly a request.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof!["[a-c]", "[ -~]{0,70}"];
    let args = prop_oneof![Just("{}".to_owned()), "[ -~]{0,40}", Just(r#"{"for_s":5}"#.to_owned())];
    let near = (id, args, "[ -~]{0,10}").prop_map(|(id, args, more)| {
        format!("{{\"schema\":\"visaged.cmd.v1\",\"id\":{},\"args\":{args}{more}}}", json!(id)).into_bytes()
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), near]
}

proptest! {
    #[test]
    fn any_bytes_get_exactly_one_answer_unless_they_are_retained(
        messages in proptest::collection::vec((0..16_usize, payloads(), any::<bool>(), 0..3_u64), 1..30)
    ) {
        let mut rig = with_limits(&Name::ALL, Limits { burst: 5, per_second: 1.0 });
        for (name, payload, retained, wait_s) in messages {
            rig.clock.monotonic += Duration::from_secs(wait_s);
            let name = Name::ALL.get(name).map_or("other", |name| name.as_str());
            let id_before: Vec<_> = rig.gate.past.unfinished().map(|entry| entry.id.clone()).collect();
            let message = Incoming { retained, ..incoming(name, payload) };
            match rig.gate.receive(&message, &rig.clock) {
                Verdict::Ignore(_) => prop_assert!(retained),
                Verdict::Answer(answer, _) => {
                    prop_assert!(!retained);
                    prop_assert_eq!(&answer.name, name);
                    prop_assert_eq!(answer.result.is_some(), answer.state == AnswerState::Succeeded);
                    // A request under way is answered again with how it stands.
                    prop_assert_eq!(answer.error.is_none(), answer.is_final() == answer.result.is_some());
                }
                Verdict::Do(accepted) => {
                    prop_assert!(!retained && !id_before.contains(&accepted.id), "done twice");
                    if accepted.name != Name::ModelsChunk {
                        let answer = Answer::new(accepted.id.as_str(), name, Ok(Map::new()), Boot(Uuid::nil()), Moment(rig.clock.wall));
                        prop_assert!(rig.gate.past.settle(&answer).is_some(), "its answer is remembered");
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_as_memory_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Past::from_bytes(&bytes);
    }
}
