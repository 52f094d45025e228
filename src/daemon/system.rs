//! What the machine says of itself: board, processor time, memory, temperature. Anything it does not say is `None`.

use std::time::{Duration, Instant};

use procfs::process::Process;

use crate::mqtt::command::ClockTrust;

/// The board's name by its device tree, or the machine's by its firmware.
pub fn board() -> String {
    const PLACES: [&str; 2] = ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"];
    PLACES
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| text.trim_matches(['\0', '\n', ' ']).to_string())
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// Names this run of the machine: another after each restart of the kernel.
pub fn machine_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".into(), |id| id.trim().to_string())
}

/// The hottest thermal zone, in degrees Celsius.
pub fn temperature_celsius() -> Option<f64> {
    let zones = std::fs::read_dir("/sys/class/thermal").ok()?;
    zones
        .flatten()
        .filter_map(|zone| std::fs::read_to_string(zone.path().join("temp")).ok())
        .filter_map(|text| text.trim().parse::<f64>().ok())
        .map(|millicelsius| millicelsius / 1000.0)
        // Zones that are switched off report absurd values.
        .filter(|celsius| (-40.0..150.0).contains(celsius))
        .max_by(f64::total_cmp)
}

/// Whether the wall clock follows a source of time.
///
/// The kernel knows (adjtimex(2)), but a hardened unit may not ask it; then systemd-timesyncd's mark is looked for.
pub fn clock_trust() -> ClockTrust {
    const TIMESYNCD: &str = "/run/systemd/timesync";
    // SAFETY: all zeroes is a valid `timex`; with `modes` zero the call reads only, into a value that is ours.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&mut timex)
    };
    match state {
        -1 if std::path::Path::new(TIMESYNCD).join("synchronized").exists() => ClockTrust::Synchronised,
        -1 if std::path::Path::new(TIMESYNCD).exists() => ClockTrust::Unsynchronised,
        -1 => ClockTrust::Unknown,
        libc::TIME_ERROR => ClockTrust::Unsynchronised,
        _ => ClockTrust::Synchronised,
    }
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> Option<u64> {
    let stat = Process::myself().ok()?.stat().ok()?;
    Some(stat.rss * procfs::page_size())
}

/// Processor time of this process, user and system.
pub fn processor_time() -> Option<Duration> {
    let stat = Process::myself().ok()?.stat().ok()?;
    let ticks = stat.utime + stat.stime;
    Some(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
}

/// The share of one core that this process used since it was last asked.
#[derive(Debug)]
pub struct ProcessorShare {
    last: Option<(Instant, Duration)>,
}

impl ProcessorShare {
    /// The first interval begins now.
    pub fn new(now: Instant) -> Self {
        Self { last: processor_time().map(|used| (now, used)) }
    }

    /// Per cent of one core since the last call.
    pub fn percent(&mut self, now: Instant) -> Option<f64> {
        let used = processor_time()?;
        let (since, before) = self.last.replace((now, used))?;
        let wall = now.saturating_duration_since(since).as_secs_f64();
        (wall > 0.0).then(|| 100.0 * used.saturating_sub(before).as_secs_f64() / wall)
    }
}
