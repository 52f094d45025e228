//! From the configuration to what the protocol library wants.

use std::fs::File;
use std::io::BufReader;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWill};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::error::StartError;
use crate::config::{MqttConfig, TlsConfig};

/// Largest packet that the broker may send us; a request that is larger than it may be still gets its answer below this.
const LARGEST_INCOMING_BYTES: u32 = 64 * 1024;

/// QoS 1 messages that the broker may send before we acknowledge: with the answers to them, what a flood can make us hold.
pub(super) const RECEIVE_MAXIMUM: u16 = 16;

/// The shortest keep-alive that the protocol library takes.
const SHORTEST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Everything for CONNECT but the last will.
///
/// The session is clean: what must not be lost lies in the spool until its PUBACK, so the broker need not remember.
pub(super) fn options(
    config: &MqttConfig,
    client_id: &str,
    window: u16,
    connect: Duration,
) -> Result<MqttOptions, StartError> {
    let host = match config.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) if config.tls.is_some() => return Err(StartError::TlsName(config.host.clone())),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => config.host.clone(),
    };
    let mut options = MqttOptions::new(client_id, host, config.port);
    options.set_clean_start(true);
    options.set_keep_alive(config.keep_alive.max(SHORTEST_KEEP_ALIVE));
    options.set_connection_timeout(connect.as_secs().saturating_add(1));
    options.set_outgoing_inflight_upper_limit(window);
    // A request is acknowledged when it is answered, so that the broker holds back what we have not come to.
    options.set_manual_acks(true);
    let mut properties = ConnectProperties::new();
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = Some(LARGEST_INCOMING_BYTES);
    options.set_connect_properties(properties);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(login) = &config.login {
        options.set_credentials(&login.user, &login.password);
    }
    if let Some(tls) = &config.tls {
        let tls = TlsConfiguration::Rustls(Arc::new(tls_config(tls)?));
        options.set_transport(Transport::tls_with_config(tls));
    }
    Ok(options)
}

/// The message that the broker publishes for us when it loses us.
pub(super) fn last_will(topic: String, payload: Vec<u8>) -> LastWill {
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, None)
}

fn tls_config(tls: &TlsConfig) -> Result<ClientConfig, StartError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("mqtt.tls.ca_file", &tls.ca_file)?);
    if roots.is_empty() {
        let what = "usable certificate";
        return Err(StartError::NothingInPem { key: "mqtt.tls.ca_file", path: tls.ca_file.clone(), what });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some(client) = &tls.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("mqtt.tls.certificate_file", &client.certificate_file)?;
    let (key, path) = ("mqtt.tls.key_file", &client.key_file);
    let pem = |source| StartError::Pem { key, path: path.clone(), source };
    let private = rustls_pemfile::private_key(&mut BufReader::new(File::open(path).map_err(pem)?))
        .map_err(pem)?
        .ok_or_else(|| StartError::NothingInPem { key, path: path.clone(), what: "private key" })?;
    Ok(builder.with_client_auth_cert(chain, private)?)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let pem = |source| StartError::Pem { key, path: path.to_owned(), source };
    let found = rustls_pemfile::certs(&mut BufReader::new(File::open(path).map_err(pem)?))
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem)?;
    if found.is_empty() {
        return Err(StartError::NothingInPem { key, path: path.to_owned(), what: "certificate" });
    }
    Ok(found)
}
