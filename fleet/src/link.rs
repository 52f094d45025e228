//! One MQTT 5 session at a time: connects, subscribes, hands on what comes, acknowledges by hand.
//!
//! Invariants: a QoS 1 message is acknowledged only through [`Message::acknowledge`], which the writer calls when the store has it; an
//! acknowledgement reaches only the connection that its message came over, because each connection has a client of its own (packet ids mean
//! nothing on another one). Knows no payloads.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, LastWill, Packet, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Unacknowledged QoS 1 messages that the broker may send.
pub const RECEIVE_MAXIMUM: u16 = 2000;

/// Largest packet taken; a `snapshot` answer is the largest thing a device sends.
const LARGEST_INCOMING_BYTES: u32 = 1024 * 1024;

/// Room for every acknowledgement that can be due at a time, so that giving one never waits.
const REQUESTS: usize = 16 * 1024;

/// Commands in flight.
const WINDOW: u16 = 500;

const KEEP_ALIVE: Duration = Duration::from_secs(20);
const CONNECT_LIMIT_S: u64 = 10;

/// Where the broker is and how to log in.
#[derive(Clone, Debug)]
pub struct BrokerAddress {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User and password.
    pub login: Option<(String, String)>,
    /// Encrypted where there is one.
    pub tls: Option<Arc<ClientConfig>>,
}

/// `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address.
    pub host: String,
    /// 1883, or 8883 with TLS, where none is named.
    pub port: u16,
    /// `mqtts`.
    pub tls: bool,
}

/// Why the broker cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The URL.
    #[error(
        "broker {0:?}: want mqtt://HOST[:PORT] or mqtts://HOST[:PORT]; user and password have settings of their own"
    )]
    Url(String),
    /// A PEM file.
    #[error("broker: {path}: {reason}; want a PEM file with {what}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// TLS.
    #[error("broker: TLS: {0}; do certificate and key belong together?")]
    Tls(#[from] rustls::Error),
    /// Not connected.
    #[error("broker {0}: {1}")]
    Connection(String, String),
}

impl FromStr for BrokerUrl {
    type Err = LinkError;
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::Url(text.to_owned());
        let (tls, rest) = match text.split_once("://").ok_or_else(bad)? {
            ("mqtt", rest) => (false, rest),
            ("mqtts", rest) => (true, rest),
            _ => return Err(bad()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['@', '/', '?', '#']) {
            return Err(bad());
        }
        let after_brackets = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest[after_brackets..].rfind(':') {
            Some(colon) => {
                (&rest[..after_brackets + colon], rest[after_brackets + colon + 1..].parse().map_err(|_| bad())?)
            }
            None => (rest, if tls { 8883 } else { 1883 }),
        };
        if host.is_empty() || port == 0 {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

/// TLS with the given authorities, or the system's; and with a client certificate where one is given.
///
/// # Errors
/// [`LinkError`] names the file that does not do.
pub fn tls(ca: Option<&Path>, client: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, LinkError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            roots.add_parsable_certificates(certificates(path)?);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((chain, key)) = client else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let pem = |reason: String| LinkError::Pem { path: key.to_owned(), what: "a private key", reason };
    let file = File::open(key).map_err(|error| pem(error.to_string()))?;
    let private = rustls_pemfile::private_key(&mut BufReader::new(file))
        .map_err(|error| pem(error.to_string()))?
        .ok_or_else(|| pem("none in it".into()))?;
    Ok(Arc::new(builder.with_client_auth_cert(certificates(chain)?, private)?))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let pem = |reason: String| LinkError::Pem { path: path.to_owned(), what: "certificates", reason };
    let file = File::open(path).map_err(|error| pem(error.to_string()))?;
    let found = rustls_pemfile::certs(&mut BufReader::new(file)).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| pem(error.to_string()))?;
    if found.is_empty() { Err(pem("none in it".into())) } else { Ok(found) }
}

/// How a session is begun.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Names the session at the broker.
    pub client_id: String,
    /// Forget what the broker kept for it.
    pub clean_start: bool,
    /// How long the broker keeps it after the connection has ended.
    pub expiry: Duration,
    /// Published by the broker when the connection is lost: topic, payload; retained.
    pub last_will: Option<(String, String)>,
    /// Messages are acknowledged by [`Message::acknowledge`] alone.
    pub manual_acknowledgement: bool,
    /// Requests that can wait to be written.
    pub requests: usize,
    /// QoS 1 messages of ours in flight; the client reserves room for each of them at its start.
    pub window: u16,
}

impl SessionOptions {
    /// For a process that stores what it gets.
    pub fn storing(client_id: &str, clean_start: bool, expiry: Duration) -> Self {
        let client_id = client_id.to_owned();
        Self {
            client_id,
            clean_start,
            expiry,
            last_will: None,
            manual_acknowledgement: true,
            requests: REQUESTS,
            window: WINDOW,
        }
    }
}

/// A message with the connection that it came over.
#[derive(Clone, Debug)]
pub struct Message {
    publish: Publish,
    client: AsyncClient,
}

impl Message {
    /// The topic, if it is text.
    pub fn topic(&self) -> Option<&str> {
        std::str::from_utf8(&self.publish.topic).ok()
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.publish.payload
    }

    /// It may be passed over when there is no room: the broker would not send it again anyway.
    pub fn is_qos_0(&self) -> bool {
        self.publish.qos == QoS::AtMostOnce
    }

    /// The broker may forget it. Does nothing where the connection has ended: it will come again.
    pub fn acknowledge(&self) {
        if !self.is_qos_0() {
            let _ = self.client.try_ack(&self.publish);
        }
    }
}

/// What a connection tells.
#[derive(Debug)]
pub enum Told {
    /// Connected; whether the broker had kept the session.
    Connected(bool),
    /// Subscriptions answered; reasons of those refused.
    Subscribed(Vec<String>),
    /// Subscriptions ended.
    Unsubscribed,
    /// A message.
    Message(Message),
    /// A QoS 1 message of ours was acknowledged.
    Acknowledged(u16),
    /// A QoS 1 message of ours was written, under this packet id.
    Written(u16),
    /// Nothing of interest.
    Other,
}

/// One connection.
pub struct Connection {
    client: AsyncClient,
    eventloop: EventLoop,
    shown: String,
}

impl Connection {
    /// Prepares it; [`next`](Self::next) opens it.
    pub fn new(address: &BrokerAddress, session: &SessionOptions) -> Self {
        let mut options = MqttOptions::new(session.client_id.clone(), address.host.clone(), address.port);
        options.set_clean_start(session.clean_start);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_connection_timeout(CONNECT_LIMIT_S);
        options.set_outgoing_inflight_upper_limit(session.window);
        options.set_manual_acks(session.manual_acknowledgement);
        let mut properties = ConnectProperties::new();
        properties.receive_maximum = Some(RECEIVE_MAXIMUM);
        properties.max_packet_size = Some(LARGEST_INCOMING_BYTES);
        properties.session_expiry_interval = Some(u32::try_from(session.expiry.as_secs()).unwrap_or(u32::MAX));
        options.set_connect_properties(properties);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if let Some((user, password)) = &address.login {
            options.set_credentials(user, password);
        }
        if let Some(tls) = &address.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
        }
        if let Some((topic, payload)) = &session.last_will {
            options.set_last_will(LastWill::new(topic.clone(), payload.clone(), QoS::AtLeastOnce, true, None));
        }
        let (client, eventloop) = AsyncClient::new(options, session.requests);
        Self { client, eventloop, shown: format!("{}:{}", address.host, address.port) }
    }

    /// For publishing.
    pub fn client(&self) -> &AsyncClient {
        &self.client
    }

    /// Waits for what happens next. Safe to be dropped and called again.
    ///
    /// # Errors
    /// [`LinkError::Connection`]: the connection has ended; this value is of no more use.
    pub async fn next(&mut self) -> Result<Told, LinkError> {
        let event =
            self.eventloop.poll().await.map_err(|e| LinkError::Connection(self.shown.clone(), e.to_string()))?;
        Ok(match event {
            Event::Incoming(Packet::ConnAck(connack)) => Told::Connected(connack.session_present),
            Event::Incoming(Packet::Publish(publish)) => {
                Told::Message(Message { publish, client: self.client.clone() })
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                Told::Subscribed(
                    answer.return_codes.iter().filter(|code| refused(code)).map(|c| format!("{c:?}")).collect(),
                )
            }
            Event::Incoming(Packet::UnsubAck(_)) => Told::Unsubscribed,
            Event::Incoming(Packet::PubAck(answer)) => Told::Acknowledged(answer.pkid),
            Event::Incoming(Packet::Disconnect(why)) => {
                let reason = format!("the broker ended the connection: {:?}", why.reason_code);
                return Err(LinkError::Connection(self.shown.clone(), reason));
            }
            // Packet id 0 is QoS 0.
            Event::Outgoing(rumqttc::Outgoing::Publish(id)) if id != 0 => Told::Written(id),
            _ => Told::Other,
        })
    }

    /// Asks for all of `filters` at QoS 1.
    pub fn subscribe(&self, filters: &[String]) {
        let filters = filters.iter().map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
        let _ = self.client.try_subscribe_many(filters.collect::<Vec<_>>());
    }

    /// Ends one subscription.
    pub fn unsubscribe(&self, filter: &str) {
        let _ = self.client.try_unsubscribe(filter);
    }

    /// Hands over a QoS 1 message, not retained. `false` where there is no room or no connection.
    pub fn publish(&self, topic: &str, payload: String) -> bool {
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok()
    }

    /// Says goodbye, as far as the connection stands.
    pub async fn disconnect(mut self) {
        if self.client.try_disconnect().is_ok() {
            let written = async { while self.eventloop.poll().await.is_ok() {} };
            let _ = tokio::time::timeout(Duration::from_secs(2), written).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_url_names_host_port_and_tls() {
        let url = |text: &str| text.parse::<BrokerUrl>().map(|u| (u.host, u.port, u.tls)).ok();
        assert_eq!(url("mqtt://broker"), Some(("broker".into(), 1883, false)));
        assert_eq!(url("mqtts://broker/"), Some(("broker".into(), 8883, true)));
        assert_eq!(url("mqtt://[::1]:99"), Some(("[::1]".into(), 99, false)));
        assert_eq!(url("mqtt://[::1]"), Some(("[::1]".into(), 1883, false)));
        for bad in ["broker", "http://x", "mqtt://", "mqtt://u:p@x", "mqtt://x:0", "mqtt://x:y", "mqtt://x/y"] {
            assert_eq!(url(bad), None, "{bad}");
        }
    }
}
