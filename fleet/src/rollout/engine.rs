//! The state machine of one roll-out. Pure: time and what devices answered come in, what changes comes out.
//!
//! It knows how many devices of each wave are how far, not the devices: a step costs as much as it changes, however large the fleet is.
//! Invariants: nothing is sent to a wave before every device of the waves before it has its outcome and none of these waves failed; a device's
//! outcome never changes; nothing is sent unless the roll-out is running; whatever devices do, time alone brings it to its end.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Micros;

/// How large a wave is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many devices.
    Count(u32),
    /// So many in a hundred of all the roll-out's devices, rounded up.
    Percent(u8),
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no size of a wave: want a number of devices, such as 5, or a share of all, such as 10%"
            )
        };
        match text.strip_suffix('%') {
            Some(number) => match number.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(bad()),
            },
            None => match text.parse() {
                Ok(count @ 1..) => Ok(Self::Count(count)),
                _ => Err(bad()),
            },
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a roll-out goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Sizes of the waves, such as `["1", "10%"]`; what is left after them is the last wave.
    #[schema(value_type = Vec<String>, max_items = 100)]
    pub waves: Vec<Size>,
    /// A wave fails when more than so many in a hundred of its devices fail, reject or time out. 0: one is enough.
    #[serde(default)]
    #[schema(maximum = 100)]
    pub abort_threshold_percent: u8,
    /// A device that has not come to an end so long after its wave reached it has timed out; being away counts.
    #[schema(minimum = 1, maximum = 7776000)]
    pub timeout_s: u32,
    /// At most so many devices at a time.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub max_in_progress: Option<u32>,
    /// For devices without a time server: commands carry no moment until which they are valid, as such a device would
    /// reject what it cannot compare with its clock. One that a broker holds back is then carried out however late.
    #[serde(default)]
    pub without_expiry: bool,
}

impl Plan {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.into())
    }
}

/// How a roll-out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Goes on by itself.
    Running,
    /// Begins nothing new until it is resumed; devices in progress go on.
    Paused,
    /// Every wave went through.
    Completed,
    /// A wave failed: no further device is touched.
    Aborted,
    /// An operator ended it: no further device is touched.
    Canceled,
}

impl State {
    /// As in the store.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Canceled => "canceled",
        }
    }

    /// From the store.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Running, Self::Paused, Self::Completed, Self::Aborted, Self::Canceled]
            .into_iter()
            .find(|s| s.word() == word)
    }

    /// Begins nothing any more.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Paused)
    }
}

/// How far one device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// Its turn has not come.
    Queued,
    /// Its command is on its way, or being carried out.
    InProgress,
    /// Done.
    Succeeded,
    /// Tried; the former state stands again.
    Failed,
    /// The device did nothing.
    Rejected,
    /// No end in time.
    TimedOut,
    /// The roll-out ended before its turn.
    Canceled,
}

impl Execution {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::InProgress, Self::Succeeded, Self::Failed, Self::Rejected, Self::TimedOut, Self::Canceled];

    /// As in the store.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
            Self::Canceled => "canceled",
        }
    }

    /// From the store.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|execution| execution.word() == word)
    }

    /// An outcome: does not change any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::InProgress)
    }

    /// Counts against the abort threshold.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Rejected | Self::TimedOut)
    }
}

/// What became of a device's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A final one.
    pub execution: Execution,
    /// For people.
    pub detail: Option<String>,
}

/// A device in progress that may have come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its number in the store.
    pub device: i64,
    /// Its wave, from 0.
    pub wave: usize,
    /// When its command was written.
    pub begun: Option<Micros>,
    /// What became of its command, where that is known.
    pub outcome: Option<Outcome>,
}

/// A device that has come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number in the store.
    pub device: i64,
    /// Its wave, from 0.
    pub wave: usize,
    /// When its command was written.
    pub begun: Option<Micros>,
    /// How.
    pub outcome: Outcome,
}

/// What a step changes, beside the roll-out itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Devices that came to their end.
    pub ended: Vec<Ended>,
    /// A wave, and how many of its queued devices begin.
    pub begin: Option<(usize, usize)>,
}

/// How many devices of one wave are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([usize; Execution::ALL.len()]);

impl Counts {
    /// So many are so far.
    pub fn of(&self, execution: Execution) -> usize {
        self.0[execution as usize]
    }

    /// Sets how many are so far.
    pub fn set(&mut self, execution: Execution, devices: usize) {
        self.0[execution as usize] = devices;
    }

    fn total(&self, which: impl Fn(Execution) -> bool) -> usize {
        Execution::ALL.into_iter().filter(|execution| which(*execution)).map(|execution| self.of(execution)).sum()
    }

    fn shift(&mut self, from: Execution, to: Execution, devices: usize) {
        self.0[from as usize] = self.of(from).saturating_sub(devices);
        self.0[to as usize] += devices;
    }
}

/// One roll-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// How it goes.
    pub plan: Plan,
    /// How it is.
    pub state: State,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// The wave that it is at, from 0.
    pub wave: usize,
    /// By wave.
    pub waves: Vec<Counts>,
}

impl Rollout {
    /// Ready to run over so many devices; [`waves_of`] says which wave each is in.
    pub fn new(plan: Plan, devices: usize) -> Self {
        let mut waves = Vec::<Counts>::new();
        for wave in waves_of(&plan.waves, devices) {
            waves.resize(waves.len().max(wave + 1), Counts::default());
            waves[wave].0[Execution::Queued as usize] += 1;
        }
        Self { plan, state: State::Running, reason: None, wave: 0, waves }
    }

    /// One step at `now`. `due` holds every device in progress that has an outcome, or was begun so long ago that it has timed out.
    pub fn step(&mut self, due: Vec<Due>, now: Micros) -> Changes {
        let ended = self.take_over(due, now);
        if !self.state.is_over() {
            self.abort_if_the_wave_failed();
        }
        if self.state == State::Running {
            self.go_on_to_the_next_wave();
        }
        Changes { ended, begin: self.begin() }
    }

    /// Begins nothing new until [`resume`](Self::resume). `false` where it does not run.
    pub fn pause(&mut self) -> bool {
        let runs = self.state == State::Running;
        if runs {
            self.state = State::Paused;
        }
        runs
    }

    /// Goes on. `false` where it is not paused.
    pub fn resume(&mut self) -> bool {
        let paused = self.state == State::Paused;
        if paused {
            self.state = State::Running;
        }
        paused
    }

    /// Ends it; what is queued is canceled, devices in progress come to their own end. `false` where it is over.
    pub fn cancel(&mut self, reason: String) -> bool {
        let goes = !self.state.is_over();
        if goes {
            self.end(State::Canceled, reason);
        }
        goes
    }

    /// Over, and every device has its outcome.
    pub fn is_settled(&self) -> bool {
        self.state.is_over() && self.total(|execution| !execution.is_final()) == 0
    }

    /// Before it, a device in progress was begun too long ago.
    pub fn timed_out_before(&self, now: Micros) -> Micros {
        now.minus(self.plan.timeout())
    }

    /// Devices of all waves that are as `which` says.
    pub fn total(&self, which: impl Fn(Execution) -> bool) -> usize {
        self.waves.iter().map(|counts| counts.total(&which)).sum()
    }

    fn take_over(&mut self, due: Vec<Due>, now: Micros) -> Vec<Ended> {
        let mut all = Vec::with_capacity(due.len());
        for device in due {
            let Some(outcome) = self.outcome(&device, now) else { continue };
            let Some(counts) = self.waves.get_mut(device.wave) else { continue };
            counts.shift(Execution::InProgress, outcome.execution, 1);
            all.push(Ended { device: device.device, wave: device.wave, begun: device.begun, outcome });
        }
        all
    }

    fn outcome(&self, device: &Due, now: Micros) -> Option<Outcome> {
        if let Some(known) = device.outcome.as_ref().filter(|outcome| outcome.execution.is_final()) {
            return Some(known.clone());
        }
        let late = device.begun.is_none_or(|begun| begun <= self.timed_out_before(now));
        let detail = || Some(format!("no end within {} s", self.plan.timeout_s));
        late.then(|| Outcome { execution: Execution::TimedOut, detail: detail() })
    }

    fn abort_if_the_wave_failed(&mut self) {
        let Some(counts) = self.waves.get(self.wave) else { return };
        let (size, failed) = (counts.total(|_| true), counts.total(Execution::is_failure));
        if failed * 100 > size * usize::from(self.plan.abort_threshold_percent) {
            let (wave, threshold) = (self.wave + 1, self.plan.abort_threshold_percent);
            let reason = format!("wave {wave}: {failed} of {size} devices failed, more than {threshold} %");
            self.end(State::Aborted, reason);
        }
    }

    fn end(&mut self, state: State, reason: String) {
        self.state = state;
        self.reason = Some(reason);
        for counts in &mut self.waves {
            counts.shift(Execution::Queued, Execution::Canceled, counts.of(Execution::Queued));
        }
    }

    fn go_on_to_the_next_wave(&mut self) {
        while self.waves.get(self.wave).is_none_or(|counts| counts.total(|execution| !execution.is_final()) == 0) {
            if self.wave + 1 >= self.waves.len() {
                self.state = State::Completed;
                return;
            }
            self.wave += 1;
        }
    }

    fn begin(&mut self) -> Option<(usize, usize)> {
        if self.state != State::Running {
            return None;
        }
        let busy = self.total(|execution| execution == Execution::InProgress);
        let most = self.plan.max_in_progress.map_or(usize::MAX, |most| most as usize);
        let counts = self.waves.get_mut(self.wave)?;
        let devices = counts.of(Execution::Queued).min(most.saturating_sub(busy));
        counts.shift(Execution::Queued, Execution::InProgress, devices);
        (devices > 0).then_some((self.wave, devices))
    }
}

/// The wave of each of `total` devices, in order.
pub fn waves_of(sizes: &[Size], total: usize) -> Vec<usize> {
    let mut waves = Vec::with_capacity(total);
    for (wave, size) in sizes.iter().enumerate() {
        let size = match size {
            Size::Count(count) => *count as usize,
            Size::Percent(percent) => (total * usize::from(*percent)).div_ceil(100),
        };
        waves.extend(std::iter::repeat_n(wave, size.min(total - waves.len())));
    }
    let left = total - waves.len();
    waves.extend(std::iter::repeat_n(sizes.len(), left));
    waves
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const NOBODY: [i64; 0] = [];

    fn plan(waves: &[&str], abort_threshold_percent: u8) -> Plan {
        let waves = waves.iter().map(|size| size.parse().unwrap()).collect();
        Plan { waves, abort_threshold_percent, timeout_s: 60, max_in_progress: None, without_expiry: false }
    }

    fn at(seconds: i64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    /// One device, as the store keeps it.
    #[derive(Clone, Debug)]
    struct Device {
        wave: usize,
        execution: Execution,
        begun: Option<Micros>,
    }

    /// A roll-out with its devices, whose ids count from 0: what the store does, in memory.
    #[derive(Debug)]
    struct Fleet {
        rollout: Rollout,
        devices: Vec<Device>,
    }

    impl Fleet {
        fn new(plan: Plan, devices: usize) -> Self {
            let waves = waves_of(&plan.waves, devices);
            let device = |wave| Device { wave, execution: Execution::Queued, begun: None };
            Self { rollout: Rollout::new(plan, devices), devices: waves.into_iter().map(device).collect() }
        }

        /// Gives whose commands are to be sent.
        fn step(&mut self, outcomes: &HashMap<i64, Outcome>, now: Micros) -> Vec<i64> {
            let late = self.rollout.timed_out_before(now);
            let due = (self.devices.iter().zip(0..))
                .filter(|(device, _)| device.execution == Execution::InProgress)
                .filter(|(device, id)| outcomes.contains_key(id) || device.begun.is_none_or(|begun| begun <= late))
                .map(|(device, id)| Due {
                    device: id,
                    wave: device.wave,
                    begun: device.begun,
                    outcome: outcomes.get(&id).cloned(),
                });
            let changes = self.rollout.step(due.collect(), now);
            for ended in changes.ended {
                self.devices[ended.device as usize].execution = ended.outcome.execution;
            }
            self.drop_the_queue();
            let (wave, most) = changes.begin.unwrap_or_default();
            let queue = self.devices.iter_mut().zip(0..);
            let queue = queue.filter(|(device, _)| device.wave == wave && device.execution == Execution::Queued);
            let begin = queue.take(most).map(|(device, id)| {
                (device.execution, device.begun) = (Execution::InProgress, Some(now));
                id
            });
            let begun = begin.collect();
            self.counts_are_those_of_the_devices();
            begun
        }

        fn cancel(&mut self, reason: &str) -> bool {
            let goes = self.rollout.cancel(reason.into());
            self.drop_the_queue();
            goes
        }

        fn drop_the_queue(&mut self) {
            let queue = self.devices.iter_mut().filter(|device| device.execution == Execution::Queued);
            if self.rollout.state.is_over() {
                queue.for_each(|device| device.execution = Execution::Canceled);
            }
        }

        fn counts_are_those_of_the_devices(&self) {
            for (wave, counts) in self.rollout.waves.iter().enumerate() {
                for execution in Execution::ALL {
                    let there = self.devices.iter().filter(|d| d.wave == wave && d.execution == execution).count();
                    assert_eq!(counts.of(execution), there, "wave {wave}, {execution:?}");
                }
            }
        }
    }

    fn all(ids: &[i64], execution: Execution) -> HashMap<i64, Outcome> {
        ids.iter().map(|id| (*id, Outcome { execution, detail: None })).collect()
    }

    #[test]
    fn waves_have_their_sizes_and_the_last_takes_what_is_left() {
        assert_eq!(waves_of(&plan(&["1", "25%"], 0).waves, 8), [0, 1, 1, 2, 2, 2, 2, 2]);
        assert_eq!(waves_of(&plan(&["5", "100%"], 0).waves, 3), [0, 0, 0]);
        assert_eq!(waves_of(&[], 2), [0, 0]);
        for bad in ["0", "0%", "101%", "x", "", "-1"] {
            assert!(bad.parse::<Size>().unwrap_err().contains("size of a wave"), "{bad}");
        }
    }

    #[test]
    fn the_next_wave_begins_when_every_device_of_this_one_has_succeeded() {
        let mut fleet = Fleet::new(plan(&["1", "2"], 0), 4);
        assert_eq!(fleet.step(&HashMap::new(), at(0)), [0]);
        assert_eq!(fleet.step(&HashMap::new(), at(1)), NOBODY);
        assert_eq!(fleet.step(&all(&[0], Execution::Succeeded), at(2)), [1, 2]);
        assert_eq!(fleet.step(&all(&[1], Execution::Succeeded), at(3)), NOBODY);
        assert_eq!(fleet.step(&all(&[2], Execution::Succeeded), at(4)), [3]);
        fleet.step(&all(&[3], Execution::Succeeded), at(5));
        assert_eq!((fleet.rollout.state, fleet.rollout.is_settled()), (State::Completed, true));
    }

    #[test]
    fn one_failure_above_the_threshold_aborts_and_the_rest_is_never_touched() {
        let mut fleet = Fleet::new(plan(&["2"], 50), 3);
        fleet.step(&HashMap::new(), at(0));
        fleet.step(&all(&[0], Execution::Failed), at(1));
        assert_eq!(fleet.rollout.state, State::Running, "half of the wave may fail");
        assert_eq!(fleet.step(&all(&[1], Execution::Rejected), at(2)), NOBODY);
        assert_eq!(fleet.rollout.state, State::Aborted);
        assert_eq!(fleet.rollout.reason.as_deref(), Some("wave 1: 2 of 2 devices failed, more than 50 %"));
        assert_eq!(fleet.devices[2].execution, Execution::Canceled);
        assert!(fleet.rollout.is_settled());
    }

    #[test]
    fn a_device_that_never_answers_has_timed_out() {
        let mut fleet = Fleet::new(plan(&["1"], 0), 2);
        fleet.step(&HashMap::new(), at(0));
        fleet.step(&HashMap::new(), at(59));
        assert_eq!(fleet.devices[0].execution, Execution::InProgress);
        fleet.step(&HashMap::new(), at(60));
        assert_eq!((fleet.devices[0].execution, fleet.rollout.state), (Execution::TimedOut, State::Aborted));
    }

    #[test]
    fn paused_it_begins_nothing_and_resumed_it_goes_on() {
        let mut fleet = Fleet::new(plan(&["1"], 0), 2);
        fleet.step(&HashMap::new(), at(0));
        assert!(fleet.rollout.pause() && !fleet.rollout.pause());
        assert_eq!(fleet.step(&all(&[0], Execution::Succeeded), at(1)), NOBODY);
        assert_eq!(fleet.devices[0].execution, Execution::Succeeded, "what was begun comes to its end");
        assert!(fleet.rollout.resume() && !fleet.rollout.resume());
        assert_eq!(fleet.step(&HashMap::new(), at(2)), [1]);
    }

    #[test]
    fn canceled_it_leaves_devices_in_progress_their_own_end() {
        let mut fleet = Fleet::new(plan(&["1"], 0), 2);
        fleet.step(&HashMap::new(), at(0));
        assert!(fleet.cancel("by ops") && !fleet.cancel("again"));
        assert!(!fleet.rollout.is_settled());
        fleet.step(&all(&[0], Execution::Succeeded), at(2));
        let executions: Vec<_> = fleet.devices.iter().map(|d| d.execution).collect();
        assert_eq!(executions, [Execution::Succeeded, Execution::Canceled]);
        assert_eq!((fleet.rollout.state, fleet.rollout.is_settled()), (State::Canceled, true));
    }

    #[test]
    fn no_more_devices_are_in_progress_than_allowed() {
        let mut fleet = Fleet::new(Plan { max_in_progress: Some(2), ..plan(&[], 0) }, 3);
        assert_eq!(fleet.step(&HashMap::new(), at(0)), [0, 1]);
        assert_eq!(fleet.step(&all(&[0], Execution::Succeeded), at(1)), [2]);
    }

    /// What may happen between two steps.
    #[derive(Clone, Debug)]
    enum Happens {
        Answer(usize, Execution),
        Pause,
        Resume,
        Cancel,
        Nothing,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let outcome = prop::sample::select(vec![
            Execution::Succeeded,
            Execution::Succeeded,
            Execution::Failed,
            Execution::Rejected,
            Execution::InProgress,
        ]);
        prop_oneof![
            8 => (0..40_usize, outcome).prop_map(|(device, outcome)| Happens::Answer(device, outcome)),
            1 => Just(Happens::Pause),
            2 => Just(Happens::Resume),
            1 => Just(Happens::Cancel),
            4 => Just(Happens::Nothing),
        ]
    }

    fn sizes() -> impl Strategy<Value = Vec<Size>> {
        let size = prop_oneof![(1..8_u32).prop_map(Size::Count), (1..=100_u8).prop_map(Size::Percent)];
        prop::collection::vec(size, 0..4)
    }

    fn wave_failed(fleet: &Fleet, wave: usize) -> bool {
        let of_wave = || fleet.devices.iter().filter(|d| d.wave == wave);
        let failed = of_wave().filter(|d| d.execution.is_failure()).count();
        failed * 100 > of_wave().count() * usize::from(fleet.rollout.plan.abort_threshold_percent)
    }

    proptest! {
        #[test]
        fn whatever_happens_nothing_goes_past_a_failed_wave_and_each_device_has_one_outcome(
            total in 0..40_usize,
            waves in sizes(),
            abort_threshold_percent in 0..=100_u8,
            max_in_progress in prop::option::of(1..5_u32),
            steps in prop::collection::vec((happens(), 0..30_i64), 0..80),
        ) {
            let plan = Plan { waves, abort_threshold_percent, timeout_s: 60, max_in_progress, without_expiry: false };
            let mut fleet = Fleet::new(plan, total);
            let (mut now, mut sent, mut outcomes) = (0, HashMap::<i64, u32>::new(), HashMap::<i64, Execution>::new());
            // After the given steps time alone goes on: it must come to an end.
            let rest = std::iter::repeat_n((Happens::Resume, 61), total * 2 + 2);
            for (what, seconds) in steps.into_iter().chain(rest) {
                now += seconds;
                let mut answers = HashMap::new();
                match what {
                    Happens::Answer(device, execution) => answers = all(&[device as i64], execution),
                    Happens::Pause => drop(fleet.rollout.pause()),
                    Happens::Resume => drop(fleet.rollout.resume()),
                    Happens::Cancel => drop(fleet.cancel("test")),
                    Happens::Nothing => {}
                }
                for begun in fleet.step(&answers, at(now)) {
                    prop_assert_eq!(fleet.rollout.state, State::Running);
                    *sent.entry(begun).or_default() += 1;
                    let wave = fleet.devices[begun as usize].wave;
                    for earlier in 0..wave {
                        prop_assert!(!wave_failed(&fleet, earlier), "sent to wave {} past the failed wave {}", wave, earlier);
                        prop_assert!(fleet.devices.iter().all(|d| d.wave != earlier || d.execution.is_final()));
                    }
                }
                for (device, id) in fleet.devices.iter().zip(0..) {
                    if let Some(outcome) = outcomes.get(&id) {
                        prop_assert_eq!(outcome, &device.execution, "an outcome changed");
                    } else if device.execution.is_final() {
                        outcomes.insert(id, device.execution);
                    }
                }
                let busy = fleet.devices.iter().filter(|d| d.execution == Execution::InProgress).count();
                prop_assert!(max_in_progress.is_none_or(|most| busy <= most as usize));
            }
            prop_assert!(fleet.rollout.is_settled(), "{:?}", fleet);
            prop_assert_eq!(outcomes.len(), total);
            prop_assert!(sent.values().all(|times| *times == 1));
            let touched = |d: &&Device| !matches!(d.execution, Execution::Canceled);
            prop_assert_eq!(fleet.devices.iter().filter(touched).count(), sent.len());
            if fleet.rollout.state == State::Completed {
                prop_assert!((0..=fleet.rollout.wave).all(|wave| !wave_failed(&fleet, wave)));
            }
        }
    }
}
