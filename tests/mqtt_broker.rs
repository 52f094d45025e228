//! The broker inside the process: the same contract as with a real one, for clients of both versions.

#![cfg(feature = "demo")]

mod mqtt_support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use mqtt_support::{assert_the_contract_holds, client, last_status, mosquitto_sub, offer, topics, wait_empty, wait_up};
use serde_json::Value;
use visaged::mqtt::broker::{Broker, BrokerError};

#[test]
fn the_embedded_broker_keeps_the_contract() {
    let broker = Broker::start(0).unwrap();
    assert_the_contract_holds(broker.address().port());
}

#[test]
fn subscribers_of_both_mqtt_versions_see_what_is_kept_and_what_comes_on_one_port() {
    let broker = Broker::start(0).unwrap();
    let port = broker.address().port();
    let client = client(port);
    wait_up(&client.handle());
    let watchers = ["5", "311"].map(|version| std::thread::spawn(move || mosquitto_sub(port, version, "visaged/#", 6)));
    // Events go out until both have seen enough, however late they subscribed.
    let mut seq = 0;
    while watchers.iter().any(|watcher| !watcher.is_finished()) {
        offer(&client.handle(), seq..seq + 1);
        seq += 1;
        wait_empty(client.handle().spool());
    }
    for watcher in watchers {
        let lines = watcher.join().unwrap();
        let payload = |topic: String| {
            let line = lines.iter().find_map(|line| line.strip_prefix(&format!("{topic} "))).unwrap_or_default();
            serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no {topic} in {lines:#?}"))
        };
        assert_eq!(payload(topics().status())["status"], "online");
        assert_eq!(payload(topics().info())["schema"], "visaged.info.v1");
        assert_eq!(payload(topics().face())["schema"], "visaged.face.v1");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Broker::start(port).unwrap_err();
    assert!(matches!(error, BrokerError::PortInUse { port: p } if p == port), "{error}");
    assert!(error.to_string().contains(&port.to_string()));
}

#[test]
fn what_is_not_mqtt_is_closed_and_harms_nobody() {
    let broker = Broker::start(0).unwrap();
    let mut stranger = TcpStream::connect(broker.address()).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stranger.set_read_timeout(Some(mqtt_support::HANGS)).unwrap();
    assert!(matches!(stranger.read(&mut [0; 16]), Ok(0) | Err(_)));
    let client = client(broker.address().port());
    wait_up(&client.handle());
    client.stop(Duration::from_secs(1));
}

#[test]
fn a_dropped_broker_closes_its_port_and_its_connections() {
    let broker = Broker::start(0).unwrap();
    let address = broker.address();
    let client = client(address.port());
    wait_up(&client.handle());
    drop(broker);
    mqtt_support::wait_error(&client.handle());
    // A program that another test is just starting can hold a copy of the port for a moment.
    let start = Instant::now();
    let again = loop {
        match Broker::start(address.port()) {
            Ok(broker) => break broker,
            Err(error) => assert!(start.elapsed() < mqtt_support::HANGS, "{error}"),
        }
    };
    wait_up(&client.handle());
    let recorder = mqtt_support::Recorder::on(again.address().port());
    recorder.wait("status on the new broker", |messages| last_status(messages)["status"] == "online");
}
