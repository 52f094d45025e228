//! The embedded broker: MQTT 5, in this process, for trials and for a handful of devices.
//!
//! Not for production: nothing is on disk, so what it has acknowledged and the store does not have yet is lost with the process; there is one
//! `serve` on it, and retained messages arrive without their flag. It listens where it is told to; beyond loopback only with a user and a
//! password.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rumqttd::{Config, ConnectionSettings, RouterConfig, ServerSettings};

const LARGEST_PAYLOAD_BYTES: usize = 1024 * 1024;
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
const SEGMENTS: usize = 16;
const MOST_CONNECTIONS: usize = 1000;
const START_LIMIT: Duration = Duration::from_secs(5);

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The port.
    #[error(
        "the embedded broker cannot listen on {0}: {1}; choose another with --embedded-listen, or name a broker with --broker"
    )]
    Listen(SocketAddr, io::Error),
    /// Open to everybody.
    #[error(
        "the embedded broker would be open to everybody on {0}: give --broker-user and a password, or stay on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// Threads.
    #[error("the embedded broker could not be started: {0}")]
    Thread(io::Error),
    /// It does not listen.
    #[error("the embedded broker does not listen on {0} after {1:?}; is the port in use?")]
    NotReady(SocketAddr, Duration),
}

/// Starts it; it runs until the process ends. Gives the address for clients on this machine.
///
/// # Errors
/// [`BrokerError`].
pub fn start(listen: SocketAddr, login: Option<&(String, String)>) -> Result<SocketAddr, BrokerError> {
    if !listen.ip().is_loopback() && login.is_none() {
        return Err(BrokerError::Open(listen));
    }
    // The broker only logs that its port is taken, so the port is tried first.
    let free = TcpListener::bind(listen).map_err(|error| BrokerError::Listen(listen, error))?;
    let listen = free.local_addr().map_err(|error| BrokerError::Listen(listen, error))?;
    drop(free);
    let mut broker = rumqttd::Broker::new(config(listen, login));
    std::thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            if let Err(error) = broker.start() {
                tracing::error!(%error, "the embedded broker ended");
            }
        })
        .map_err(BrokerError::Thread)?;
    let mut reach = listen;
    if listen.ip().is_unspecified() {
        reach.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let deadline = Instant::now() + START_LIMIT;
    while TcpStream::connect(reach).is_err() {
        if Instant::now() > deadline {
            return Err(BrokerError::NotReady(listen, START_LIMIT));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(reach)
}

fn config(listen: SocketAddr, login: Option<&(String, String)>) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 5000,
        max_payload_size: LARGEST_PAYLOAD_BYTES,
        max_inflight_count: 500,
        auth: login.map(|(user, password)| HashMap::from([(user.clone(), password.clone())])),
        external_auth: None,
        dynamic_filters: true,
    };
    let name = "visaged-fleet".to_owned();
    let server = ServerSettings { name: name.clone(), listen, tls: None, next_connection_delay_ms: 1, connections };
    Config {
        router: RouterConfig {
            max_connections: MOST_CONNECTIONS,
            max_outgoing_packet_count: 500,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([(name, server)])),
        ..Config::default()
    }
}
