//! Why there is no connection, in words that say what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rumqttc::v5::mqttbytes::Error as PacketError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

/// Why the client could not be started; none of these is cured by waiting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A PEM file cannot be read.
    #[error("{key} = {}: {source}; is the path right, and may this user read it?", path.display())]
    Pem {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A PEM file holds nothing of what it is for.
    #[error("{key} = {}: no {what} in it; it must be a PEM file", path.display())]
    NothingInPem {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key do not fit, or the library refuses them.
    #[error("mqtt.tls: {0}; do certificate_file and key_file belong together?")]
    Tls(#[from] rustls::Error),
    /// A certificate is made out to a name.
    #[error("mqtt.host = {0:?}: over TLS the broker must be named by its DNS name or an IPv4 address")]
    TlsName(String),
    /// The system gives no thread or no runtime.
    #[error("the MQTT thread could not be started: {0}")]
    Thread(#[from] io::Error),
}

/// Why there is no connection to the broker; the client keeps trying.
#[derive(Debug, thiserror::Error)]
#[error("broker {broker}: {kind}")]
pub struct LinkError {
    /// Host and port as configured.
    pub broker: String,
    /// What is wrong.
    pub kind: LinkErrorKind,
}

/// The kinds of [`LinkError`].
#[derive(Debug, thiserror::Error)]
pub enum LinkErrorKind {
    /// Nobody listens, no route, no such name.
    #[error("{0}; is it running, and are mqtt.host and mqtt.port right?")]
    Unreachable(io::Error),
    /// The connection was made, and no CONNACK came.
    #[error("no answer to CONNECT within {0:?}; is it an MQTT broker, and is mqtt.tls set where it wants TLS?")]
    NoAnswer(Duration),
    /// The TLS handshake failed.
    #[error("TLS: {0}; is mqtt.tls.ca_file the authority of its certificate, and mqtt.host the name in it?")]
    Tls(String),
    /// The broker's certificate is not valid at the time that our clock shows.
    #[error(
        "TLS: the broker's certificate {0}; is this device's clock right (without a battery it starts in the past, until it hears the time)? Else the broker needs another certificate"
    )]
    CertificateTime(String),
    /// Our own certificate has expired, by the broker's clock.
    #[error(
        "TLS: the broker says that this device's certificate has expired; put another one at mqtt.tls.certificate_file (or is the broker's clock wrong?)"
    )]
    OwnCertificateExpired,
    /// Our own certificate is not accepted, or there is none.
    #[error(
        "TLS: the broker does not take this device's certificate ({0:?}); check mqtt.tls.certificate_file: is it there, is it valid already, does the broker know its authority?"
    )]
    OwnCertificate(AlertDescription),
    /// User, password or certificate are not accepted.
    #[error("refused: {0:?}; check mqtt.login")]
    Login(ConnectReturnCode),
    /// Refused for another reason.
    #[error("refused: {0:?}")]
    Refused(ConnectReturnCode),
    /// It cannot do what the contract needs.
    #[error("{0}")]
    Unfit(&'static str),
    /// It said why it goes.
    #[error("closed the connection: {code:?} {}", reason.as_deref().unwrap_or_default())]
    Disconnected {
        /// Its code.
        code: DisconnectReasonCode,
        /// Its words.
        reason: Option<String>,
    },
    /// Another client has the same id.
    #[error("another client took over the id {client_id:?}; is there a second device of this site and name?")]
    TakenOver {
        /// The id.
        client_id: String,
    },
    /// The stream ended without an answer to CONNECT.
    #[error("closed the connection before it answered CONNECT; does it want TLS, or does it not speak MQTT 5?")]
    ClosedAtOnce,
    /// The stream ended without a word, or with a DISCONNECT that holds a reason code alone, as Mosquitto sends it:
    /// MQTT 5 (3.14.2.2.1) allows that, `rumqttc` 0.25 passes over it.
    #[error(
        "closed the connection: it went down, or another client took over the id {client_id:?} (is there a second device of this site and name?)"
    )]
    Closed {
        /// Our id.
        client_id: String,
    },
    /// An acknowledgement or any sign of life is overdue.
    #[error("silent: {0}")]
    Silent(&'static str),
    /// It could not take a message now.
    #[error("could not take a message now ({0}); it is sent again")]
    Busy(String),
    /// It broke the protocol, or the protocol library lost track.
    #[error("protocol error: {0}")]
    Protocol(String),
}

impl LinkErrorKind {
    pub(super) fn from_poll(error: ConnectionError, before_connack: bool, limit: Duration, client_id: &str) -> Self {
        if let Some(kind) = rustls_error(&error).and_then(about_certificates) {
            return kind;
        }
        match error {
            ConnectionError::Timeout(_) => Self::NoAnswer(limit),
            ConnectionError::Io(error) => Self::Unreachable(error),
            ConnectionError::Tls(error) => Self::Tls(tls_words(&error)),
            ConnectionError::ConnectionRefused(
                code @ (ConnectReturnCode::BadUserNamePassword
                | ConnectReturnCode::NotAuthorized
                | ConnectReturnCode::BadAuthenticationMethod),
            ) => Self::Login(code),
            ConnectionError::ConnectionRefused(code) => Self::Refused(code),
            ConnectionError::MqttState(state) => Self::from_state(state, before_connack, client_id),
            other => Self::Protocol(other.to_string()),
        }
    }

    fn from_state(error: StateError, before_connack: bool, client_id: &str) -> Self {
        match error {
            StateError::ServerDisconnect { reason_code: DisconnectReasonCode::SessionTakenOver, .. } => {
                Self::TakenOver { client_id: client_id.to_owned() }
            }
            StateError::ServerDisconnect { reason_code, reason_string } => {
                Self::Disconnected { code: reason_code, reason: reason_string }
            }
            StateError::ConnectionAborted => closed(before_connack, client_id),
            StateError::Io(error) | StateError::Deserialization(rumqttc::v5::mqttbytes::Error::Io(error))
                if is_close(&error) =>
            {
                closed(before_connack, client_id)
            }
            StateError::AwaitPingResp => Self::Silent("no answer to a ping"),
            StateError::CollisionTimeout => Self::Silent("a packet id stayed taken"),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// What `rustls` said, wherever it is wrapped. An alert of the broker about our certificate comes in TLS 1.3 only when the
/// handshake is over for us, as an error of reading.
fn rustls_error(error: &ConnectionError) -> Option<&rustls::Error> {
    let io = match error {
        ConnectionError::Tls(rumqttc::TlsError::TLS(error)) => return Some(error),
        ConnectionError::Tls(rumqttc::TlsError::Io(io)) | ConnectionError::Io(io) => io,
        ConnectionError::MqttState(StateError::Io(io) | StateError::Deserialization(PacketError::Io(io))) => io,
        _ => return None,
    };
    io.get_ref()?.downcast_ref()
}

fn about_certificates(error: &rustls::Error) -> Option<LinkErrorKind> {
    use AlertDescription as Alert;
    let date = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| "beyond all calendars".into(), |time| time.to_string())
    };
    Some(match error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            let what = format!("has expired on {}, and this device's clock shows {}", date(not_after), date(time));
            LinkErrorKind::CertificateTime(what)
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            let what = format!("is valid from {} on, and this device's clock shows {}", date(not_before), date(time));
            LinkErrorKind::CertificateTime(what)
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired) => {
            LinkErrorKind::CertificateTime("has expired by this device's clock".into())
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet) => {
            LinkErrorKind::CertificateTime("is not valid yet by this device's clock".into())
        }
        rustls::Error::AlertReceived(Alert::CertificateExpired) => LinkErrorKind::OwnCertificateExpired,
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::NoCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired),
        ) => LinkErrorKind::OwnCertificate(*alert),
        _ => return None,
    })
}

fn closed(before_connack: bool, client_id: &str) -> LinkErrorKind {
    if before_connack { LinkErrorKind::ClosedAtOnce } else { LinkErrorKind::Closed { client_id: client_id.to_owned() } }
}

fn is_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// The innermost cause says it best: `invalid peer certificate: UnknownIssuer`.
fn tls_words(error: &rumqttc::TlsError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
