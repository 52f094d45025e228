//! An MQTT broker inside the process, on loopback: for `visaged demo`, and for tests.
//!
//! The broker is `rumqttd`, which has one listener for each version of MQTT. A small front on the public port reads
//! the version from a client's first packet and passes the connection on, so that `mosquitto_sub -p PORT` works as it
//! stands (it speaks 3.1.1 unless told otherwise). The front is also what makes a port in use a clear error and a
//! dropped [`Broker`] let go of its connections.
//!
//! Not for production: no login, no TLS, nothing on disk, and `rumqttd` 0.20 sends retained messages without their
//! retain flag. Its threads stay until the process ends.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rumqttd::{Config, ConnectionSettings, RouterConfig, ServerSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::oneshot;

/// A `tracing` filter directive that silences the broker's own log.
pub const QUIET: &str = "rumqttd=off";

/// Largest message; a discovery message has a few kilobytes.
const LARGEST_PAYLOAD_BYTES: usize = 256 * 1024;

/// What the broker remembers of each topic for slow subscribers.
const SEGMENT_BYTES: usize = 512 * 1024;
const SEGMENTS: usize = 4;

const MOST_CONNECTIONS: usize = 64;

/// A client that has not said its version by then is no MQTT client.
const FIRST_PACKET_LIMIT: Duration = Duration::from_secs(5);

/// The listeners inside come up within milliseconds.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A running broker; dropped, it closes its port and all connections.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why the broker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Another program listens there.
    #[error(
        "port {port} on 127.0.0.1 is in use; stop the program that uses it, choose another port, or 0 for any free one"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The system refused the port for another reason.
    #[error("port {port} on 127.0.0.1 cannot be opened: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("the broker's threads could not be started: {0}")]
    Thread(io::Error),
    /// The broker inside did not come up.
    #[error("the MQTT broker inside the process did not start within {0:?}")]
    NotReady(Duration),
}

impl Broker {
    /// Starts on 127.0.0.1 at `port`, or at any free one for 0; takes MQTT 5, 3.1.1 and 3.1 on it once this returns.
    ///
    /// # Errors
    /// [`BrokerError`] where the port is taken or the system gives no thread.
    pub fn start(port: u16) -> Result<Self, BrokerError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BrokerError::PortInUse { port },
            _ => BrokerError::Listen { port, source },
        })?;
        let listen = |source| BrokerError::Listen { port, source };
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let inside = start_inside().map_err(BrokerError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BrokerError::Thread)?;
        let thread = std::thread::Builder::new()
            .name("broker".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, inside) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(BrokerError::Thread)?;
        let broker = Self { address, stop: Some(stop), thread: Some(thread) };
        inside.wait_until_ready()?;
        Ok(broker)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where `rumqttd` listens.
#[derive(Clone, Copy, Debug)]
struct Inside {
    v4: SocketAddrV4,
    v5: SocketAddrV4,
}

impl Inside {
    fn wait_until_ready(self) -> Result<(), BrokerError> {
        let deadline = Instant::now() + START_LIMIT;
        for address in [self.v4, self.v5] {
            while TcpStream::connect(address).is_err() {
                if Instant::now() > deadline {
                    return Err(BrokerError::NotReady(START_LIMIT));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

fn start_inside() -> io::Result<Inside> {
    let free = || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| Ok((listener.local_addr()?.port(), listener)))
    };
    let ((v4, keep_v4), (v5, keep_v5)) = (free()?, free()?);
    let inside =
        Inside { v4: SocketAddrV4::new(Ipv4Addr::LOCALHOST, v4), v5: SocketAddrV4::new(Ipv4Addr::LOCALHOST, v5) };
    drop((keep_v4, keep_v5));
    let mut broker = rumqttd::Broker::new(config(inside));
    std::thread::Builder::new().name("broker-inside".into()).spawn(move || {
        if let Err(error) = broker.start() {
            tracing::error!(%error, "the MQTT broker inside the process ended");
        }
    })?;
    Ok(inside)
}

fn config(inside: Inside) -> Config {
    let server = |name: &str, address: SocketAddrV4| {
        let connections = ConnectionSettings {
            connection_timeout_ms: 5000,
            max_payload_size: LARGEST_PAYLOAD_BYTES,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        };
        let settings = ServerSettings {
            name: name.into(),
            listen: address.into(),
            tls: None,
            next_connection_delay_ms: 1,
            connections,
        };
        Some(HashMap::from([(name.to_owned(), settings)]))
    };
    Config {
        router: RouterConfig {
            max_connections: MOST_CONNECTIONS,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: server("broker-v4", inside.v4),
        v5: server("broker-v5", inside.v5),
        ..Config::default()
    }
}

async fn accept(listener: TcpListener, inside: Inside) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the broker's port cannot be used"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(pass_on(stream, inside))),
            // Out of file descriptors: they come back as connections end.
            Err(error) => {
                tracing::warn!(%error, "the broker could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Brings one connection to the listener that speaks its version; ends quietly with either side.
async fn pass_on(mut client: tokio::net::TcpStream, inside: Inside) {
    let mut first = [0; CONNECT_HEAD_BYTES];
    let Ok(Ok((length, version))) =
        tokio::time::timeout(FIRST_PACKET_LIMIT, read_version(&mut client, &mut first)).await
    else {
        return;
    };
    let address = if version >= 5 { inside.v5 } else { inside.v4 };
    let Ok(mut server) = tokio::net::TcpStream::connect(address).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    if server.write_all(&first[..length]).await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn read_version(
    client: &mut tokio::net::TcpStream,
    first: &mut [u8; CONNECT_HEAD_BYTES],
) -> io::Result<(usize, u8)> {
    let mut length = 0;
    loop {
        match connect_version(&first[..length]) {
            Head::Version(version) => return Ok((length, version)),
            Head::NotConnect => return Err(io::ErrorKind::InvalidData.into()),
            Head::Incomplete => {}
        }
        match client.read(&mut first[length..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length += read,
        }
    }
}

/// Fixed header (1 + up to 4 bytes), length and name of the protocol (2 + up to 6), its version.
const CONNECT_HEAD_BYTES: usize = 14;

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Version(u8),
    Incomplete,
    NotConnect,
}

/// The protocol version of a CONNECT packet (MQTT 5.0, 3.1.2.1 and 3.1.2.2).
fn connect_version(bytes: &[u8]) -> Head {
    let Some((&packet_type, rest)) = bytes.split_first() else { return Head::Incomplete };
    if packet_type != 0x10 {
        return Head::NotConnect;
    }
    let Some(length_bytes) = rest.iter().take(4).position(|byte| byte & 0x80 == 0) else {
        return if rest.len() < 4 { Head::Incomplete } else { Head::NotConnect };
    };
    let body = &rest[length_bytes + 1..];
    for name in [&b"\0\x04MQTT"[..], &b"\0\x06MQIsdp"[..]] {
        if let Some(after) = body.strip_prefix(name) {
            return after.first().map_or(Head::Incomplete, |version| Head::Version(*version));
        }
        if name.starts_with(body) {
            return Head::Incomplete;
        }
    }
    Head::NotConnect
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_version_is_read_as_soon_as_it_is_there() {
        for (packet, version) in [
            (&b"\x10\x0c\0\x04MQTT\x05\x02\0\x3c\0\0\0"[..], 5),
            (&b"\x10\x80\x01\0\x04MQTT\x04\x02"[..], 4),
            (&b"\x10\xff\xff\xff\x7f\0\x06MQIsdp\x03"[..], 3),
        ] {
            let complete = (1..=packet.len()).find(|n| connect_version(&packet[..*n]) != Head::Incomplete).unwrap();
            assert!(complete <= CONNECT_HEAD_BYTES);
            assert_eq!(connect_version(&packet[..complete]), Head::Version(version));
        }
    }

    #[test]
    fn what_is_not_mqtt_is_turned_away() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x10\xff\xff\xff\xff\x01", b"\x10\x0c\0\x04HTTP\x05", b"\x30\x05"] {
            assert_eq!(connect_version(bytes), Head::NotConnect, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_first_bytes_are_decided_within_the_buffer(bytes in prop::collection::vec(any::<u8>(), CONNECT_HEAD_BYTES)) {
            prop_assert_ne!(connect_version(&bytes), Head::Incomplete);
        }
    }
}
