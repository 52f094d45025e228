//! The spool and the client together, against a real Mosquitto: what an earlier run left, and what was lost.

mod mqtt_support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_support::{
    Gate, HANGS, Message, Mode, Mosquitto, Recorder, assert_keeps_to_its_schema, config, event, setup, topics,
    wait_empty,
};
use visaged::mqtt::{Client, DiskSettings, Handle, MemorySettings, Setup, Spool, Status};
use visaged::report::{Boot, Event};

fn boot(number: u128) -> Boot {
    Boot(uuid::Uuid::from_u128(number))
}

fn spool(folder: &Path, max_bytes: u64, boot: Boot) -> Arc<Spool> {
    let disk =
        DiskSettings { folder: folder.to_owned(), max_bytes, sync_every: Duration::from_millis(20), sync_events: 64 };
    let memory = MemorySettings { events: 100_000, max_age: None };
    Arc::new(Spool::on_disk(&disk, &memory, boot).unwrap())
}

fn client(port: u16, spool: Arc<Spool>, boot: Boot) -> Client {
    let setup = setup(config(port));
    Client::start(Setup { spool, status: Status::online(boot, mqtt_support::moment()), ..setup }).unwrap()
}

fn offer(handle: &Handle, boot: Boot, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        handle.offer(Event { boot, ..event(seq) });
    }
}

fn wait_stored(spool: &Spool, events: u64) {
    let start = Instant::now();
    while spool.figures().stored < events {
        assert!(start.elapsed() < HANGS, "{:?}", spool.figures());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Boot, `seq` and `historical` of the events, as they came.
fn events(messages: &[Message]) -> Vec<(Boot, u64, bool)> {
    let face = topics().face();
    let payloads = messages.iter().filter(|m| m.topic == face).map(Message::json);
    payloads
        .map(|event| {
            let boot = Boot(event["boot"].as_str().unwrap().parse().unwrap());
            (boot, event["seq"].as_u64().unwrap(), event["historical"].as_bool().unwrap())
        })
        .collect()
}

#[test]
fn events_of_an_earlier_run_arrive_first_under_their_own_boot_and_marked_historical() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (boot(1), boot(2));
    let kept = spool(folder.path(), 64 << 20, first);
    let client_of_first = client(gate.port, Arc::clone(&kept), first);
    offer(&client_of_first.handle(), first, 0..1500);
    client_of_first.stop(Duration::ZERO);
    kept.close(HANGS);
    drop(kept);

    let kept = spool(folder.path(), 64 << 20, second);
    assert_eq!(kept.depth(), 1500);
    let client = client(gate.port, Arc::clone(&kept), second);
    gate.set(Mode::Open);
    mqtt_support::wait_up(&client.handle());
    offer(&client.handle(), second, 0..5);
    wait_empty(&kept);
    let messages = recorder.wait("everything", |messages| events(messages).len() >= 1505);
    let expected = (0..1500).map(|seq| (first, seq, true)).chain((0..5).map(|seq| (second, seq, false)));
    assert!(events(&messages).into_iter().eq(expected), "{:?}", events(&messages));
    client.stop(Duration::from_secs(1));
    kept.close(HANGS);
    drop(kept);
    assert!(spool(folder.path(), 64 << 20, boot(3)).is_empty(), "what was acknowledged is gone from disk");
}

#[test]
fn a_full_spool_tells_which_events_are_lost_where_they_would_have_come() {
    let mosquitto = Mosquitto::start();
    let recorder = Recorder::on(mosquitto.port);
    let gate = Gate::to(mosquitto.port, Mode::Shut);
    let folder = tempfile::tempdir().unwrap();
    let kept = spool(folder.path(), 1 << 20, boot(1));
    let client = client(gate.port, Arc::clone(&kept), boot(1));
    for round in 0..40 {
        offer(&client.handle(), boot(1), round * 100..(round + 1) * 100);
        let (stored, lost) = (kept.figures().stored, kept.figures().lost_space);
        wait_stored(&kept, stored + 1 - lost.min(1));
    }
    let start = Instant::now();
    while kept.figures().stored != kept.depth() {
        assert!(start.elapsed() < HANGS, "{:?}", kept.figures());
        std::thread::sleep(Duration::from_millis(2));
    }
    let lost = kept.figures().lost_space;
    assert!(lost > 0, "{:?}", kept.figures());
    gate.set(Mode::Open);
    wait_empty(&kept);
    let messages = recorder.wait("what was kept", |messages| events(messages).len() as u64 >= 4000 - lost);
    assert!(events(&messages).into_iter().map(|(_, seq, _)| seq).eq(lost..4000));
    let told: Vec<_> = messages.iter().filter(|m| [topics().face(), topics().gap()].contains(&m.topic)).collect();
    assert_keeps_to_its_schema(told[0]);
    let gap = told[0].json();
    let number = |member: &str| gap[member].as_u64().unwrap();
    assert_eq!((number("from"), number("to"), number("count")), (0, lost - 1, lost), "{gap}");
    assert_eq!(gap["reason"], "space");
    assert_eq!(client.handle().outbox().lost_space, lost);
}
