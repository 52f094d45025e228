//! One connection: what is sent in which order, and which acknowledgement belongs to what.
//!
//! `rumqttc` tells the packet id of a publish only afterwards, as `Outgoing::Publish(id)`, in the order in which
//! publishes were handed to it; so `handed` is a queue of what was handed over and not yet written, and `unacknowledged`
//! holds what has its id and waits for PUBACK. How much may be on its way is counted here; the library's own count, which
//! would use the few ids again that `receive_maximum` leaves it, subscriptions' included, is put out of the way by [`settle`].
//!
//! `EventLoop::poll` must not be dropped half-way (a packet could be lost on its way into the socket), so it is polled
//! to its end, with everything else selected beside it.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Filter, Packet, PubAck, PubAckReason, Publish, PublishProperties, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event as Polled, EventLoop, MqttState};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{LinkError, LinkErrorKind};
use super::{Core, GOODBYE, Limits, Link, Published, StopOrder, options};
use crate::config::HomeAssistantConfig;
use crate::frame::CaptureTime;
use crate::mqtt::command::{self, Answer, Incoming, Notice, ReplyTo, Token};
use crate::mqtt::discovery;
use crate::mqtt::payload::{GapPayload, Health, Status};
use crate::mqtt::spool::{Item, Record, RecordId};
use crate::report::{Event, EventPayload, Moment, Sending};

/// Requests beside publishes: subscriptions, acknowledgements of what the broker may send, DISCONNECT.
const SPARE_REQUESTS: usize = 16 + options::RECEIVE_MAXIMUM as usize;

/// Bytes of a PUBLISH beside topic and payload, at most: fixed header, length of the topic, packet id, no properties.
const PUBLISH_OVERHEAD_BYTES: usize = 1 + 4 + 2 + 2 + 1;

/// Packet ids that go round, for each message that may be on its way: an acknowledgement that comes late does not stop
/// the others until so many have overtaken it.
const IDS_FOR_EACH: u16 = 8;

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// A stop was ordered and carried out.
    Stopped,
    /// It failed, or was never made.
    Lost {
        /// How long it lasted after CONNACK.
        up: Duration,
    },
}

/// A message to be published.
struct Message {
    topic: String,
    payload: Vec<u8>,
    retained: bool,
    qos: QoS,
    kind: Kind,
    /// Answers only.
    correlation: Option<Vec<u8>>,
}

/// What a message is, for its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From the spool; shown to the tap unless it is sent again.
    Record {
        id: RecordId,
        is_event: bool,
        again: bool,
    },
    /// To a request, on its own topic.
    Answer {
        key: u64,
    },
    Goodbye,
    Other,
}

/// A publish on its way.
struct Sent {
    kind: Kind,
    qos: QoS,
    at: Instant,
}

/// What the connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Up,
    /// Stopping: sending what waits, until then.
    Draining(Instant),
    /// Stopping: `offline` is on its way, until then.
    Goodbye(Instant),
    /// Stopping: DISCONNECT is on its way, until then.
    Disconnecting(Instant),
    Lost,
}

/// What to do after something happened.
enum Step {
    Go,
    Stopped,
    Failed(LinkErrorKind),
}

/// What is due at a time.
#[derive(Clone, Copy)]
enum Timer {
    NoConnAck,
    NoPubAck,
    NoSignOfLife,
    Telemetry,
    Rediscover,
    Phase,
}

/// Makes one connection and keeps it until it is lost or a stop is ordered.
pub(super) async fn connect(core: &mut Core) -> End {
    let mut options = core.options.clone();
    options.set_last_will(options::last_will(core.topics.status(), json(&Status::last_will(core.boot))));
    let (client, mut eventloop) = AsyncClient::new(options, usize::from(core.limits.window) + SPARE_REQUESTS);
    let mut session = Session::new(core, client);
    let mut settled = false;
    loop {
        match session.turn(&mut eventloop).await {
            Step::Go if !settled && session.up_since.is_some() => {
                settle(&mut eventloop, &session.core.limits, session.keep_alive);
                settled = true;
            }
            Step::Go => {}
            Step::Stopped => return End::Stopped,
            Step::Failed(_) if session.stopping() => return End::Stopped,
            Step::Failed(kind) => {
                session.hear_the_rest(&mut eventloop);
                return session.lost(kind);
            }
        }
    }
}

/// After CONNACK, and before anything else was sent. The library would take its packet ids from as many as the broker
/// takes messages at a time: where that is one, every SUBSCRIBE and PUBLISH would have the same, while MQTT 5 (2.2.1) wants
/// each to be unused. And it would ping without a pause where the broker wants no keep-alive.
fn settle(eventloop: &mut EventLoop, limits: &Limits, keep_alive: Duration) {
    let ids = limits.window.max(1).saturating_mul(IDS_FOR_EACH);
    let fresh = MqttState::new(ids, true);
    let former = std::mem::replace(&mut eventloop.state, fresh);
    eventloop.state.events = former.events;
    if eventloop.options.keep_alive().is_zero() {
        eventloop.options.set_keep_alive(keep_alive);
    }
}

struct Session<'a> {
    core: &'a mut Core,
    client: AsyncClient,
    phase: Phase,
    started: Instant,
    up_since: Option<Instant>,
    last_sign_of_life: Instant,
    keep_alive: Duration,
    window: usize,
    largest_packet: Option<usize>,
    /// Status, info, discovery, telemetry, the newest of each topic; they go before events.
    control: VecDeque<Message>,
    /// Copies of answers for those who named a topic of their own.
    copies: VecDeque<Message>,
    /// Requests that are not acknowledged yet.
    unanswered: HashMap<Token, Publish>,
    handed: VecDeque<Sent>,
    unacknowledged: Vec<(u16, Sent)>,
    next_telemetry: Instant,
    rediscover_at: Option<Instant>,
    stop: watch::Receiver<Option<StopOrder>>,
    status: watch::Receiver<Status>,
    info: watch::Receiver<()>,
    home_assistant: watch::Receiver<Option<HomeAssistantConfig>>,
    /// Discovery as last published on this connection.
    discovered: Option<HomeAssistantConfig>,
    /// ... it said that analysis waits for consent.
    consent_discovered: bool,
}

impl<'a> Session<'a> {
    fn new(core: &'a mut Core, client: AsyncClient) -> Self {
        let now = Instant::now();
        let shared = &core.shared;
        Self {
            client,
            phase: Phase::Connecting,
            started: now,
            up_since: None,
            last_sign_of_life: now,
            keep_alive: core.options.keep_alive(),
            window: usize::from(core.limits.window.max(1)),
            largest_packet: None,
            control: VecDeque::new(),
            copies: VecDeque::new(),
            unanswered: HashMap::new(),
            handed: VecDeque::new(),
            unacknowledged: Vec::new(),
            next_telemetry: now,
            rediscover_at: None,
            stop: core.stop.clone(),
            status: shared.status.subscribe(),
            info: shared.info.subscribe(),
            home_assistant: shared.home_assistant.subscribe(),
            discovered: None,
            consent_discovered: false,
            core,
        }
    }

    /// Polls the protocol once, to its end, and does meanwhile whatever else is due.
    async fn turn(&mut self, eventloop: &mut EventLoop) -> Step {
        let shared = Arc::clone(&self.core.shared);
        let mut poll = pin!(eventloop.poll());
        loop {
            let (due, timer) = self.next_timer();
            let running = matches!(self.phase, Phase::Connecting | Phase::Up);
            let up = self.phase == Phase::Up;
            let step = tokio::select! {
                polled = &mut poll => return self.on_polled(polled),
                order = stop_order(&mut self.stop), if running => self.on_stop(order),
                () = shared.spool.news().notified() => Step::Go,
                () = shared.answers.news().notified() => Step::Go,
                Ok(()) = self.status.changed(), if up => { self.queue_status(); Step::Go }
                Ok(()) = self.info.changed(), if up => { self.queue_info(); Step::Go }
                Ok(()) = self.home_assistant.changed(), if up => { self.change_discovery(); Step::Go }
                () = tokio::time::sleep_until(due) => self.on_timer(timer),
            };
            let step = match step {
                Step::Go => self.fill(),
                other => other,
            };
            if !matches!(step, Step::Go) {
                return step;
            }
        }
    }

    fn next_timer(&self) -> (Instant, Timer) {
        let limits = &self.core.limits;
        let oldest = self.unacknowledged.iter().map(|(_, sent)| sent).chain(&self.handed).map(|sent| sent.at).min();
        let alive = (self.last_sign_of_life + 2 * self.keep_alive + limits.connect, Timer::NoSignOfLife);
        match self.phase {
            Phase::Connecting => (self.started + limits.connect, Timer::NoConnAck),
            Phase::Draining(until) | Phase::Goodbye(until) | Phase::Disconnecting(until) => (until, Timer::Phase),
            Phase::Up | Phase::Lost => [
                Some(alive),
                oldest.map(|at| (at + limits.acknowledge, Timer::NoPubAck)),
                Some((self.next_telemetry, Timer::Telemetry)),
                self.rediscover_at.map(|at| (at, Timer::Rediscover)),
            ]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
            .unwrap_or(alive),
        }
    }

    fn on_timer(&mut self, timer: Timer) -> Step {
        match timer {
            Timer::NoConnAck => return Step::Failed(LinkErrorKind::NoAnswer(self.core.limits.connect)),
            Timer::NoPubAck => return Step::Failed(LinkErrorKind::Silent("a message was not acknowledged in time")),
            Timer::NoSignOfLife => return Step::Failed(LinkErrorKind::Silent("no sign of life")),
            Timer::Telemetry => self.queue_telemetry(),
            Timer::Rediscover => {
                self.rediscover_at = None;
                self.queue_birth();
            }
            Timer::Phase => match self.phase {
                Phase::Draining(_) => self.say_goodbye(),
                Phase::Goodbye(_) => return self.disconnect(),
                _ => return Step::Stopped,
            },
        }
        Step::Go
    }

    fn on_stop(&mut self, order: StopOrder) -> Step {
        match (order, self.phase) {
            (StopOrder::Drain(until), Phase::Up) => {
                self.phase = Phase::Draining(until);
                Step::Go
            }
            _ => Step::Stopped,
        }
    }

    fn on_polled(&mut self, polled: Result<Polled, ConnectionError>) -> Step {
        match polled {
            Ok(event) => {
                self.last_sign_of_life = Instant::now();
                match self.on_event(event) {
                    Step::Go => self.fill(),
                    other => other,
                }
            }
            Err(error) => {
                let client_id = self.core.topics.client_id();
                let limit = self.core.limits.connect;
                Step::Failed(LinkErrorKind::from_poll(error, self.up_since.is_none(), limit, &client_id))
            }
        }
    }

    fn on_event(&mut self, event: Polled) -> Step {
        match event {
            Polled::Incoming(Packet::ConnAck(connack)) => return self.on_connected(&connack),
            Polled::Incoming(Packet::PubAck(puback)) => return self.on_acknowledged(&puback),
            Polled::Incoming(Packet::Publish(publish)) => self.on_message(&publish),
            Polled::Incoming(Packet::SubAck(suback)) => on_subscribed(&suback),
            Polled::Outgoing(Outgoing::Publish(packet_id)) => self.on_written(packet_id),
            Polled::Outgoing(Outgoing::Disconnect) if matches!(self.phase, Phase::Disconnecting(_)) => {
                return Step::Stopped;
            }
            // So the library tells of a topic alias that was never given.
            Polled::Outgoing(Outgoing::Disconnect) => {
                return Step::Failed(LinkErrorKind::Protocol("a topic alias, of which we take none".into()));
            }
            _ => {}
        }
        Step::Go
    }

    fn on_connected(&mut self, connack: &ConnAck) -> Step {
        if self.phase != Phase::Connecting {
            return Step::Failed(LinkErrorKind::Protocol("a second CONNACK".into()));
        }
        if let Some(properties) = &connack.properties {
            if properties.max_qos == Some(0) {
                return Step::Failed(LinkErrorKind::Unfit("it takes QoS 0 only; events need QoS 1"));
            }
            if properties.retain_available == Some(0) {
                return Step::Failed(LinkErrorKind::Unfit("it keeps no retained messages; status and info need them"));
            }
            if let Some(maximum) = properties.receive_max {
                self.window = self.window.min(usize::from(maximum.max(1)));
            }
            // None at all would leave a half-open connection unnoticed: then ours stands.
            if let Some(seconds @ 1..) = properties.server_keep_alive {
                self.keep_alive = Duration::from_secs(seconds.into());
            }
            self.largest_packet = properties.max_packet_size.map(|size| size as usize);
        }
        let now = Instant::now();
        self.phase = Phase::Up;
        self.up_since = Some(now);
        self.next_telemetry = now;
        self.core.shared.spool.rewind();
        self.core.shared.answers.rewind();
        let connection = self.core.shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.core.last_error = None;
        tracing::info!(broker = %self.core.broker(), connection, "connected to the MQTT broker");
        self.core.shared.link.send_replace(Link::Up { connection });
        let own_status = self.core.topics.status();
        self.subscribe(own_status);
        if self.core.commands.is_some() {
            // Whether a message is retained is told even where it is published while we listen.
            let filter = Filter { preserve_retain: true, ..Filter::new(self.core.topics.commands(), QoS::AtLeastOnce) };
            if let Err(error) = self.client.try_subscribe_many([filter]) {
                tracing::warn!(%error, "could not subscribe to commands");
            }
        }
        self.discovered = self.home_assistant.borrow_and_update().clone();
        match self.discovered.clone() {
            Some(home_assistant) => self.subscribe(discovery::status_topic(&home_assistant.prefix)),
            // Left over from a run with discovery on; see on_message.
            None => self.subscribe(discovery::config_topic(discovery::DEFAULT_PREFIX, &self.core.topics)),
        }
        self.queue_birth();
        Step::Go
    }

    fn on_acknowledged(&mut self, puback: &PubAck) -> Step {
        let Some(index) = self.unacknowledged.iter().position(|(id, _)| *id == puback.pkid) else { return Step::Go };
        let (_, sent) = self.unacknowledged.remove(index);
        match (sent.kind, &puback.reason) {
            (Kind::Goodbye, _) => return self.disconnect(),
            (Kind::Record { id, .. }, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {
                self.core.shared.spool.acknowledge(id);
            }
            (
                Kind::Record { .. },
                reason @ (PubAckReason::UnspecifiedError
                | PubAckReason::ImplementationSpecificError
                | PubAckReason::PacketIdentifierInUse
                | PubAckReason::QuotaExceeded),
            ) => return Step::Failed(LinkErrorKind::Busy(format!("{reason:?}"))),
            (Kind::Record { id, is_event, .. }, reason) => {
                self.refuse(id, is_event, &format!("the broker refused it: {reason:?}"));
            }
            (Kind::Answer { key }, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {
                if let Some(waiting) = self.core.shared.answers.remove(key) {
                    self.core.delivered(&waiting.answer);
                }
            }
            (Kind::Answer { key }, reason) => {
                self.core.shared.answers.remove(key);
                tracing::warn!(?reason, "the broker refused an answer; may this user publish below rsp/?");
            }
            (Kind::Other, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {}
            (Kind::Other, reason) => {
                tracing::warn!(
                    ?reason,
                    "the broker refused a status, info or discovery message; may this user publish there?"
                );
            }
        }
        Step::Go
    }

    /// A record that will never arrive, however often it is sent; in an event's place its loss is told.
    fn refuse(&mut self, id: RecordId, is_event: bool, reason: &str) {
        if is_event {
            let refused = self.core.shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
            if refused.is_power_of_two() {
                tracing::error!(refused, "an event is given up: {reason}");
            }
        } else {
            tracing::error!("that events are lost cannot be told: {reason}");
        }
        self.core.shared.spool.give_up(id);
    }

    fn on_written(&mut self, packet_id: u16) {
        let Some(sent) = self.handed.pop_front() else { return };
        if sent.qos != QoS::AtMostOnce {
            self.unacknowledged.push((packet_id, sent));
        }
    }

    /// Messages to us. What was kept by the broker is older than this connection; what matters of it was published anew.
    fn on_message(&mut self, message: &Publish) {
        let name = std::str::from_utf8(&message.topic).ok().and_then(|topic| self.core.topics.command(topic));
        if let Some(name) = name.map(str::to_owned) {
            self.on_request(name, message);
            return;
        }
        self.acknowledge(message);
        if self.phase != Phase::Up {
            return;
        }
        let topics = &self.core.topics;
        if message.topic == topics.status().as_bytes() {
            let offline = |status: Status| status.status == Health::Offline;
            // The last will of an earlier connection, published after this one was made.
            if !message.retain && serde_json::from_slice(&message.payload).is_ok_and(offline) {
                self.queue_status();
            }
            return;
        }
        match &self.discovered {
            Some(home_assistant) => {
                let topic = discovery::status_topic(&home_assistant.prefix);
                if !message.retain && message.topic == topic.as_bytes() && *message.payload == *b"online" {
                    let jitter = self.core.limits.discovery_jitter.mul_f64(self.core.rng.random());
                    self.rediscover_at = Some(Instant::now() + jitter);
                }
            }
            None => {
                let topic = discovery::config_topic(discovery::DEFAULT_PREFIX, topics);
                if message.topic == topic.as_bytes() && !message.payload.is_empty() {
                    self.queue(topic, Vec::new(), true);
                }
            }
        }
    }

    /// Passes a request on; it is acknowledged when its first answer is handed over. One that comes while we are leaving
    /// is not acknowledged at all: nobody will answer it.
    fn on_request(&mut self, name: String, message: &Publish) {
        if self.phase != Phase::Up {
            return;
        }
        let token = Token(self.core.next_token);
        self.core.next_token += 1;
        let properties = message.properties.as_ref();
        let reply = ReplyTo::new(
            properties.and_then(|p| p.response_topic.as_deref()),
            properties.and_then(|p| p.correlation_data.as_deref()),
        );
        let incoming = Incoming { name, payload: message.payload.to_vec(), retained: message.retain, reply, token };
        self.unanswered.insert(token, Publish { payload: Default::default(), properties: None, ..message.clone() });
        // A broker may send more than we said that we take: Mosquitto 2.0.11 does.
        if let Err(incoming) = self.core.request(incoming) {
            let answer = command::no_room(&incoming, self.core.boot, Moment(jiff::Timestamp::now()));
            self.core.shared.answers.push(answer, incoming.reply, Some(token));
        }
    }

    fn acknowledge(&self, message: &Publish) {
        if let Err(error) = self.client.try_ack(message) {
            tracing::debug!(%error, "could not acknowledge");
        }
    }

    fn acknowledge_token(&mut self, token: Token) {
        if let Some(message) = self.unanswered.remove(&token) {
            self.acknowledge(&message);
        }
    }

    /// Hands over as much as the window allows.
    fn fill(&mut self) -> Step {
        if matches!(self.phase, Phase::Connecting | Phase::Disconnecting(_) | Phase::Lost) {
            return Step::Go;
        }
        for token in self.core.shared.answers.take_released() {
            self.acknowledge_token(token);
        }
        while self.handed.len() + self.unacknowledged.len() < self.window {
            let message = self.control.pop_front();
            let message = message.or_else(|| self.next_answer()).or_else(|| self.next_record());
            let Some(message) = message else { break };
            if let Err(step) = self.hand_over(message) {
                return step;
            }
        }
        let sent = self.control.is_empty()
            && self.handed.is_empty()
            && self.unacknowledged.is_empty()
            && self.core.shared.answers.is_empty();
        if matches!(self.phase, Phase::Draining(_)) && sent && !self.core.shared.spool.is_fetching() {
            self.say_goodbye();
            return self.fill();
        }
        Step::Go
    }

    fn next_answer(&mut self) -> Option<Message> {
        if let Some(copy) = self.copies.pop_front() {
            return Some(copy);
        }
        if !matches!(self.phase, Phase::Up | Phase::Draining(_)) {
            return None;
        }
        loop {
            let waiting = self.core.shared.answers.next()?;
            if let Some(token) = waiting.token {
                self.acknowledge_token(token);
            }
            let message = |topic, kind, payload| Message {
                topic,
                payload,
                retained: false,
                qos: QoS::AtLeastOnce,
                kind,
                correlation: waiting.reply.correlation.clone(),
            };
            // What the broker does not take is answered too: by that it does not.
            for answer in [&waiting.answer, &waiting.answer.too_large()] {
                let (topic, payload) = (self.core.topics.answer(&answer.name), json(answer));
                let own = message(topic, Kind::Answer { key: waiting.key }, payload.clone());
                if self.fits(&own) {
                    self.copies.extend(waiting.reply.topic.clone().map(|topic| message(topic, Kind::Other, payload)));
                    return Some(own);
                }
                tracing::error!(topic = own.topic, "an answer is larger than the broker takes; it is not published");
            }
            self.core.shared.answers.remove(waiting.key);
        }
    }

    fn next_record(&mut self) -> Option<Message> {
        if !matches!(self.phase, Phase::Up | Phase::Draining(_)) {
            return None;
        }
        loop {
            let record = self.core.shared.spool.next()?;
            let message = self.message(&record);
            if self.fits(&message) {
                return Some(message);
            }
            let is_event = matches!(record.item, Item::Event(_));
            self.refuse(record.id, is_event, "it is larger than the broker takes");
        }
    }

    fn message(&self, record: &Record) -> Message {
        let topics = &self.core.topics;
        let (topic, payload, is_event) = match &record.item {
            Item::Event(event) => {
                let now = CaptureTime::now();
                let sending = Sending { now, historical: self.is_historical(event, record.waited, now) };
                let payload = event.payload(topics.device(), sending);
                let topic = match payload {
                    EventPayload::Face(_) => topics.face(),
                    EventPayload::Summary(_) => topics.summary(),
                };
                (topic, json(&payload), true)
            }
            Item::Gap(gap) => (topics.gap(), json(&GapPayload::new(topics.device(), gap)), false),
        };
        let kind = Kind::Record { id: record.id, is_event, again: record.again };
        Message { topic, payload, retained: false, qos: QoS::AtLeastOnce, kind, correlation: None }
    }

    /// Whether an event comes late because there was no connection, or another run of the process made it.
    fn is_historical(&self, event: &Event, waited: bool, now: CaptureTime) -> bool {
        event.boot != self.core.boot || waited && event.age(now) >= self.core.limits.historical_after
    }

    fn hand_over(&mut self, message: Message) -> Result<(), Step> {
        let Message { topic, payload, retained, qos, kind, correlation } = message;
        if let Some(tap) = self.core.tap.as_ref().filter(|_| !matches!(kind, Kind::Record { again: true, .. })) {
            tap(&Published { topic: &topic, payload: &payload, retained, qos: qos as u8 });
        }
        let handed = match correlation {
            None => self.client.try_publish(topic, qos, retained, payload),
            Some(data) => {
                let properties = PublishProperties { correlation_data: Some(data.into()), ..Default::default() };
                self.client.try_publish_with_properties(topic, qos, retained, payload, properties)
            }
        };
        handed.map_err(|error| Step::Failed(LinkErrorKind::Protocol(error.to_string())))?;
        self.handed.push_back(Sent { kind, qos, at: Instant::now() });
        Ok(())
    }

    fn subscribe(&self, filter: String) {
        // The queue is empty after CONNACK, and roomy later; a failure would show as missing messages only.
        if let Err(error) = self.client.try_subscribe(filter, QoS::AtLeastOnce) {
            tracing::warn!(%error, "could not subscribe");
        }
    }

    /// All that consumers need to know us by: on each connection, and when Home Assistant starts.
    fn queue_birth(&mut self) {
        self.status.mark_unchanged();
        self.info.mark_unchanged();
        self.queue_status();
        self.queue_info();
        self.queue_discovery();
        self.next_telemetry = Instant::now();
    }

    fn queue_status(&mut self) {
        let status = self.status.borrow_and_update().clone();
        if status.consent.is_some() != self.consent_discovered {
            self.queue_discovery();
        }
        let payload = json(&status);
        self.queue(self.core.topics.status(), payload, true);
    }

    fn queue_info(&mut self) {
        let payload = json(&(self.core.sources.info)());
        self.queue(self.core.topics.info(), payload, true);
    }

    fn queue_discovery(&mut self) {
        if let Some(home_assistant) = &self.discovered {
            let topic = discovery::config_topic(&home_assistant.prefix, &self.core.topics);
            self.consent_discovered = self.core.shared.status.borrow().consent.is_some();
            let info = (self.core.sources.info)();
            let versions = home_assistant.versions_topic.as_deref();
            let payload = json(&discovery::config(&self.core.topics, &info, self.consent_discovered, versions));
            self.queue(topic, payload, true);
        }
    }

    fn change_discovery(&mut self) {
        let wanted = self.home_assistant.borrow_and_update().clone();
        if wanted == self.discovered {
            return;
        }
        let moved = |old: &mut HomeAssistantConfig| wanted.as_ref().is_none_or(|new| new.prefix != old.prefix);
        if let Some(old) = self.discovered.take_if(moved) {
            self.queue(discovery::config_topic(&old.prefix, &self.core.topics), Vec::new(), true);
        }
        if let Some(new) = &wanted {
            self.subscribe(discovery::status_topic(&new.prefix));
        }
        self.discovered = wanted;
        self.queue_discovery();
    }

    fn queue_telemetry(&mut self) {
        self.next_telemetry = Instant::now() + self.core.config.telemetry_every;
        let mut telemetry = (self.core.sources.telemetry)();
        telemetry.outbox = self.core.shared.outbox();
        let (topic, payload) = (self.core.topics.telemetry(), json(&telemetry));
        self.queue_message(Message {
            topic,
            payload,
            retained: false,
            qos: QoS::AtMostOnce,
            kind: Kind::Other,
            correlation: None,
        });
    }

    fn queue(&mut self, topic: String, payload: Vec<u8>, retained: bool) {
        self.queue_message(Message {
            topic,
            payload,
            retained,
            qos: QoS::AtLeastOnce,
            kind: Kind::Other,
            correlation: None,
        });
    }

    /// Of each topic only the newest message waits.
    fn queue_message(&mut self, message: Message) {
        if !self.fits(&message) {
            tracing::error!(topic = message.topic, "a message is larger than the broker takes; it is not published");
            return;
        }
        self.control.retain(|queued| queued.topic != message.topic);
        self.control.push_back(message);
    }

    fn fits(&self, message: &Message) -> bool {
        // Length and identifier of correlation data, and a longer length of the properties.
        let correlation = message.correlation.as_ref().map_or(0, |data| data.len() + 6);
        let bytes = PUBLISH_OVERHEAD_BYTES + message.topic.len() + message.payload.len() + correlation;
        self.largest_packet.is_none_or(|largest| bytes <= largest)
    }

    fn say_goodbye(&mut self) {
        let status = Status::stopped(self.core.boot, Moment(jiff::Timestamp::now()));
        let (topic, payload) = (self.core.topics.status(), json(&status));
        self.control.clear();
        self.queue_message(Message {
            topic,
            payload,
            retained: true,
            qos: QoS::AtLeastOnce,
            kind: Kind::Goodbye,
            correlation: None,
        });
        self.phase = Phase::Goodbye(Instant::now() + GOODBYE * 3 / 4);
    }

    fn disconnect(&mut self) -> Step {
        self.phase = Phase::Disconnecting(Instant::now() + GOODBYE / 4);
        match self.client.try_disconnect() {
            Ok(()) => Step::Go,
            Err(_) => Step::Stopped,
        }
    }

    fn stopping(&self) -> bool {
        matches!(self.phase, Phase::Draining(_) | Phase::Goodbye(_) | Phase::Disconnecting(_))
    }

    /// Acknowledgements that came in together with the end of the connection spare their events being sent again.
    fn hear_the_rest(&mut self, eventloop: &mut EventLoop) {
        self.phase = Phase::Lost;
        while let Some(event) = eventloop.state.events.pop_front() {
            if matches!(event, Polled::Incoming(Packet::PubAck(_)) | Polled::Outgoing(Outgoing::Publish(_))) {
                self.on_event(event);
            }
        }
    }

    fn lost(&mut self, kind: LinkErrorKind) -> End {
        let error = LinkError { broker: self.core.broker(), kind };
        let text = error.to_string();
        if self.core.last_error.as_ref() == Some(&text) {
            tracing::debug!("{text}");
        } else {
            tracing::warn!("{text}; trying again until it is there");
            self.core.last_error = Some(text);
        }
        self.core.shared.link.send_replace(Link::Down { error: Some(Arc::new(error)) });
        End::Lost { up: self.up_since.map_or(Duration::ZERO, |since| since.elapsed()) }
    }
}

impl Core {
    fn request(&self, incoming: Incoming) -> Result<(), Incoming> {
        let refused = match &self.commands {
            Some(commands) => commands(Notice::Request(incoming)),
            None => Err(Notice::Request(incoming)),
        };
        match refused {
            Err(Notice::Request(incoming)) => Err(incoming),
            _ => Ok(()),
        }
    }

    /// Lost where there is no room: then the answer may be sent once more after a restart.
    fn delivered(&self, answer: &Answer) {
        if let Some(commands) = self.commands.as_ref().filter(|_| answer.is_final()) {
            let _ = commands(Notice::Delivered(Box::new(answer.clone())));
        }
    }

    fn broker(&self) -> String {
        format!("{}:{}", self.config.host, self.config.port)
    }
}

fn on_subscribed(suback: &SubAck) {
    for code in &suback.return_codes {
        if !matches!(code, SubscribeReasonCode::Success(_)) {
            tracing::debug!(?code, "the broker refused a subscription");
        }
    }
}

/// Waits for a stop order; a client that is gone without one wants the connection cut.
async fn stop_order(stop: &mut watch::Receiver<Option<StopOrder>>) -> StopOrder {
    match stop.wait_for(Option::is_some).await {
        Ok(order) => order.unwrap_or(StopOrder::Cut),
        Err(_) => StopOrder::Cut,
    }
}

/// Our payloads are plain structures with string keys, of which `serde_json` can write every one.
fn json<T: Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).unwrap_or_else(|error| {
        tracing::error!(%error, "a payload could not be written");
        Vec::new()
    })
}
