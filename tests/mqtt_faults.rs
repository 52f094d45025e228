//! The client against brokers that acknowledge as they like, take little, send rubbish, or are slow: nothing is lost, order is
//! kept, and the client keeps to MQTT 5 whatever the broker does.

#[path = "mqtt_support/fake.rs"]
mod fake;
mod mqtt_support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fake::{Broker, Manner, Sent, Terms, Then, Wire};
use mqtt_support::{HANGS, boot, config, event, offer, setup, topics, wait_empty, wait_up};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use visaged::mqtt::command::{Answer, ReplyTo};
use visaged::mqtt::{Client, DiskSettings, Limits, MemorySettings, Setup, Spool};
use visaged::report::{Event, Moment};

fn client(broker: &Broker) -> Client {
    with_limits(broker, Limits::default())
}

fn with_limits(broker: &Broker, limits: Limits) -> Client {
    Client::start(Setup { limits, ..setup(config(broker.port)) }).unwrap()
}

fn is_event(sent: &Sent) -> bool {
    matches!(sent, Sent::Publish { topic, .. } if *topic == topics().face())
}

/// Acknowledges only what `release` takes out when nothing more comes: the client has sent all that it may.
fn holding(mut release: impl FnMut(&mut Vec<u16>) -> Vec<u16> + Send + 'static) -> Manner {
    let mut held = Vec::new();
    Box::new(move |sent, wire| {
        match sent {
            Sent::Publish { qos: 1, id, .. } => held.push(*id),
            Sent::Quiet => release(&mut held).into_iter().for_each(|id| wire.acknowledge(id)),
            other => return wire.answer(other),
        }
        Then::Go
    })
}

/// Behaves as `first` on the first connection, well on the others.
fn at_first(first: impl Fn() -> Manner + Send + 'static) -> impl Fn(usize) -> Manner + Send + 'static {
    move |connection| if connection == 0 { first() } else { fake::good() }
}

#[test]
fn acknowledgements_that_come_late_cost_neither_an_event_nor_the_connection() {
    let broker = Broker::start(Terms::default(), |_| holding(std::mem::take));
    let client = client(&broker);
    offer(&client.handle(), 0..300);
    wait_empty(client.handle().spool());
    broker.seen().assert_all_once(300);
}

#[test]
fn acknowledgements_out_of_order_cost_neither_an_event_nor_the_connection() {
    let backwards = |held: &mut Vec<u16>| held.drain(..).rev().collect();
    // The newest alone each time, the oldest last.
    let newest = |held: &mut Vec<u16>| held.pop().into_iter().collect();
    let broker = Broker::start(Terms::default(), move |_| holding(backwards));
    let one_by_one = Broker::start(Terms { receive_maximum: Some(5), ..Terms::default() }, move |_| holding(newest));
    for broker in [broker, one_by_one] {
        let client = client(&broker);
        offer(&client.handle(), 0..300);
        wait_empty(client.handle().spool());
        broker.seen().assert_all_once(300);
    }
}

#[test]
fn an_acknowledgement_that_two_hundred_others_overtake_stops_none_of_them() {
    let broker = Broker::start(Terms::default(), |_| {
        let (mut first, mut others) = (None, 0);
        Box::new(move |sent, wire| {
            match (sent, first) {
                (Sent::Publish { id, .. }, None) if is_event(sent) => first = Some(*id),
                (Sent::Publish { .. }, Some(id)) => {
                    others += 1;
                    wire.answer(sent);
                    if others == 200 {
                        wire.acknowledge(id);
                    }
                }
                _ => _ = wire.answer(sent),
            }
            Then::Go
        })
    });
    let client = client(&broker);
    offer(&client.handle(), 0..201);
    wait_empty(client.handle().spool());
    broker.seen().assert_all_once(201);
}

#[test]
fn a_packet_id_that_stays_taken_is_not_used_again_and_costs_a_connection_at_most() {
    let first = || {
        let mut events = 0;
        let manner: Manner = Box::new(move |sent, wire| {
            events += usize::from(is_event(sent));
            if is_event(sent) && events == 5 { Then::Go } else { wire.answer(sent) }
        });
        manner
    };
    let broker = Broker::start(Terms::default(), at_first(first));
    let limits = Limits { acknowledge: Duration::from_secs(1), ..Limits::default() };
    let client = with_limits(&broker, limits);
    // More than there are ids.
    offer(&client.handle(), 0..600);
    wait_empty(client.handle().spool());
    broker.seen().assert_all(600);
    assert_eq!(broker.seen().connections, 2);
}

#[test]
fn acknowledgements_of_what_was_never_sent_take_no_event_away() {
    let broker = Broker::start(Terms::default(), |connection| match connection {
        0..4 => Box::new(move |sent, wire| {
            if !is_event(sent) {
                return wire.answer(sent);
            }
            // PUBACK of ids that are not in use, of none, and of one beyond all that there are; PUBCOMP.
            wire.send([&[0x40, 2, 0, 200], &[0x40, 2, 0, 0], &[0x40, 2, 0xff, 0xff], &[0x70, 2, 0, 200]][connection]);
            Then::Listen
        }),
        _ => fake::good(),
    });
    let client = client(&broker);
    offer(&client.handle(), 0..20);
    wait_empty(client.handle().spool());
    broker.seen().assert_all(20);
    assert_eq!(broker.seen().connections, 5);
}

#[test]
fn a_half_open_connection_is_noticed_by_its_keep_alive() {
    let deaf =
        || -> Manner { Box::new(|sent, wire| if *sent == Sent::Ping { Then::Listen } else { wire.answer(sent) }) };
    let broker = Broker::start(Terms { keep_alive_s: Some(1), ..Terms::default() }, at_first(deaf));
    let client = client(&broker);
    wait_up(&client.handle());
    drop(broker.wait("another connection", |seen| seen.connections == 2));
    offer(&client.handle(), 0..5);
    wait_empty(client.handle().spool());
    broker.seen().assert_all(5);
    assert!(broker.seen().statuses.iter().all(|status| status["status"] == "online"));
}

#[test]
fn a_broker_that_wants_no_keep_alive_is_not_asked_for_signs_of_life_without_a_pause() {
    let broker = Broker::start(Terms { keep_alive_s: Some(0), ..Terms::default() }, |_| {
        let (mut events, mut pings) = (0, 0);
        Box::new(move |sent, wire| {
            events += usize::from(is_event(sent));
            pings += usize::from(*sent == Sent::Ping);
            match sent {
                // Not before there was time for another ping.
                Sent::Ping => return Then::Go,
                Sent::Publish { .. } if events == 20 => (0..pings).for_each(|_| _ = wire.answer(&Sent::Ping)),
                _ => {}
            }
            assert!(pings < 2, "again, although the one before has no answer yet");
            wire.answer(sent)
        })
    });
    let client = client(&broker);
    offer(&client.handle(), 0..50);
    wait_empty(client.handle().spool());
    broker.seen().assert_all_once(50);
}

#[test]
fn a_broker_that_takes_few_messages_at_once_gets_no_more_and_no_packet_id_twice() {
    let oldest = |held: &mut Vec<u16>| held.drain(..1.min(held.len())).collect();
    for receive_maximum in [1, 3] {
        let terms = Terms { receive_maximum: Some(receive_maximum), ..Terms::default() };
        let broker = Broker::start(terms, move |_| holding(oldest));
        let client = client(&broker);
        offer(&client.handle(), 0..60);
        wait_empty(client.handle().spool());
        broker.seen().assert_all_once(60);
    }
}

#[test]
fn nothing_larger_than_the_broker_takes_is_sent_and_what_is_too_large_is_declared() {
    for largest_packet in [250, 330, 400, 450, 500, 600, 800] {
        let broker = Broker::good(Terms { largest_packet: Some(largest_packet), ..Terms::default() });
        let client = client(&broker);
        offer(&client.handle(), 0..20);
        wait_empty(client.handle().spool());
        // Gaps wait too.
        let start = Instant::now();
        while !client.handle().spool().is_empty() {
            assert!(start.elapsed() < HANGS, "{largest_packet}");
            std::thread::yield_now();
        }
        let seen = broker.seen();
        assert_eq!(seen.violations, [""; 0], "{largest_packet}");
        assert_eq!(seen.connections, 1, "{largest_packet}");
        assert_eq!(seen.events.len() as u64 + client.handle().outbox().refused, 20, "{largest_packet}");
        // A gap that grows is told again.
        let number = |gap: &serde_json::Value, member: &str| gap[member].as_u64().unwrap();
        let gaps = seen.gaps.iter().flat_map(|gap| number(gap, "from")..=number(gap, "to"));
        let told: HashSet<u64> = seen.events.iter().map(|(seq, _)| *seq).chain(gaps).collect();
        assert!(seen.gaps.is_empty() || told.len() == 20, "{largest_packet}: {seen:?}");
    }
}

#[test]
fn an_answer_larger_than_the_broker_takes_is_answered_by_saying_so() {
    let answers = Arc::new(Mutex::new(Vec::<serde_json::Value>::new()));
    let kept = Arc::clone(&answers);
    let terms = Terms { largest_packet: Some(2000), ..Terms::default() };
    let broker = Broker::start(terms, move |_| {
        let kept = Arc::clone(&kept);
        Box::new(move |sent, wire| {
            if let Sent::Publish { topic, payload, .. } = sent
                && *topic == topics().answer("snapshot")
            {
                kept.lock().unwrap().push(serde_json::from_slice(payload).unwrap());
            }
            wire.answer(sent)
        })
    });
    let client = client(&broker);
    let picture = serde_json::Map::from_iter([("data".into(), "x".repeat(4000).into())]);
    let answer = Answer::new("7", "snapshot", Ok(picture), boot(), Moment(jiff::Timestamp::now()));
    client.handle().answer(answer, ReplyTo::default(), None);
    let start = Instant::now();
    while answers.lock().unwrap().is_empty() {
        assert!(start.elapsed() < HANGS);
        std::thread::yield_now();
    }
    let answer = answers.lock().unwrap().remove(0);
    assert_eq!(
        (&answer["id"], &answer["state"], &answer["error"]["code"]),
        (&"7".into(), &"failed".into(), &"too_large".into())
    );
    assert_eq!(broker.seen().violations, [""; 0]);
}

#[test]
fn topic_aliases_are_neither_used_nor_asked_for_and_one_that_comes_all_the_same_costs_a_connection_at_most() {
    let aliasing = || -> Manner {
        Box::new(|sent, wire| {
            if !is_event(sent) {
                return wire.answer(sent);
            }
            wire.send(&fake::publish(0x30, "", None, &[0x23, 0, 5], b"offline"));
            Then::Listen
        })
    };
    for topic_aliases in [None, Some(0), Some(10)] {
        let broker = Broker::start(Terms { topic_aliases, ..Terms::default() }, at_first(aliasing));
        let client = client(&broker);
        offer(&client.handle(), 0..50);
        wait_empty(client.handle().spool());
        // An alias would be a violation.
        broker.seen().assert_all(50);
        let asked = |connect: &Sent| matches!(connect, Sent::Connect { topic_aliases: 1.., .. });
        assert!(!broker.seen().connects.iter().any(asked));
    }
}

#[test]
fn a_broker_that_says_to_remember_a_session_is_sent_everything_all_the_same() {
    for session_present in [true, false] {
        let terms = Terms { session_present, session_expiry_s: Some(3600), ..Terms::default() };
        let cutting = || {
            let mut events = 0;
            let manner: Manner = Box::new(move |sent, wire| {
                events += usize::from(is_event(sent));
                if events == 10 {
                    Then::Close
                } else if is_event(sent) {
                    Then::Go
                } else {
                    wire.answer(sent)
                }
            });
            manner
        };
        let broker = Broker::start(terms, at_first(cutting));
        let client = client(&broker);
        offer(&client.handle(), 0..50);
        wait_empty(client.handle().spool());
        let seen = broker.seen();
        seen.assert_all(50);
        assert!(seen.events.len() >= 60, "the first ten came twice");
        let clean = |connect: &Sent| matches!(connect, Sent::Connect { clean_start: true, session_expiry_s: 0, .. });
        assert!(
            seen.connects.iter().all(clean),
            "what must not be lost is not left to the broker: {:?}",
            seen.connects
        );
    }
}

/// Something that no broker may send, or not now.
fn mischief(rng: &mut StdRng, wire: &mut Wire) {
    let mut noise = vec![0; rng.random_range(1..80)];
    rng.fill_bytes(&mut noise);
    let status = topics().status();
    match rng.random_range(0..12) {
        0 => wire.send(&noise),
        // Right in its first byte and its length.
        1 => wire.send(&fake::packet(rng.random_range(1..16) << 4 | rng.random_range(0..16), &noise)),
        // Longer than it may be, and than what follows.
        2 => wire.send(&[&[0x30, 0xff, 0xff, 0xff, 0x7f][..], &noise].concat()),
        3 => wire.send(&[0x30, 0xff, 0xff, 0xff, 0xff, 0xff]),
        4 => wire.send(&fake::publish(0x32, &status, Some(1), &[], &[b'x'; 70_000])),
        5 => wire.send(&fake::packet(0x20, &[0, 0, 0])),
        // PUBREC, PUBREL, PUBCOMP, UNSUBACK, SUBACK of some id.
        6 => {
            let first = [0x50, 0x62, 0x70, 0xb0, 0x90][rng.random_range(0..5)];
            wire.send(&fake::packet(first, &[0, rng.random_range(0..40)]));
        }
        // A PUBACK that refuses, with properties that end too early.
        7 => wire.send(&fake::packet(0x40, &[0, rng.random_range(0..40), 0x97, 9, 0x1f, 0, 200])),
        // An id of 0, a topic that is no UTF-8, QoS 3.
        8 => wire.send(&fake::publish(0x32, &status, Some(0), &[], b"{}")),
        9 => wire.send(&fake::packet(0x30, &[0, 2, 0xc3, 0x28, 0, b'{'])),
        10 => wire.send(&fake::publish(0x36, &status, Some(7), &[], b"{}")),
        // Cut off in the middle.
        _ => wire.send(&fake::publish(0x30, &status, None, &[], &noise)[..20]),
    }
}

#[test]
fn rubbish_at_any_moment_of_a_connection_loses_no_event_and_the_status_is_true_afterwards() {
    const ROUNDS: usize = 120;
    let panics = Arc::<AtomicUsize>::default();
    let hook = std::panic::take_hook();
    std::panic::set_hook({
        let panics = Arc::clone(&panics);
        Box::new(move |info| {
            panics.fetch_add(usize::from(std::thread::current().name() == Some("mqtt")), Ordering::SeqCst);
            hook(info);
        })
    });
    let broker = Broker::start(Terms::default(), |connection| {
        if connection >= ROUNDS {
            return fake::good();
        }
        let mut rng = StdRng::seed_from_u64(connection as u64);
        let mut good_packets = rng.random_range(0..30);
        Box::new(move |sent, wire| {
            if good_packets > 0 {
                good_packets -= 1;
                return wire.answer(sent);
            }
            mischief(&mut rng, wire);
            // Either it goes on as if nothing had been, or it says nothing more, or it goes.
            match rng.random_range(0..4) {
                0 => {
                    good_packets = 100;
                    wire.answer(sent)
                }
                1 => Then::Close,
                _ => Then::Listen,
            }
        })
    });
    let quick =
        Limits { connect: Duration::from_millis(200), acknowledge: Duration::from_millis(100), ..Limits::default() };
    let client = with_limits(&broker, quick);
    let mut seq = 0;
    while broker.seen().connections <= ROUNDS {
        // A connection without events would last.
        offer(&client.handle(), seq..seq + 1);
        seq += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    offer(&client.handle(), seq..seq + 10);
    wait_empty(client.handle().spool());
    let seen =
        broker.wait("the status", |seen| seen.statuses.last().is_some_and(|status| status["status"] == "online"));
    assert!(seen.first_seqs().into_iter().eq(0..seq + 10), "{:?}", seen.first_seqs());
    assert!(seen.gaps.is_empty() && client.handle().outbox().lost == 0, "{:?}", seen.gaps);
    assert_eq!(seen.statuses.last().unwrap()["boot"], boot().to_string());
    assert_eq!(panics.load(Ordering::SeqCst), 0, "panics of the client");
}

#[test]
fn a_broker_that_takes_ten_messages_a_second_gets_all_in_order_and_nobody_waits_for_it() {
    let there = Arc::new(AtomicBool::new(false));
    let broker = Broker::start(Terms::default(), {
        let there = Arc::clone(&there);
        move |_| {
            let there = Arc::clone(&there);
            Box::new(move |sent, wire| {
                if !there.load(Ordering::SeqCst) {
                    return Then::Close;
                }
                // This is how slow it is.
                std::thread::sleep(Duration::from_millis(if is_event(sent) { 100 } else { 0 }));
                wire.answer(sent)
            })
        }
    });
    let limits = Limits { historical_after: Duration::ZERO, ..Limits::default() };
    let client = with_limits(&broker, limits);
    offer(&client.handle(), 0..40);
    there.store(true, Ordering::SeqCst);
    let connections = broker.wait("a first event", |seen| !seen.events.is_empty()).connections;
    let before = client.handle().outbox().depth;
    offer(&client.handle(), 40..10_000);
    assert!(client.handle().outbox().depth > before + 9_900, "they wait, and whoever made them does not");
    drop(broker.wait("the backlog and some more", |seen| seen.events.len() >= 60));
    let seen = broker.seen();
    let historical = seen.events.iter().take(60).map(|(_, historical)| *historical);
    assert!(historical.eq((0..60).map(|seq| seq < 40)), "those from before the connection: {:?}", seen.events);
    let count = seen.events.len() as u64;
    seen.assert_all(count);
    assert_eq!((seen.connections, seen.first_seqs().len() as u64), (connections, count), "slow is not silent");
}

#[test]
fn ten_thousand_events_of_a_days_outage_arrive_once_and_in_order_with_their_own_times() {
    const EVENTS: u64 = 10_000;
    let day = Duration::from_secs(24 * 3600);
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskSettings {
        folder: folder.path().join("spool"),
        max_bytes: 64 << 20,
        sync_every: Duration::from_millis(50),
        sync_events: 64,
    };
    // Few in memory: most have to come back from disk.
    let memory = MemorySettings { events: 2_000, max_age: Some(7 * day) };
    let times = Arc::<Mutex<Vec<String>>>::default();
    let broker = Broker::start(Terms::default(), {
        let times = Arc::clone(&times);
        move |connection| {
            let times = Arc::clone(&times);
            Box::new(move |sent, wire| {
                if connection == 0 {
                    return Then::Close;
                }
                if let Sent::Publish { payload, .. } = sent
                    && is_event(sent)
                {
                    let event: serde_json::Value = serde_json::from_slice(payload).unwrap();
                    times.lock().unwrap().push(event["time"].as_str().unwrap().to_owned());
                }
                wire.answer(sent)
            })
        }
    });
    let spool = Arc::new(Spool::on_disk(&disk, &memory, boot()).unwrap());
    let now = Instant::now();
    let wall = jiff::Timestamp::from_microsecond(jiff::Timestamp::now().as_microsecond()).unwrap();
    let ago = |seq: u64| day - day * u32::try_from(seq).unwrap() / u32::try_from(EVENTS).unwrap();
    for seq in 0..EVENTS {
        let captured = now.checked_sub(ago(seq));
        spool.push(Event { time: Moment(wall - ago(seq)), captured, ..event(seq) });
        while seq - spool.figures().stored.min(seq) > 1_500 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let client = Client::start(Setup { spool: Arc::clone(&spool), ..setup(config(broker.port)) }).unwrap();
    wait_empty(&spool);
    let seen = broker.seen();
    seen.assert_all(EVENTS);
    assert_eq!(seen.events.len() as u64, EVENTS, "each once");
    assert!(seen.events.iter().all(|(_, historical)| *historical));
    let expected: Vec<String> = (0..EVENTS).map(|seq| Moment(wall - ago(seq)).to_string()).collect();
    assert!(*times.lock().unwrap() == expected);
    assert_eq!(client.handle().outbox().lost, 0);
}
