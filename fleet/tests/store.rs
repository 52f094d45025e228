//! The store does the same on SQLite and on PostgreSQL, and what it reads is what the schemas describe.

mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Postgres, sqlite};
use visaged_fleet::audit::audit;
use visaged_fleet::bundle::{Bundle, PART_BYTES, part_id};
use visaged_fleet::contract::{DeviceName, Numbered};
use visaged_fleet::ingest::add;
use visaged_fleet::link::BrokerAddress;
use visaged_fleet::rollout::{Execution, Plan, RolloutRequest, State, Target};
use visaged_fleet::serve::drive;
use visaged_fleet::simulate::{Faults, Settings, sample_payloads};
use visaged_fleet::store::{
    Added, Batch, CommandState, DeviceFilter, EventIn, Names, NewCommand, NewRollout, Place, Registration, Role, Store,
};
use visaged_fleet::time::Micros;

const BOOT: &str = "7d8f0a44-53b6-4f3c-9d0a-1c2b3d4e5f60";

/// Runs `test` on a fresh SQLite file, and on a fresh PostgreSQL where there is one.
fn on_both(test: impl AsyncFn(&Store)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_folder, path) = sqlite();
    let postgres = Postgres::start();
    for place in [Some(path), postgres.as_ref().map(Postgres::url)].into_iter().flatten() {
        runtime.block_on(async {
            let store = Store::open(&place.parse().unwrap()).await.unwrap();
            test(&store).await;
            store.close().await;
        });
    }
}

fn name(device: &str) -> DeviceName {
    DeviceName::new("s", device).unwrap()
}

fn at(second: i64) -> Micros {
    Micros(1_780_000_000_000_000 + second * 1_000_000)
}

fn event(device: &str, seq: u64) -> EventIn {
    let body = json!({"boot": BOOT, "seq": seq, "time": at(seq as i64), "event": "sample", "emotion": "happiness", "latency_ms": 3.25});
    let event: Numbered = serde_json::from_value(body.clone()).unwrap();
    EventIn { device: name(device), kind: "face", event, body: body.to_string() }
}

fn batch(events: impl IntoIterator<Item = EventIn>) -> Batch {
    Batch { received: at(0), events: events.into_iter().collect(), ..Batch::default() }
}

fn message(batch: &mut Batch, device: &str, leaf: &str, payload: &Value) {
    add(batch, Some(&format!("visaged/v1/s/{device}/{leaf}")), payload.to_string().as_bytes(), false);
}

fn status(device: &str, word: &str) -> Batch {
    let mut batch = Batch { received: Micros::now(), ..Batch::default() };
    message(&mut batch, device, "status", &json!({"status": word, "reason": "r", "since": at(1), "boot": BOOT}));
    batch
}

async fn registered(store: &Store, devices: &[&str]) -> Vec<i64> {
    let mut ids = Vec::new();
    for device in devices {
        store.write(&mut Names::default(), &status(device, "online")).await.unwrap();
        ids.push(store.device_id(&name(device)).await.unwrap().unwrap());
    }
    ids
}

fn keeps_to_schema(name: &str, payload: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schema/{name}.schema.json"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    if let Err(error) = jsonschema::validate(&schema, payload) {
        panic!("{name}: {error}\n{payload:#}");
    }
}

#[test]
fn an_event_is_stored_once_however_often_and_wherever_it_comes() {
    on_both(async |store| {
        let (mut here, mut there) = (Names::default(), Names::default());
        let stored = store.write(&mut here, &batch((0..700).map(|seq| event("a", seq)))).await.unwrap();
        assert_eq!((stored.events, stored.duplicates), (700, 0));
        let stored =
            store.write(&mut there, &batch((600..800).chain(600..610).map(|seq| event("a", seq)))).await.unwrap();
        assert_eq!((stored.events, stored.duplicates), (100, 110));
        let stored = store.write(&mut here, &batch([event("b", 0)])).await.unwrap();
        assert_eq!(stored.events, 1, "another device may use the same boot and number");
        assert_eq!(store.totals().await.unwrap(), (2, 801));
        let counts = store.event_counts(at(-60)).await.unwrap();
        assert_eq!(counts.iter().map(|count| count.events).sum::<i64>(), 801, "what comes again is not counted again");
        assert_eq!(store.overview(at(1), at(0)).await.unwrap().0.events_last_hour, 801);
        let id = store.device_id(&name("a")).await.unwrap().unwrap();
        let events = store.events(id, at(0), at(10), 1000).await.unwrap();
        assert_eq!(events.len(), 10);
        assert_eq!(
            (events[0].seq, events[0].kind.as_str(), events[0].payload["latency_ms"].as_f64()),
            (9, "sample", Some(3.25))
        );
    });
}

#[test]
fn servers_that_write_the_same_events_at_once_neither_fail_nor_store_one_twice() {
    on_both(async |store| {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4_u64 {
            let store = store.clone();
            writers.spawn(async move {
                let mut names = Names::default();
                for round in 0..10_u64 {
                    // Each in another order, over the same devices and numbers.
                    let mut events: Vec<_> =
                        (0..50).flat_map(|seq| ["a", "b", "c"].map(|device| event(device, round * 40 + seq))).collect();
                    let by = (writer as usize * 37) % events.len();
                    events.rotate_left(by);
                    store.write(&mut names, &batch(events)).await.unwrap();
                }
            });
        }
        while let Some(done) = writers.join_next().await {
            done.unwrap();
        }
        assert_eq!(store.totals().await.unwrap(), (3, 3 * 410));
        assert_eq!(audit(store, Micros(i64::MAX)).await.unwrap().missing, []);
    });
}

#[test]
fn what_is_missing_is_found_unless_it_was_declared_or_removed_by_the_retention() {
    on_both(async |store| {
        let mut names = Names::default();
        store.write(&mut names, &batch([2, 3, 7, 8, 12].map(|seq| event("a", seq)))).await.unwrap();
        let ranges =
            |audit: &visaged_fleet::audit::Audit| audit.missing.iter().map(|m| (m.from, m.to)).collect::<Vec<_>>();
        let found = audit(store, Micros(i64::MAX)).await.unwrap();
        assert_eq!(ranges(&found), [(0, 1), (4, 6), (9, 11)]);
        assert_eq!((found.missing[0].device.as_str(), found.missing[0].boot.as_str()), ("s/a", BOOT));
        assert_eq!(ranges(&audit(store, at(0)).await.unwrap()), [], "what came just now may have company on its way");
        let mut gaps = Batch { received: at(1), ..Batch::default() };
        for (from, to) in [(0, 1), (5, 9), (5, 9)] {
            let gap = json!({"boot": BOOT, "from": from, "to": to, "count": 2, "reason": "space", "time": at(1)});
            message(&mut gaps, "a", "gap", &gap);
        }
        store.write(&mut names, &gaps).await.unwrap();
        let found = audit(store, Micros(i64::MAX)).await.unwrap();
        assert_eq!((ranges(&found), found.declared), (vec![(4, 4), (10, 11)], 5));
        let gap = json!({"boot": BOOT, "from": 15, "to": 16, "count": 2, "reason": "age", "time": at(1)});
        let mut tail = Batch { received: at(1), ..Batch::default() };
        message(&mut tail, "a", "gap", &gap);
        store.write(&mut names, &tail).await.unwrap();
        let found = audit(store, Micros(i64::MAX)).await.unwrap();
        assert_eq!(ranges(&found), [(4, 4), (10, 11), (13, 14)], "what a gap shows to have been made is missed, too");
        // One more event, much later; then all that is older is removed.
        let late = Batch { received: at(100), ..batch([event("a", 13)]) };
        store.write(&mut names, &late).await.unwrap();
        assert_eq!(store.remove_older(at(50)).await.unwrap(), 5);
        let found = audit(store, Micros(i64::MAX)).await.unwrap();
        assert_eq!(
            (ranges(&found), found.events, found.declared),
            (vec![(14, 14)], 1, 2),
            "what was removed is not missed"
        );
    });
}

#[test]
fn the_registry_knows_how_a_device_is_and_when_it_went_silent() {
    on_both(async |store| {
        let mut names = Names::default();
        let mut batch = Batch { received: at(10), ..Batch::default() };
        message(&mut batch, "a", "status", &json!({"status": "degraded", "reason": "camera unplugged", "boot": BOOT}));
        message(&mut batch, "b", "status", &json!({"status": "offline", "boot": BOOT}));
        message(
            &mut batch,
            "a",
            "info",
            &json!({"version": "0.1.0", "boot": BOOT, "models": [{"name": "derl", "version": "1", "sha256": "0"}]}),
        );
        message(
            &mut batch,
            "c",
            "telemetry",
            &json!({"boot": BOOT, "time": at(9), "cpu_percent": 12.5, "temperature_celsius": null}),
        );
        message(
            &mut batch,
            "a",
            "telemetry",
            &json!({"boot": BOOT, "time": at(9), "temperature_celsius": -3.5, "outbox": {"depth": 4}}),
        );
        message(&mut batch, "a", "face", &json!({"boot": 3}));
        assert_eq!(batch.unreadable.len(), 1);
        store.write(&mut names, &batch).await.unwrap();
        let filter = |silent_since| DeviceFilter { limit: 10, silent_since, ..DeviceFilter::default() };
        let words =
            |devices: &[visaged_fleet::store::DeviceRow]| devices.iter().map(|d| d.status.clone()).collect::<Vec<_>>();
        let devices = store.devices(&filter(at(5))).await.unwrap();
        assert_eq!(words(&devices), ["degraded", "offline", "unknown"]);
        assert_eq!(
            (devices[0].reason.as_deref(), devices[0].version.as_deref()),
            (Some("camera unplugged"), Some("0.1.0"))
        );
        assert_eq!(devices[0].info["models"][0]["name"], "derl");
        assert_eq!(words(&store.devices(&filter(at(11))).await.unwrap()), ["silent", "offline", "unknown"]);
        let silent = DeviceFilter { status: Some("silent".into()), ..filter(at(11)) };
        assert_eq!(store.devices(&silent).await.unwrap().len(), 1);
        let after = DeviceFilter { after: Some(name("a")), text: Some("S/".into()), ..filter(at(5)) };
        assert_eq!(store.devices(&after).await.unwrap().len(), 2);
        let (overview, sites) = store.overview(at(20), at(5)).await.unwrap();
        assert_eq!(
            (overview.devices, overview.degraded, overview.offline, overview.unknown, overview.unreadable),
            (3, 1, 1, 1, 1)
        );
        let telemetry = store.telemetry(devices[0].id, at(0), 10).await.unwrap();
        assert_eq!(
            (telemetry[0].temperature_mcelsius, telemetry[0].cpu_mpercent, telemetry[0].outbox_depth),
            (Some(-3500), None, 4)
        );
        store.set_tags(devices[0].id, "s/a", &["entrance".into()], "ops", at(20)).await.unwrap();
        let tagged = DeviceFilter { tag: Some("entrance".into()), ..filter(at(5)) };
        assert_eq!(store.devices(&tagged).await.unwrap()[0].tags, ["entrance"]);
        assert_eq!(sites[0].devices, 3);
        assert_eq!(store.unreadable(5).await.unwrap()[0].topic, "visaged/v1/s/a/face");
    });
}

#[test]
fn a_token_is_known_by_its_secret_alone_until_it_is_revoked() {
    on_both(async |store| {
        assert!(store.add_token("ops", Role::Operate, "secret", "test", at(0)).await.unwrap());
        assert!(!store.add_token("ops", Role::Read, "other", "test", at(0)).await.unwrap(), "names are taken once");
        assert_eq!(store.check_token("secret").await.unwrap(), Some(("ops".into(), Role::Operate)));
        assert_eq!(store.check_token("Secret").await.unwrap(), None);
        assert!(store.revoke_token("ops", "test", at(1)).await.unwrap());
        assert!(!store.revoke_token("ops", "test", at(1)).await.unwrap());
        assert_eq!(store.check_token("secret").await.unwrap(), None);
        let log = store.audit_log(10).await.unwrap();
        assert_eq!(log.iter().map(|entry| entry.action.as_str()).collect::<Vec<_>>(), ["token.revoke", "token.create"]);
    });
}

#[test]
fn a_command_is_sent_to_devices_that_are_there_until_it_is_answered_or_too_late() {
    on_both(async |store| {
        let ids = registered(store, &["a", "b"]).await;
        store.write(&mut Names::default(), &status("b", "offline")).await.unwrap();
        for (device, id) in [(ids[0], "one"), (ids[1], "two")] {
            let command = NewCommand {
                id: id.into(),
                device,
                name: "ping".into(),
                payload: "{}".into(),
                parts: None,
                not_after: at(100),
                rollout: None,
                created_by: "ops".into(),
            };
            store.add_command(&command, "s/x", at(0)).await.unwrap();
        }
        let waiting = |sent_before| store.commands_to_send(at(1), sent_before, 10);
        let first = waiting(at(0)).await.unwrap();
        assert_eq!(first.iter().map(|c| (c.id.as_str(), c.device.device())).collect::<Vec<_>>(), [("one", "a")]);
        store.commands_sent(&["one".into()], at(1)).await.unwrap();
        assert!(waiting(at(1)).await.unwrap().is_empty());
        assert_eq!(waiting(at(2)).await.unwrap().len(), 1, "no answer: sent again");
        let answer = async |state: &str, device: &str| {
            let mut batch = Batch { received: at(2), ..Batch::default() };
            let error = json!({"code": "busy", "message": "m"});
            message(
                &mut batch,
                device,
                "rsp/ping",
                &json!({"id": "one", "state": state, "result": {"uptime_s": 1}, "error": error}),
            );
            store.write(&mut Names::default(), &batch).await.unwrap();
            store.command("one").await.unwrap().unwrap()
        };
        assert_eq!(answer("succeeded", "b").await.state, CommandState::Sent, "another device cannot answer for it");
        assert_eq!(answer("in_progress", "a").await.state, CommandState::InProgress);
        assert!(waiting(at(9)).await.unwrap().is_empty(), "it has begun");
        let done = answer("failed", "a").await;
        assert_eq!(
            (done.state, done.error_code.as_deref(), done.result["uptime_s"].as_i64()),
            (CommandState::Failed, Some("busy"), Some(1))
        );
        assert_eq!(answer("succeeded", "a").await.state, CommandState::Failed, "an outcome stands");
        store.commands_to_send(at(101), at(0), 10).await.unwrap();
        assert_eq!(store.command("two").await.unwrap().unwrap().state, CommandState::TimedOut);
    });
}

#[test]
fn of_instances_one_leads_and_a_dead_ones_session_is_adopted_once() {
    on_both(async |store| {
        let one = store.register("one", at(0)).await.unwrap();
        let two = store.register("two", at(0)).await.unwrap();
        assert_ne!(one.client_id, two.client_id);
        assert!(store.lease("leader", &one.run, at(0), at(10)).await.unwrap());
        assert!(!store.lease("leader", &two.run, at(5), at(15)).await.unwrap());
        assert!(store.lease("leader", &one.run, at(5), at(15)).await.unwrap(), "who leads goes on");
        assert!(store.lease("leader", &two.run, at(16), at(26)).await.unwrap(), "a lapsed lease is anybody's");

        assert!(store.heartbeat(&one, at(20)).await.unwrap());
        assert_eq!(store.adopt(&two, at(15), at(20)).await.unwrap(), None, "everybody was heard");
        let session = store.adopt(&two, at(25), at(40)).await.unwrap().unwrap();
        assert_eq!(session.client_id, one.client_id);
        assert_eq!(store.adopt(&two, at(25), at(40)).await.unwrap(), None, "it is being emptied already");
        assert!(!store.heartbeat(&one, at(41)).await.unwrap(), "too late: its session is taken");
        assert!(!store.is_replaced(&one).await.unwrap());
        let again = store.register("one", at(41)).await.unwrap();
        assert_ne!(again.client_id, one.client_id, "a new session, as the old one is being emptied");
        store.adopted(&two, &session).await.unwrap();
        assert!(
            store.heartbeat(&again, at(42)).await.unwrap(),
            "the adopter ends the old session, not the new one's entry"
        );

        let twin: Registration = store.register("one", at(43)).await.unwrap();
        assert_eq!(twin.client_id, again.client_id, "a restart goes on with its own session");
        assert!(store.is_replaced(&again).await.unwrap());
    });
}

#[test]
fn a_roll_out_goes_through_the_store_wave_by_wave_and_stops_at_a_failed_one() {
    on_both(async |store| {
        let names: Vec<String> = (0..6).map(|n| format!("d{n}")).collect();
        let ids = registered(store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let request = RolloutRequest {
            name: "slower".into(),
            command: "config.set".into(),
            args: json!({"set": {"camera.fps": 15}}),
            target: Target { site: Some("s".into()), ..Target::default() },
            plan: Plan {
                waves: vec!["1".parse().unwrap(), "2".parse().unwrap()],
                abort_threshold_percent: 0,
                timeout_s: 100,
                max_in_progress: None,
                without_expiry: false,
            },
        };
        let mut found = store.targets(&request.target).await.unwrap();
        found.sort_unstable();
        assert_eq!(found, ids);
        let devices = request.draw("r", found);
        let new = NewRollout { id: "r", request: &request, devices: &devices, actor: "ops" };
        store.add_rollout(&new, at(0)).await.unwrap();
        let answer = async |devices: &[i64], state: &str| {
            for device in devices {
                let which = ids.iter().position(|id| id == device).unwrap();
                let mut batch = Batch { received: at(1), ..Batch::default() };
                let error = (state == "failed").then(|| json!({"code": "rolled_back", "message": "no frames"}));
                message(
                    &mut batch,
                    &names[which],
                    "rsp/config.set",
                    &json!({"id": format!("r.{device}"), "state": state, "error": error}),
                );
                store.write(&mut Names::default(), &batch).await.unwrap();
            }
        };
        let sent = async || store.commands_to_send(at(1), at(0), 100).await.unwrap().len();
        drive(store, "r", at(0)).await.unwrap();
        assert_eq!(sent().await, 1);
        let payload: Value =
            serde_json::from_str(&store.commands_to_send(at(1), at(0), 1).await.unwrap()[0].payload).unwrap();
        assert_eq!((&payload["schema"], &payload["args"]), (&json!("visaged.cmd.v1"), &request.args));
        assert_eq!(payload["not_after"], json!(at(100)));
        keeps_to_schema("cmd", &payload);
        drive(store, "r", at(1)).await.unwrap();
        assert_eq!(sent().await, 1, "nothing further before the first wave is through");
        answer(&devices[..1], "succeeded").await;
        drive(store, "r", at(2)).await.unwrap();
        assert_eq!(sent().await, 2);

        // An operator and the leader at once: one of them is told.
        let mut mine = store.take_rollout("r", at(2)).await.unwrap().unwrap();
        answer(&devices[1..2], "failed").await;
        drive(store, "r", at(3)).await.unwrap();
        assert!(mine.rollout.pause());
        assert!(!store.put_rollout(&mine, None, Some(("ops", "rollout.pause")), at(3)).await.unwrap());

        let row = store.rollout("r").await.unwrap().unwrap();
        assert_eq!((row.state, row.settled, row.wave), (State::Aborted, false, 1));
        answer(&devices[2..3], "succeeded").await;
        drive(store, "r", at(4)).await.unwrap();
        let row = store.rollout("r").await.unwrap().unwrap();
        assert!(row.settled && store.open_rollouts().await.unwrap().is_empty());
        let outcomes = store.rollout_devices("r").await.unwrap();
        let count = |execution| outcomes.iter().filter(|d| d.state == execution).count();
        assert_eq!([Execution::Succeeded, Execution::Failed, Execution::Canceled].map(count), [2, 1, 3]);
        let failed = outcomes.iter().find(|d| d.state == Execution::Failed).unwrap();
        assert_eq!(failed.detail.as_deref(), Some("rolled_back: no frames"));
        assert_eq!(sent().await, 0);
    });
}

#[test]
fn a_step_of_a_roll_out_reads_the_devices_that_have_news_and_not_the_fleet() {
    on_both(async |store| {
        let names: Vec<String> = (0..400).map(|n| format!("d{n:03}")).collect();
        let ids = registered(store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let request = RolloutRequest {
            name: "slower".into(),
            command: "config.set".into(),
            args: json!({"set": {"camera.fps": 15}}),
            target: Target::default(),
            plan: Plan {
                waves: vec!["300".parse().unwrap()],
                abort_threshold_percent: 100,
                timeout_s: 100,
                max_in_progress: None,
                without_expiry: false,
            },
        };
        store
            .add_rollout(&NewRollout { id: "r", request: &request, devices: &ids, actor: "ops" }, at(0))
            .await
            .unwrap();
        drive(store, "r", at(0)).await.unwrap();
        let due = async |now| store.take_rollout("r", at(now)).await.unwrap().unwrap().due.len();
        assert_eq!(due(1).await, 0, "300 are in progress, and nothing has come from them");
        let answer = async |which: usize, state: &str| {
            let mut batch = Batch { received: at(1), ..Batch::default() };
            let body = json!({"id": format!("r.{}", ids[which]), "state": state});
            message(&mut batch, &names[which], "rsp/config.set", &body);
            store.write(&mut Names::default(), &batch).await.unwrap();
        };
        answer(0, "in_progress").await;
        assert_eq!(due(1).await, 0, "to have begun is no news for a roll-out");
        answer(0, "succeeded").await;
        answer(1, "failed").await;
        assert_eq!(due(1).await, 2);

        // What an operator does takes no answer away from the leader.
        let mut mine = store.take_rollout("r", at(1)).await.unwrap().unwrap();
        assert!(
            mine.rollout.pause()
                && store.put_rollout(&mine, None, Some(("ops", "rollout.pause")), at(1)).await.unwrap()
        );
        assert_eq!(due(1).await, 2);
        drive(store, "r", at(2)).await.unwrap();
        assert_eq!(due(2).await, 0);
        assert!(
            !store.take_rollout("r", at(2)).await.unwrap().unwrap().differs(),
            "a tick without news writes nothing"
        );
        let row = store.rollout("r").await.unwrap().unwrap();
        assert_eq!(json!(row.devices), json!({"queued": 100, "in_progress": 298, "succeeded": 1, "failed": 1}));

        assert_eq!(due(100).await, 298, "these have timed out");
        let mut mine = store.take_rollout("r", at(2)).await.unwrap().unwrap();
        assert!(mine.rollout.resume() && store.put_rollout(&mine, None, None, at(2)).await.unwrap());
        drive(store, "r", at(100)).await.unwrap();
        answer(2, "succeeded").await;
        drive(store, "r", at(101)).await.unwrap();
        let row = store.rollout("r").await.unwrap().unwrap();
        assert_eq!(
            (row.wave, json!(row.devices)),
            (1, json!({"in_progress": 100, "succeeded": 1, "failed": 1, "timed_out": 298}))
        );
        let first = store.rollout_devices_to_look_at("r", 350).await.unwrap();
        let states: Vec<_> = [0, 1, 298, 299, 349].into_iter().map(|at| first[at].state.word()).collect();
        assert_eq!(states, ["failed", "timed_out", "timed_out", "in_progress", "in_progress"]);
        let mut counted = std::collections::HashMap::<String, i64>::new();
        for device in store.rollout_devices("r").await.unwrap() {
            *counted.entry(device.state.word().to_owned()).or_default() += 1;
        }
        assert_eq!(counted, row.devices, "the counts are those of the devices");
    });
}

#[test]
fn parts_go_ahead_within_a_window_again_where_no_answer_comes_and_never_back() {
    on_both(async |store| {
        let device = registered(store, &["a"]).await[0];
        let mut archive = vec![b'x'; PART_BYTES * 19 + 1];
        archive[257..262].copy_from_slice(b"ustar");
        let signature = "untrusted comment: x\nRUQ\ntrusted comment: visaged:derl:1.2.3\nabc=\n";
        let bundle = Bundle::new(&archive, signature).unwrap();
        assert_eq!(store.add_bundle(&bundle, "ops", at(0)).await.unwrap(), Added::New);
        assert_eq!(store.add_bundle(&bundle, "ops", at(0)).await.unwrap(), Added::Same);
        assert_eq!(store.bundle_of(&bundle.sha256).await.unwrap().unwrap().parts, 20);
        assert_eq!(store.bundle_parts("derl-1.2.3").await.unwrap(), bundle.parts);
        let command = NewCommand {
            id: "c".into(),
            device,
            name: "models.install".into(),
            payload: "{}".into(),
            parts: Some(("derl-1.2.3".into(), 20)),
            not_after: at(1000),
            rollout: None,
            created_by: "ops".into(),
        };
        store.add_command(&command, "s/a", at(0)).await.unwrap();
        let answer = async |name: &str, id: &str, state: &str, result: Value| {
            let mut batch = Batch { received: at(1), ..Batch::default() };
            let payload = json!({"schema": "visaged.rsp.v1", "id": id, "name": name, "state": state, "result": result, "error": null});
            message(&mut batch, "a", &format!("rsp/{name}"), &payload);
            store.write(&mut Names::default(), &batch).await.unwrap();
        };
        let arrived = async |first: Value| {
            answer("models.chunk", &part_id("c", 0, 0), "succeeded", json!({"first_missing": first})).await
        };
        let next = async |resend_before: i64| {
            let waiting = store.parts_to_send(at(resend_before), 10).await.unwrap();
            waiting.first().map(|parts| (parts.from, parts.to, parts.attempt))
        };
        let send = async |now: i64| {
            let waiting = store.parts_to_send(at(now - 10), 10).await.unwrap();
            let sent: Vec<_> = waiting.into_iter().map(|parts| (parts.clone(), parts.to)).collect();
            store.parts_sent(&sent, at(now)).await.unwrap();
        };
        assert_eq!(next(0).await, None, "not before the device has begun");
        answer("models.install", "c", "in_progress", json!({})).await;
        assert_eq!(next(0).await, Some((0, 8, 0)));
        send(10).await;
        assert_eq!(next(0).await, None, "the window is full");
        arrived(json!(3)).await;
        assert_eq!(next(0).await, Some((8, 11, 0)));
        send(11).await;
        arrived(json!(1)).await;
        assert_eq!(next(11).await, None, "a late answer takes nothing back");
        assert_eq!(next(12).await, Some((3, 11, 1)), "nothing heard since: all again from the first that is missing");
        assert_eq!(store.remove_bundle("derl-1.2.3", "ops", at(2)).await.unwrap(), Some(false), "it is still needed");
        arrived(json!(99)).await;
        assert_eq!(next(12).await, Some((3, 11, 1)), "there are no 99 parts");
        answer("models.chunk", &part_id("c", 0, 1), "rejected", json!({"first_missing": 5})).await;
        assert_eq!(next(12).await, Some((3, 11, 1)));
        arrived(Value::Null).await;
        assert_eq!(next(1000).await, None, "all are there");
        answer("models.install", "c", "succeeded", json!({})).await;
        assert_eq!(store.command("c").await.unwrap().unwrap().state, CommandState::Succeeded);
        assert_eq!(store.remove_bundle("derl-1.2.3", "ops", at(2)).await.unwrap(), Some(true));
        assert!(
            store.bundles().await.unwrap().is_empty() && store.bundle_parts("derl-1.2.3").await.unwrap().is_empty()
        );
    });
}

#[test]
fn two_that_open_an_empty_store_at_once_both_have_it_and_it_stays() {
    let (_folder, path) = sqlite();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let place: Place = path.parse().unwrap();
        let (one, two) = tokio::join!(Store::open(&place), Store::open(&place));
        let (one, two) = (one.unwrap(), two.unwrap());
        one.write(&mut Names::default(), &batch([event("a", 0)])).await.unwrap();
        assert_eq!(two.totals().await.unwrap(), (1, 1));
        one.close().await;
        two.close().await;
        assert_eq!(Store::open(&place).await.unwrap().totals().await.unwrap(), (1, 1));
    });
}

#[test]
fn what_simulated_devices_send_keeps_to_the_schemas_and_is_read() {
    let broker = BrokerAddress { host: "x".into(), port: 1, login: None, tls: None };
    let settings = Settings {
        broker,
        devices: 1,
        sites: 1,
        seed: 1,
        event_every: Duration::from_secs(1),
        telemetry_every: Duration::from_secs(1),
        events: None,
        length: None,
        command_takes: Duration::from_secs(1),
        faults: Faults::default(),
        ledger: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let samples = runtime.block_on(async { sample_payloads(&settings) });
    assert_eq!(samples.len(), 9);
    let mut batch = Batch::default();
    for (leaf, payload) in &samples {
        keeps_to_schema(leaf, payload);
        let leaf = if *leaf == "rsp" { "rsp/ping" } else { *leaf };
        message(&mut batch, "d", leaf, payload);
    }
    assert_eq!(batch.unreadable, []);
    assert_eq!(
        (batch.events.len(), batch.gaps.len(), batch.telemetry.len(), batch.statuses.len(), batch.infos.len()),
        (2, 1, 1, 1, 1)
    );
    assert_eq!(batch.answers.len(), 2);
    assert_eq!(batch.telemetry[0].telemetry.memory_bytes, samples[6].1["memory_bytes"].as_u64());
}
