//! Passive health: judges an instance by how calls end. An instance whose calls only end without an answer is ejected:
//! it is not chosen for a time that doubles, then single calls probe it, and the first answer returns it. Takes the
//! ends of calls, `now` and a random number; says whether an instance may be chosen. No sockets, no clock, no statuses:
//! an answer with an error status is an answer. Each worker judges by its own calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_pacing::doubled;
use rustc_hash::FxHashMap;

/// Number of calls in a row without an answer that eject an instance.
pub const UNANSWERED_RUN: u32 = 5;
/// A run ends if no call has been added to it for this long.
pub const RUN_GAP: Duration = Duration::from_secs(120);
/// Duration of the first ejection, until a call probes the instance; doubles with each probe that fails.
pub const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest wait for the next probe.
pub const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// For each such time that an instance has answered after an ejection, one doubling is undone.
pub const DECAY_EVERY: Duration = Duration::from_secs(10);
/// A cancelled call counts only if it lasted at least this long, and `CANCEL_FACTOR` times the usual latency of the
/// instance: callers change their minds, and hedging callers cancel the slower call.
pub const CANCELLED_AFTER: Duration = Duration::from_secs(1);
/// See [`CANCELLED_AFTER`].
pub const CANCEL_FACTOR: u32 = 4;
/// Least latency that is assumed for a call that ended by its deadline: clearly slower than fast.
const DEADLINE_LATENCY: Duration = Duration::from_millis(100);
/// Least latency that is assumed for a call that the instance reset, or whose connection was lost.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// How an attempt ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The deadline passed.
    Deadline,
    /// The caller cancelled it.
    Cancelled,
    /// The instance reset it, or its answer violated the protocol.
    Reset,
    /// The connection was lost. All calls that end like this at one moment count as one.
    Lost,
}

/// An attempt that ended without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    /// How it ended.
    pub end: End,
    /// When it was sent.
    pub started: Instant,
    /// The estimated latency of the instance; zero if it has never answered.
    pub usual: Duration,
}

impl Unanswered {
    /// The latency that the attempt counts as: at least the time that it took, and more for fast failures, which must
    /// not make the instance look fast.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.started);
        match self.end {
            End::Cancelled => waited,
            End::Deadline if waited < self.usual => waited,
            End::Deadline => waited.max(DEADLINE_LATENCY),
            End::Reset | End::Lost => waited.max(FAILURE_LATENCY),
        }
    }
}

/// Whether an instance may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Yes.
    In,
    /// It is ejected, and one call has to find out whether it answers again.
    Probe,
    /// It is ejected.
    Out,
}

impl Availability {
    /// The cost of one more call whose cost by load is `by_load`. A due probe comes first.
    #[inline]
    #[must_use]
    pub fn cost(self, by_load: f64) -> Option<f64> {
        match self {
            Self::In => Some(by_load),
            Self::Probe => Some(0.0),
            Self::Out => None,
        }
    }
}

/// An ejection of an instance, or its extension after a failed probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// How long until the next probe.
    pub time: Duration,
    /// Number of ejections and failed probes since it was healthy.
    pub times: u32,
}

/// State of one instance with unanswered calls.
#[derive(Clone, Debug)]
struct Record {
    /// Calls in a row without an answer.
    run: u32,
    /// When the last of them ended.
    last: Instant,
    /// The instance's usual latency when the run began.
    usual: Duration,
    /// Ejections and failed probes since it was healthy.
    times: u32,
    /// When it returned from its last ejection.
    returned: Option<Instant>,
    out: Option<Out>,
}

/// The state of an ejected instance.
#[derive(Clone, Copy, Debug)]
struct Out {
    /// When the next call may probe it.
    probe_at: Instant,
    /// When the last probe was sent, until its result is known.
    probing: Option<Instant>,
}

/// One worker's state of the instances that do not answer, with one record for each of them.
#[derive(Debug, Default)]
pub struct PassiveHealth {
    records: FxHashMap<u64, Record>,
    /// Ejected instances by service, oldest ejection first. Bounded by half of each service's instances.
    out: FxHashMap<Arc<str>, Vec<u64>>,
}

/// How many of `usable` instances of a service may be ejected at once: at least half of them stay in.
#[must_use]
pub fn max_ejected(usable: usize) -> usize {
    usable / 2
}

impl PassiveHealth {
    /// An instance has answered. True if that ends its ejection.
    #[inline]
    pub fn answered(&mut self, uid: u64, now: Instant) -> bool {
        !self.records.is_empty() && self.end_run(uid, now)
    }

    fn end_run(&mut self, uid: u64, now: Instant) -> bool {
        let Some(record) = self.records.get_mut(&uid) else {
            return false;
        };
        record.run = 0;
        let returned = record.out.take().is_some();
        if returned {
            record.returned = Some(now);
            self.leave_out(uid);
        } else if record.times_after_decay(now) == 0 {
            self.records.remove(&uid);
        }
        returned
    }

    /// An attempt on an instance of `service`, which has `usable` instances by their health, ended without an answer.
    /// `random` is in 0..1. Returns the ejection if this ejects the instance or extends its ejection.
    pub fn unanswered(
        &mut self,
        (service, usable): (&Arc<str>, usize),
        uid: u64,
        call: Unanswered,
        now: Instant,
        random: f64,
    ) -> Option<Ejection> {
        let record = self.records.entry(uid).or_insert_with(|| Record {
            run: 0,
            last: now,
            usual: Duration::ZERO,
            times: 0,
            returned: None,
            out: None,
        });
        if record.out.is_some() {
            return record.probe_failed(call, now, random);
        }
        if !record.counts(call, now) {
            return None;
        }
        let full = record.run >= UNANSWERED_RUN;
        let out = self.out.get(service).map_or(0, Vec::len);
        if !full || out >= max_ejected(usable) {
            return None;
        }
        record.times = record.times_after_decay(now);
        let ejection = record.eject(now, random);
        self.out.entry(Arc::clone(service)).or_default().push(uid);
        Some(ejection)
    }

    /// Whether an instance may be chosen now.
    #[inline]
    #[must_use]
    pub fn availability(&self, uid: u64, now: Instant) -> Availability {
        if self.out.is_empty() {
            return Availability::In;
        }
        let out = self.records.get(&uid).and_then(|record| record.out);
        match out {
            None => Availability::In,
            Some(out) if out.probe_at <= now => Availability::Probe,
            Some(_) => Availability::Out,
        }
    }

    /// A call is sent to an instance. If it is ejected, that call probes it; the next probe may follow after the same
    /// time.
    #[inline]
    pub fn chosen(&mut self, uid: u64, now: Instant, random: f64) {
        if self.out.is_empty() {
            return;
        }
        let Some(record) = self.records.get_mut(&uid) else {
            return;
        };
        let time = wait(record.times, random);
        if let Some(out) = &mut record.out
            && out.probe_at <= now
        {
            out.probe_at = now + time;
            out.probing = Some(now);
        }
    }

    /// Whether `refit` is needed when the instances of services change.
    #[must_use]
    pub fn has_ejected(&self) -> bool {
        !self.out.is_empty()
    }

    /// The instances of services may have changed; `usable` gives the uids that are usable by their health. Ends the
    /// ejections of instances that are gone or beyond the limit, oldest first; returns their uids.
    pub fn refit<I: IntoIterator<Item = u64>>(&mut self, usable: impl Fn(&str) -> I) -> Vec<u64> {
        let mut returned = Vec::new();
        let records = &mut self.records;
        self.out.retain(|service, out| {
            let all: Vec<u64> = usable(service).into_iter().collect();
            let gone = out.extract_if(.., |uid| !all.contains(uid));
            returned.extend(gone);
            let over = out.len().saturating_sub(max_ejected(all.len()));
            returned.extend(out.drain(..over));
            !out.is_empty()
        });
        for uid in &returned {
            records.remove(uid);
        }
        returned
    }

    /// Removes instances that are gone; ejected ones are removed by [`PassiveHealth::refit`].
    pub fn retain(&mut self, known: impl Fn(u64) -> bool) {
        self.records
            .retain(|uid, record| record.out.is_some() || known(*uid));
    }

    /// The ejected instances of all services.
    pub fn ejected(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.out
            .iter()
            .flat_map(|(service, out)| out.iter().map(move |uid| (service, *uid)))
    }

    fn leave_out(&mut self, uid: u64) {
        self.out.retain(|_, out| {
            out.retain(|other| *other != uid);
            !out.is_empty()
        });
    }
}

impl Record {
    /// Adds an unanswered call to the run, if it says anything about the instance.
    fn counts(&mut self, call: Unanswered, now: Instant) -> bool {
        if self.run > 0 && now.saturating_duration_since(self.last) > RUN_GAP {
            self.run = 0;
        }
        if self.run == 0 {
            self.usual = call.usual;
        }
        let same_event = call.end == End::Lost && self.run > 0 && self.last == now;
        let says = !same_event && self.is_evidence(call, now);
        if says {
            self.run = self.run.saturating_add(1);
            self.last = now;
        }
        says
    }

    /// Whether the end of a call shows that the instance does not answer, and not only that its caller was impatient.
    fn is_evidence(&self, call: Unanswered, now: Instant) -> bool {
        let waited = now.saturating_duration_since(call.started);
        match call.end {
            End::Deadline => waited >= self.usual,
            End::Cancelled => {
                waited >= CANCELLED_AFTER.max(self.usual.saturating_mul(CANCEL_FACTOR))
            }
            End::Reset | End::Lost => true,
        }
    }

    fn eject(&mut self, now: Instant, random: f64) -> Ejection {
        self.times = self.times.saturating_add(1);
        let time = wait(self.times, random);
        self.out = Some(Out {
            probe_at: now + time,
            probing: None,
        });
        Ejection {
            time,
            times: self.times,
        }
    }

    /// Only probes count: calls sent before the ejection were counted by it.
    fn probe_failed(&mut self, call: Unanswered, now: Instant, random: f64) -> Option<Ejection> {
        let probing = self.out.and_then(|out| out.probing)?;
        let probe = call.started >= probing && self.is_evidence(call, now);
        probe.then(|| self.eject(now, random))
    }

    /// How many ejections still count.
    fn times_after_decay(&self, now: Instant) -> u32 {
        let well = self
            .returned
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let decayed = well.as_secs() / DECAY_EVERY.as_secs();
        self.times
            .saturating_sub(u32::try_from(decayed).unwrap_or(u32::MAX))
    }
}

/// The time until the next probe, randomized by a tenth, so that workers and nodes do not probe at the same moment.
fn wait(times: u32, random: f64) -> Duration {
    doubled(FIRST_EJECTION, times.saturating_sub(1), LONGEST_EJECTION)
        .mul_f64(0.9 + random.clamp(0.0, 1.0) / 5.0)
}

#[cfg(test)]
mod tests;
