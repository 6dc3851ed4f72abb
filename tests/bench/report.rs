//! The results of the rounds: medians, and ratios within each round, as a table and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::options::Peer;
use crate::rounds::{Measure, Measured};

pub(crate) fn table(measured: &[Measured]) {
    println!(
        "{:<10} {:<7} {:>11} {:>9} {:>6} {:>9} {:>9}   {:>9} {:>9} {:>9}",
        "shape",
        "peer",
        "calls/s",
        "CPU µs",
        "core",
        "p50 µs",
        "p99 µs",
        "CPU ×",
        "calls/s ×",
        "p50 ×"
    );
    for shape in measured {
        for (at, peer) in shape.peers.iter().enumerate() {
            let of = |value: fn(&Measure) -> f64| {
                median(shape.rounds.iter().map(|round| value(&round[at])))
            };
            let [cpu, rate, p50] = shape.against(at).unwrap_or([f64::NAN; 3]);
            println!(
                "{:<10} {:<7} {:>11} {:>9} {:>6} {:>9} {:>9}   {:>9} {:>9} {:>9}",
                shape.shape.to_string(),
                peer,
                shown(of(|m| m.calls_per_second), 0),
                shown(of(|m| m.cpu), 2),
                shown(of(|m| m.share), 2),
                shown(of(|m| m.p50), 0),
                shown(of(|m| m.p99), 0),
                shown(cpu, 3),
                shown(rate, 3),
                shown(p50, 3),
            );
        }
    }
    println!(
        "medians; × is Heddle's figure divided by this peer's, the median of the ratios inside the rounds"
    );
}

fn shown(value: f64, decimals: usize) -> String {
    if value.is_finite() {
        format!("{value:.decimals$}")
    } else {
        "-".to_owned()
    }
}

impl Measured {
    /// Heddle's CPU per call, calls per second and p50 divided by another peer's, paired by round.
    fn against(&self, at: usize) -> Option<[f64; 3]> {
        let heddle = self
            .peers
            .iter()
            .position(|peer| *peer == Peer::Heddle)
            .filter(|heddle| *heddle != at)?;
        let ratio = |value: fn(&Measure) -> f64| {
            median(
                self.rounds
                    .iter()
                    .map(|round| value(&round[heddle]) / value(&round[at])),
            )
        };
        Some([
            ratio(|m| m.cpu),
            ratio(|m| m.calls_per_second),
            ratio(|m| m.p50),
        ])
    }
}

/// Writes the figures to a file; does nothing without one.
pub(crate) fn json(measured: &[Measured], to: Option<&Path>) -> anyhow::Result<()> {
    let Some(to) = to else { return Ok(()) };
    let shapes: Vec<Value> = measured.iter().map(shape).collect();
    std::fs::write(
        to,
        serde_json::to_string_pretty(&json!({ "shapes": shapes }))?,
    )?;
    Ok(())
}

fn shape(measured: &Measured) -> Value {
    let peers = measured.peers.iter().enumerate().map(|(at, peer)| {
        let of = |value: fn(&Measure) -> f64| {
            median(measured.rounds.iter().map(|round| value(&round[at])))
        };
        let ratios = measured
            .against(at)
            .map(|[cpu, rate, p50]| json!({"cpu": cpu, "calls_per_second": rate, "p50": p50}));
        json!({
            "peer": peer.to_string(),
            "calls_per_second": of(|m| m.calls_per_second),
            "cpu_us_per_call": of(|m| m.cpu),
            "core_share": of(|m| m.share),
            "p50_us": of(|m| m.p50),
            "p99_us": of(|m| m.p99),
            "heddle_divided_by_this": ratios,
        })
    });
    json!({
        "shape": measured.shape.to_string(),
        "message_bytes": measured.shape.bytes,
        "realistic_headers": measured.shape.realistic,
        "rounds": measured.rounds.len(),
        "peers": peers.collect::<Vec<_>>(),
    })
}

/// The median; of an even number the lower of the two middle values.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}
