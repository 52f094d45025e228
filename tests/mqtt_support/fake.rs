//! A broker that reads MQTT 5 to the letter and answers as a test wants.
//!
//! It reads for itself, not with the library of the client, so that the two cannot agree on a mistake; whatever the client does
//! that MQTT 5 forbids is kept among [`Seen::violations`].

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mqtt_support::{HANGS, topics};

/// What the broker says in CONNACK; `None`: nothing, the protocol's default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) session_present: bool,
    pub(crate) receive_maximum: Option<u16>,
    pub(crate) largest_packet: Option<u32>,
    pub(crate) topic_aliases: Option<u16>,
    pub(crate) keep_alive_s: Option<u16>,
    pub(crate) session_expiry_s: Option<u32>,
}

impl Terms {
    fn connack(&self) -> Vec<u8> {
        let mut properties = Vec::new();
        let mut add = |id: u8, value: &[u8]| {
            properties.push(id);
            properties.extend_from_slice(value);
        };
        self.receive_maximum.iter().for_each(|n| add(0x21, &n.to_be_bytes()));
        self.largest_packet.iter().for_each(|n| add(0x27, &n.to_be_bytes()));
        self.topic_aliases.iter().for_each(|n| add(0x22, &n.to_be_bytes()));
        self.keep_alive_s.iter().for_each(|n| add(0x13, &n.to_be_bytes()));
        self.session_expiry_s.iter().for_each(|n| add(0x11, &n.to_be_bytes()));
        let mut body = vec![self.session_present.into(), 0];
        body.extend(length(properties.len()));
        body.extend(properties);
        packet(0x20, &body)
    }
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sent {
    Connect {
        clean_start: bool,
        topic_aliases: u16,
        session_expiry_s: u32,
    },
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        id: u16,
    },
    PubAck,
    Subscribe {
        id: u16,
        filters: usize,
    },
    Ping,
    Disconnect,
    /// Nothing, for a moment: it waits for something.
    Quiet,
}

/// So long nothing comes where the client waits.
const QUIET: Duration = Duration::from_millis(10);

/// What to do with the connection after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Go,
    /// Read what comes until the client goes; answer nothing.
    Listen,
    Close,
}

/// Answers each packet of one connection.
pub(crate) type Manner = Box<dyn FnMut(&Sent, &mut Wire) -> Then + Send>;

/// The broker's end of a connection.
pub(crate) struct Wire {
    stream: TcpStream,
    terms: Terms,
    publishing: HashSet<u16>,
    subscribing: HashSet<u16>,
}

impl Wire {
    /// Bytes as they are. The client may be gone already.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn acknowledge(&mut self, id: u16) {
        self.publishing.remove(&id);
        self.send(&packet(0x40, &id.to_be_bytes()));
    }

    /// As any good broker does.
    pub(crate) fn answer(&mut self, sent: &Sent) -> Then {
        match sent {
            Sent::Connect { .. } => self.send(&self.terms.connack()),
            Sent::Publish { qos: 1, id, .. } => self.acknowledge(*id),
            Sent::Subscribe { id, filters } => {
                self.subscribing.remove(id);
                let mut body = id.to_be_bytes().to_vec();
                body.push(0);
                body.extend(std::iter::repeat_n(1, *filters));
                self.send(&packet(0x90, &body));
            }
            Sent::Ping => self.send(&[0xd0, 0]),
            Sent::Publish { .. } | Sent::PubAck | Sent::Disconnect | Sent::Quiet => {}
        }
        Then::Go
    }
}

/// What all connections brought.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: usize,
    pub(crate) connects: Vec<Sent>,
    /// `seq` and `historical` of the events, as they came.
    pub(crate) events: Vec<(u64, bool)>,
    /// Messages on the topics `status` and `gap`, as they came.
    pub(crate) statuses: Vec<Value>,
    pub(crate) gaps: Vec<Value>,
    pub(crate) violations: Vec<String>,
}

impl Seen {
    /// Each event at its first coming.
    pub(crate) fn first_seqs(&self) -> Vec<u64> {
        let mut known = HashSet::new();
        self.events.iter().map(|(seq, _)| *seq).filter(|seq| known.insert(*seq)).collect()
    }

    /// The events from 0 to `count` came, in order, and the client kept to the protocol.
    pub(crate) fn assert_all(&self, count: u64) {
        assert!(self.first_seqs().into_iter().eq(0..count), "{:?}", self.first_seqs());
        assert!(self.gaps.is_empty(), "nothing was given up: {:?}", self.gaps);
        assert_eq!(self.violations, [""; 0]);
    }

    /// The same, and each came once, over one connection.
    pub(crate) fn assert_all_once(&self, count: u64) {
        self.assert_all(count);
        assert_eq!((self.events.len() as u64, self.connections), (count, 1));
    }
}

type Shared = Arc<(Mutex<Seen>, Condvar)>;

/// Ends with the process; its connections end with their clients.
pub(crate) struct Broker {
    pub(crate) port: u16,
    shared: Shared,
}

impl Broker {
    /// `manner` is asked for each connection, counted from 0.
    pub(crate) fn start(terms: Terms, manner: impl Fn(usize) -> Manner + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared::default();
        let of_listener = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&of_listener));
                let manner = manner(number);
                lock(&shared).connections += 1;
                std::thread::spawn(move || serve(stream, terms, manner, &shared));
            }
        });
        Self { port, shared }
    }

    /// Does what any good broker does.
    pub(crate) fn good(terms: Terms) -> Self {
        Self::start(terms, |_| good())
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.shared)
    }

    pub(crate) fn wait(&self, what: &str, enough: impl Fn(&Seen) -> bool) -> MutexGuard<'_, Seen> {
        let (start, mut seen) = (Instant::now(), self.seen());
        while !enough(&seen) {
            let Some(left) = HANGS.checked_sub(start.elapsed()) else { panic!("waited in vain for {what}; {seen:?}") };
            seen = self.shared.1.wait_timeout(seen, left).unwrap().0;
        }
        seen
    }
}

pub(crate) fn good() -> Manner {
    Box::new(|sent, wire| wire.answer(sent))
}

fn lock(shared: &Shared) -> MutexGuard<'_, Seen> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, terms: Terms, mut manner: Manner, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let reader = stream.try_clone().unwrap();
    let mut reader = std::io::BufReader::new(reader);
    let mut wire = Wire { stream, terms, publishing: HashSet::new(), subscribing: HashSet::new() };
    let (mut connected, mut then) = (false, Then::Go);
    while then != Then::Close {
        if then == Then::Go && reader.buffer().is_empty() && is_quiet(&wire.stream) {
            then = manner(&Sent::Quiet, &mut wire);
            continue;
        }
        let Some((first, body)) = read_packet(&mut reader) else { break };
        let largest = terms.largest_packet.map_or(usize::MAX, |bytes| bytes as usize);
        let bytes = 1 + length(body.len()).len() + body.len();
        let sent = decode(first, &body);
        let mut guard = lock(shared);
        let seen = &mut *guard;
        let violations = &mut seen.violations;
        let mut violated = |what: String| violations.push(what);
        let Some(sent) = sent else {
            violated(format!("no packet of a client: {first:#x} {body:?}"));
            break;
        };
        if connected == matches!(sent, Sent::Connect { .. }) {
            violated(format!("CONNECT comes first and once: {sent:?}"));
        }
        if connected && bytes > largest {
            violated(format!("{bytes} bytes: {sent:?}"));
        }
        connected = true;
        if matches!(sent, Sent::Connect { .. }) {
            seen.connects.push(sent.clone());
        }
        if let Sent::Publish { qos: 1, id, .. } | Sent::Subscribe { id, .. } = &sent {
            if *id == 0 || wire.publishing.contains(id) || wire.subscribing.contains(id) {
                violated(format!("packet id {id} is in use: {sent:?}"));
            }
            let ids = if matches!(sent, Sent::Publish { .. }) { &mut wire.publishing } else { &mut wire.subscribing };
            ids.insert(*id);
        }
        let most = usize::from(terms.receive_maximum.unwrap_or(u16::MAX));
        if wire.publishing.len() > most {
            violated(format!("{} messages on their way", wire.publishing.len()));
        }
        if let Sent::Publish { topic, payload, .. } = &sent {
            let json = || serde_json::from_slice::<Value>(payload).unwrap();
            if *topic == topics().face() {
                let event = json();
                seen.events.push((event["seq"].as_u64().unwrap(), event["historical"].as_bool().unwrap()));
            } else if *topic == topics().status() {
                seen.statuses.push(json());
            } else if *topic == topics().gap() {
                seen.gaps.push(json());
            }
        }
        drop(guard);
        if then == Then::Go {
            then = manner(&sent, &mut wire);
        }
        shared.1.notify_all();
    }
    let _ = wire.stream.shutdown(Shutdown::Both);
    shared.1.notify_all();
}

/// A connection that has ended is not: reading tells that.
fn is_quiet(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_read_timeout(None).unwrap();
    peeked.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// A packet of any kind with the right length.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(length(body.len()));
    bytes.extend_from_slice(body);
    bytes
}

/// A variable byte integer.
pub(crate) fn length(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value % 128).unwrap();
        value /= 128;
        bytes.push(if value > 0 { low | 0x80 } else { low });
        if value == 0 {
            return bytes;
        }
    }
}

/// A PUBLISH to the client.
pub(crate) fn publish(first: u8, topic: &str, id: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    id.iter().for_each(|id| body.extend(id.to_be_bytes()));
    body.extend(length(properties.len()));
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    packet(first, &body)
}

fn read_packet(reader: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    reader.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let mut bytes = 0;
    for shift in [0, 7, 14, 21] {
        reader.read_exact(&mut byte).ok()?;
        bytes |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            let mut body = vec![0; bytes];
            reader.read_exact(&mut body).ok()?;
            return Some((first, body));
        }
    }
    None
}

/// Bytes that are taken from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let count = self.u16()?;
        self.take(count.into())
    }

    fn length(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// `None` for what no client may send; a topic alias too, as no test allows the client to count on one.
fn decode(first: u8, body: &[u8]) -> Option<Sent> {
    let mut body = Cursor(body);
    Some(match (first >> 4, first & 0x0f) {
        (1, 0) => {
            if (body.text()?, body.u8()?) != (b"MQTT", 5) {
                return None;
            }
            let flags = body.u8()?;
            let _keep_alive = body.u16()?;
            let (mut topic_aliases, mut session_expiry_s) = (0, 0);
            let bytes = body.length()?;
            let mut properties = Cursor(body.take(bytes)?);
            while !properties.0.is_empty() {
                match properties.u8()? {
                    0x11 => session_expiry_s = properties.u32()?,
                    0x21 => _ = properties.u16()?,
                    0x22 => topic_aliases = properties.u16()?,
                    0x27 => _ = properties.u32()?,
                    _ => return None,
                }
            }
            Sent::Connect { clean_start: flags & 2 != 0, topic_aliases, session_expiry_s }
        }
        (3, flags) => {
            let topic = String::from_utf8(body.text()?.to_vec()).ok().filter(|topic| !topic.is_empty())?;
            let qos = flags >> 1 & 3;
            let id = if qos > 0 { body.u16()? } else { 0 };
            let properties = body.length()?;
            if properties > 0 {
                return None;
            }
            Sent::Publish { topic, payload: body.0.to_vec(), qos, id }
        }
        (4, 0) => Sent::PubAck,
        (8, 2) => {
            let id = body.u16()?;
            let properties = body.length()?;
            body.take(properties)?;
            let mut filters = 0;
            while !body.0.is_empty() {
                body.text()?;
                body.u8()?;
                filters += 1;
            }
            Sent::Subscribe { id, filters }
        }
        (12, 0) => Sent::Ping,
        (14, 0) => Sent::Disconnect,
        _ => return None,
    })
}
