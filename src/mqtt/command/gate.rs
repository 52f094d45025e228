//! What of a message is carried out: size, rate, form, allow-list, ids that came before, expiry, arguments, in this order.

use std::collections::BTreeSet;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::parse::{ARGS_BYTES, parse_args, parse_request};
use super::past::{Entry, Past};
use super::{Answer, Command, ErrorCode, Id, Incoming, Name, Refusal, ReplyTo, Request};
use crate::report::{Boot, Moment};

/// How many requests are answered with more than a refusal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// At once, after a rest.
    pub burst: u32,
    /// In the long run.
    pub per_second: f64,
}

/// What time it is, and whether that can be believed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For the rate.
    pub monotonic: Instant,
    /// For expiry.
    pub wall: jiff::Timestamp,
    /// Of `wall`.
    pub trust: ClockTrust,
}

/// Whether the wall clock follows a source of time. Many boards have no clock that runs without power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockTrust {
    /// It does.
    Synchronised,
    /// It does not, or not yet.
    Unsynchronised,
    /// The system does not say.
    Unknown,
}

/// What is to be done with a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing, and no answer; why, for the log.
    Ignore(&'static str),
    /// This is the answer; nothing is to be done.
    Answer(Answer, ReplyTo),
    /// It is to be carried out, and answered.
    Do(Accepted),
}

/// A request that is to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Its id.
    pub id: Id,
    /// Its command's name.
    pub name: Name,
    /// What is to be done.
    pub command: Command,
    /// Where the answers go.
    pub reply: ReplyTo,
}

/// Decides; holds what it has to remember for that.
#[derive(Debug)]
pub struct Gate {
    allowed: BTreeSet<Name>,
    bucket: Bucket,
    boot: Boot,
    /// What was asked before.
    pub past: Past,
    /// Parts of an archive are awaited: they do not count against the rate.
    pub awaits_chunks: bool,
}

impl Gate {
    /// Full of tokens at `now`.
    pub fn new(allowed: BTreeSet<Name>, limits: Limits, past: Past, boot: Boot, now: Instant) -> Self {
        Self { allowed, bucket: Bucket::new(limits, now), boot, past, awaits_chunks: false }
    }

    /// Decides on a message. What is to be carried out is remembered from now on, parts of archives excepted: these are
    /// told apart by their number.
    pub fn receive(&mut self, incoming: &Incoming, clock: &Clock) -> Verdict {
        if incoming.retained {
            return Verdict::Ignore("it is retained: a command is for now, not for whoever comes later");
        }
        match self.decide(incoming, clock) {
            Ok(Decision::Do(accepted)) => Verdict::Do(*accepted),
            Ok(Decision::Again(stored)) => Verdict::Answer(*stored, incoming.reply.clone()),
            Err((id, refusal)) => {
                let answer = Answer::new(&id, &incoming.name, Err(refusal), self.boot, Moment(clock.wall));
                Verdict::Answer(answer, incoming.reply.clone())
            }
        }
    }

    fn decide(&mut self, incoming: &Incoming, clock: &Clock) -> Result<Decision, (String, Refusal)> {
        let size = incoming.payload.len();
        if size > ARGS_BYTES {
            let message = format!("{size} bytes, where a request has {ARGS_BYTES} at most");
            return Err((String::new(), Refusal::rejected(ErrorCode::TooLarge, message)));
        }
        let request = parse_request(&incoming.payload);
        let name = Name::parse(&incoming.name);
        let is_awaited = self.awaits_chunks && name == Some(Name::ModelsChunk);
        if !is_awaited && !self.bucket.take(clock.monotonic) {
            let id = request.map_or_else(|error| error.id, |request| request.id.into());
            return Err((id, self.bucket.refusal()));
        }
        let request = request.map_err(|error| (error.id, Refusal::rejected(ErrorCode::Malformed, error.message)))?;
        let id = request.id.to_string();
        self.judge(name, request, incoming, clock).map_err(|refusal| (id, refusal))
    }

    fn judge(
        &mut self,
        name: Option<Name>,
        request: Request,
        incoming: &Incoming,
        clock: &Clock,
    ) -> Result<Decision, Refusal> {
        let name = name.ok_or_else(|| {
            let known: Vec<_> = Name::ALL.iter().map(|name| name.as_str()).collect();
            Refusal::rejected(ErrorCode::UnknownCommand, format!("the commands are {}", known.join(", ")))
        })?;
        if !name.is_allowed(&self.allowed) {
            let needed: Vec<_> = name.needs().iter().map(|name| format!("{:?}", name.as_str())).collect();
            let message = format!("mqtt.commands.allow in this device's configuration lacks {}", needed.join(", "));
            return Err(Refusal::rejected(ErrorCode::NotEnabled, message));
        }
        let digest = digest(name, &request);
        if let Some(entry) = self.past.find(request.id.as_str()) {
            return repeated(entry, &digest, self.boot, clock);
        }
        expiry(request.not_after, clock)?;
        let command =
            parse_args(name, &request.args).map_err(|message| Refusal::rejected(ErrorCode::InvalidArgs, message))?;
        let reply = incoming.reply.clone();
        if name != Name::ModelsChunk {
            let (id, reply) = (request.id.clone(), reply.clone());
            self.past.remember(Entry { id, digest, name, reply, answer: None, delivered: false });
        }
        Ok(Decision::Do(Box::new(Accepted { id: request.id, name, command, reply })))
    }
}

enum Decision {
    Do(Box<Accepted>),
    Again(Box<Answer>),
}

fn repeated(entry: &Entry, digest: &str, boot: Boot, clock: &Clock) -> Result<Decision, Refusal> {
    if entry.digest != digest {
        let message = "this id was used for another request: give each request an id of its own";
        return Err(Refusal::rejected(ErrorCode::Malformed, message));
    }
    let begun = || Answer::in_progress(entry.id.as_str(), entry.name.as_str(), None, boot, Moment(clock.wall));
    Ok(Decision::Again(Box::new(entry.answer.clone().unwrap_or_else(begun))))
}

/// What makes two requests the same.
fn digest(name: Name, request: &Request) -> String {
    let args = serde_json::to_vec(&request.args).unwrap_or_default();
    let hash = Sha256::new().chain_update(name.as_str()).chain_update([0]).chain_update(args).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A clock that is not synchronised cannot tell what is late: then nothing is done that must not be late.
fn expiry(not_after: Option<Moment>, clock: &Clock) -> Result<(), Refusal> {
    let Some(not_after) = not_after else { return Ok(()) };
    let now = Moment(clock.wall);
    let message = match clock.trust {
        ClockTrust::Unsynchronised => format!(
            "the clock of this device ({now}) is not synchronised, so it cannot tell whether {not_after} has passed: \
             give it a time server, or leave not_after out"
        ),
        ClockTrust::Synchronised | ClockTrust::Unknown if now > not_after => {
            format!("it was to be done by {not_after}, and it is {now}")
        }
        ClockTrust::Synchronised | ClockTrust::Unknown => return Ok(()),
    };
    Err(Refusal::rejected(ErrorCode::Expired, message))
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    limits: Limits,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, tokens: limits.burst.into(), filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed * self.limits.per_second).min(self.limits.burst.into());
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    fn refusal(&self) -> Refusal {
        let Limits { burst, per_second } = self.limits;
        let message = format!("more than {burst} at once or {per_second} a second: ask more slowly");
        Refusal::rejected(ErrorCode::RateLimited, message)
    }
}
