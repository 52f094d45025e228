//! One connection that publishes nothing: whether the broker takes us in.

use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop};

use super::error::{LinkError, LinkErrorKind, StartError};
use super::options;
use crate::config::MqttConfig;
use crate::mqtt::topics::Topics;

/// Why [`probe`] was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not even be tried.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The broker is not there, or does not want us.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Connects under a client id of its own, so that a running daemon is not thrown out, and disconnects. Blocks for at
/// most `limit`.
///
/// # Errors
/// [`ProbeError`] with what to do about it.
pub fn probe(config: &MqttConfig, topics: &Topics, limit: Duration) -> Result<(), ProbeError> {
    let client_id = format!("{}-check", topics.client_id());
    let options = options::options(config, &client_id, 1, limit)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let (client, mut eventloop) = AsyncClient::new(options, 4);
    let result = runtime.block_on(async {
        let answer = tokio::time::timeout(limit, connected(&mut eventloop, limit, &client_id)).await;
        let answer = answer.unwrap_or(Err(LinkErrorKind::NoAnswer(limit)));
        if answer.is_ok() && client.disconnect().await.is_ok() {
            // DISCONNECT goes out with the next poll; whether it arrives changes nothing.
            let _ = tokio::time::timeout(Duration::from_millis(200), eventloop.poll()).await;
        }
        answer
    });
    // A name that is still being resolved must not hold us up.
    runtime.shutdown_background();
    let broker = format!("{}:{}", config.host, config.port);
    result.map_err(|kind| LinkError { broker, kind }.into())
}

async fn connected(eventloop: &mut EventLoop, limit: Duration, client_id: &str) -> Result<(), LinkErrorKind> {
    loop {
        match eventloop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(LinkErrorKind::from_poll(error, true, limit, client_id)),
        }
    }
}
