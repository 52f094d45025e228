//! Any bytes as commands, one after the other: parse, policy, answer; then what was remembered, as bytes and back.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use visaged::mqtt::command::{Answer, Clock, ClockTrust, Gate, Incoming, Limits, Name, Past, ReplyTo, Token, Verdict};
use visaged::report::{Boot, Moment};

fuzz_target!(|data: &[u8]| {
    let boot = Boot(Default::default());
    let (start, wall) = (Instant::now(), jiff::Timestamp::UNIX_EPOCH);
    let limits = Limits { burst: 8, per_second: 1.0 };
    let mut gate = Gate::new(Name::ALL.into(), limits, Past::default(), boot, start);
    // Each message: which command, flags, seconds that pass, then its bytes up to a 0xff, which no JSON holds.
    for (i, message) in data.split(|byte| *byte == 0xff).enumerate() {
        let [which, flags, wait_s, payload @ ..] = message else { continue };
        let name = Name::ALL.get(usize::from(*which)).map_or("other", |name| name.as_str());
        let trust = if flags & 2 == 0 { ClockTrust::Synchronised } else { ClockTrust::Unsynchronised };
        let clock = Clock { monotonic: start + Duration::from_secs((*wait_s).into()), wall, trust };
        gate.awaits_chunks = flags & 4 != 0;
        let retained = flags & 1 != 0;
        let reply = ReplyTo::new(std::str::from_utf8(payload).ok(), Some(payload));
        let token = Token(i as u64);
        let incoming = Incoming { name: name.into(), payload: payload.into(), retained, reply, token };
        match gate.receive(&incoming, &clock) {
            Verdict::Ignore(_) => assert!(retained),
            Verdict::Answer(answer, _) => {
                assert!(!retained && answer.name == name);
                assert!(serde_json::to_vec(&answer).is_ok());
            }
            Verdict::Do(accepted) => {
                assert!(!retained);
                let answer = Answer::new(accepted.id.as_str(), name, Ok(Default::default()), boot, Moment(wall));
                assert_eq!(gate.past.settle(&answer).is_some(), accepted.name != Name::ModelsChunk);
            }
        }
    }
    let bytes = gate.past.to_bytes().expect("plain types");
    assert_eq!(Past::from_bytes(&bytes).expect("our own bytes"), gate.past);
    let _ = Past::from_bytes(data);
});
