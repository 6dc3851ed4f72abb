use super::*;

const TTL: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);

struct Mesh {
    expiry: Expiry,
    start: Instant,
    /// Nodes that have missed a heartbeat.
    overdue_nodes: usize,
}

impl Mesh {
    fn new(nodes: usize) -> Self {
        let mut expiry = Expiry::new(ExpiryOptions::default(), TTL, RENEW);
        for node in 0..nodes {
            expiry.on_alive(&name(node));
        }
        Self {
            expiry,
            start: Instant::now(),
            overdue_nodes: 0,
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn lapse(&mut self, node: usize, seconds: u64) {
        let at = self.at(seconds);
        self.expiry.on_lapsed(&name(node), None, at);
    }

    /// At `seconds`, suspends decisions until `until`.
    fn hold(&mut self, seconds: u64, until: u64) {
        let (now, until) = (self.at(seconds), self.at(until));
        self.expiry.hold(until, now);
    }

    /// The decisions at a time, as "remove 3" or "suspect 3", without notes; each is carried out.
    fn decisions(&mut self, seconds: u64) -> Vec<String> {
        let mut decisions = self.all_decisions(seconds);
        decisions.retain(|decision| !decision.starts_with("note"));
        decisions
    }

    fn all_decisions(&mut self, seconds: u64) -> Vec<String> {
        let at = self.at(seconds);
        let decisions = self.expiry.decisions(at, || self.overdue_nodes);
        decisions
            .into_iter()
            .map(|decision| match decision {
                Decision::Remove { node, .. } => {
                    self.expiry.on_gone(&node);
                    format!("remove {node}")
                }
                Decision::Suspect { node, .. } => {
                    self.expiry.on_lapsed(&node, Some(Duration::ZERO), at);
                    format!("suspect {node}")
                }
                Decision::Note { node, suspect_for } => format!("note {node} {suspect_for:?}"),
            })
            .collect()
    }
}

#[test]
fn stopping_nodes_go_at_once_and_make_no_mass_lapse() {
    let mut mesh = Mesh::new(6);
    for node in 0..4 {
        let at = mesh.at(0);
        mesh.expiry.on_left(&name(node), at);
    }
    assert_eq!(
        mesh.decisions(0),
        ["remove 0", "remove 1", "remove 2", "remove 3"]
    );
    mesh.lapse(4, 0);
    assert_eq!(mesh.decisions(0), ["remove 4"], "one alone was not cut off");
}

fn name(node: usize) -> Arc<str> {
    node.to_string().into()
}

#[test]
fn a_single_node_is_removed_at_once_while_the_others_beat() {
    let mut mesh = Mesh::new(10);
    mesh.lapse(4, 0);
    assert_eq!(mesh.decisions(0), ["remove 4"]);
    assert_eq!(mesh.expiry.next(), None);
}

#[test]
fn it_waits_while_others_that_missed_a_beat_could_follow() {
    let mut mesh = Mesh::new(10);
    mesh.overdue_nodes = 1;
    mesh.lapse(4, 0);
    assert_eq!(
        mesh.decisions(0),
        ["remove 4"],
        "two of ten would be no mass"
    );
    mesh.overdue_nodes = 5;
    mesh.lapse(5, 1);
    assert_eq!(mesh.decisions(1), [""; 0]);
    assert!(
        mesh.expiry.next().unwrap() < mesh.at(2),
        "it is looked at again soon"
    );
    assert_eq!(mesh.decisions(3), [""; 0]);
    assert_eq!(mesh.decisions(4), ["remove 5"], "one interval is enough");
    mesh.lapse(6, 5);
    assert_eq!(
        mesh.decisions(5),
        ["suspect 6"],
        "the third makes it a mass"
    );

    let mut mesh = Mesh::new(10);
    mesh.overdue_nodes = 5;
    mesh.lapse(4, 0);
    assert_eq!(mesh.decisions(0), [""; 0]);
    mesh.overdue_nodes = 0;
    assert_eq!(mesh.decisions(1), ["remove 4"], "the others beat again");
}

#[test]
fn many_that_lapse_together_become_suspect() {
    let mut mesh = Mesh::new(10);
    mesh.overdue_nodes = 10;
    mesh.lapse(0, 0);
    assert_eq!(mesh.decisions(0), [""; 0]);
    mesh.lapse(1, 1);
    assert_eq!(mesh.decisions(1), [""; 0]);
    mesh.lapse(2, 2);
    assert_eq!(mesh.decisions(2), ["suspect 0", "suspect 1", "suspect 2"]);
    mesh.lapse(3, 6);
    assert_eq!(
        mesh.decisions(6),
        ["suspect 3"],
        "it belongs to the same cut"
    );
    mesh.expiry.on_alive(&name(1));
    assert_eq!(mesh.decisions(601), [""; 0]);
    assert_eq!(
        mesh.decisions(602),
        ["remove 0", "remove 2"],
        "10 min after it became suspect"
    );
    assert_eq!(mesh.decisions(606), ["remove 3"]);
}

#[test]
fn few_or_a_small_share_or_one_after_the_other_are_removed() {
    let mut few = Mesh::new(3);
    few.lapse(0, 0);
    few.lapse(1, 0);
    assert_eq!(few.decisions(3), ["remove 0", "remove 1"]);
    let mut small_share = Mesh::new(11);
    for node in 0..3 {
        small_share.lapse(node, 0);
    }
    assert_eq!(small_share.decisions(3).len(), 3);
    let mut slow = Mesh::new(4);
    for node in 0..3 {
        slow.lapse(node, node as u64 * 20);
        assert_eq!(
            slow.decisions(node as u64 * 20 + 3),
            [format!("remove {node}")]
        );
    }
}

#[test]
fn a_node_that_comes_back_before_the_decision_stays() {
    let mut mesh = Mesh::new(5);
    mesh.lapse(1, 0);
    mesh.expiry.on_alive(&name(1));
    assert_eq!(mesh.expiry.next(), None);
    assert_eq!(mesh.decisions(3), [""; 0]);
}

#[test]
fn a_decision_that_was_not_carried_out_comes_again() {
    let mut mesh = Mesh::new(1);
    mesh.lapse(0, 0);
    let now = mesh.at(0);
    assert_eq!(mesh.expiry.decisions(now, || 0).len(), 1);
    assert_eq!(mesh.expiry.decisions(now, || 0).len(), 0);
    assert_eq!(mesh.expiry.next(), Some(now + RETRY_PAUSE));
    assert_eq!(mesh.decisions(2), ["remove 0"]);
}

#[test]
fn a_suspects_time_is_noted_and_runs_on_under_the_next_leader() {
    let mut mesh = Mesh::new(0);
    let at = mesh.at(0);
    mesh.expiry.on_lapsed(&name(0), Some(Duration::ZERO), at);
    assert_eq!(mesh.all_decisions(29), [""; 0]);
    assert_eq!(mesh.all_decisions(30), ["note 0 30s"]);
    assert_eq!(mesh.all_decisions(30), [""; 0]);
    assert_eq!(mesh.all_decisions(75), ["note 0 75s"]);
    assert_eq!(mesh.decisions(599), [""; 0]);
    assert_eq!(mesh.decisions(600), ["remove 0"]);

    let mut next = Mesh::new(0);
    let at = next.at(0);
    for (node, spent) in [(0, 570), (1, 595)] {
        let spent = Some(Duration::from_secs(spent));
        next.expiry.on_lapsed(&name(node), spent, at);
    }
    next.hold(0, 10);
    assert_eq!(next.all_decisions(9), [""; 0], "it expires no node yet");
    assert_eq!(next.all_decisions(10), ["remove 1"]);
    assert_eq!(next.all_decisions(29), [""; 0]);
    assert_eq!(next.all_decisions(30), ["remove 0"]);
}

#[test]
fn a_new_leader_waits_and_counts_what_lapsed_meanwhile_together() {
    let mut mesh = Mesh::new(10);
    // It takes over at second 5 and does not know when the earlier lapses happened.
    mesh.lapse(0, 5);
    mesh.hold(5, 15);
    mesh.lapse(1, 6);
    assert_eq!(mesh.decisions(7), [""; 0]);
    mesh.lapse(2, 14);
    assert_eq!(mesh.expiry.next(), Some(mesh.at(15)));
    assert_eq!(mesh.decisions(14), [""; 0]);
    assert_eq!(mesh.decisions(15), ["suspect 0", "suspect 1", "suspect 2"]);

    let mut mesh = Mesh::new(10);
    mesh.hold(5, 15);
    mesh.lapse(0, 6);
    mesh.lapse(1, 7);
    mesh.expiry.on_alive(&name(1));
    assert_eq!(mesh.decisions(14), [""; 0]);
    assert_eq!(
        mesh.decisions(15),
        ["remove 0"],
        "one that does not come back"
    );
    mesh.lapse(3, 30);
    assert_eq!(mesh.decisions(30), ["remove 3"], "then as ever");
}

#[test]
fn while_the_store_is_away_no_node_is_expired() {
    let mut mesh = Mesh::new(4);
    mesh.lapse(0, 0);
    for second in 0..60 {
        mesh.hold(second, second + 10);
        assert_eq!(mesh.decisions(second), [""; 0]);
    }
    mesh.expiry.on_alive(&name(0));
    mesh.lapse(1, 61);
    assert_eq!(mesh.decisions(68), [""; 0]);
    assert_eq!(mesh.decisions(69), ["remove 1"]);
}

#[test]
fn what_lapsed_hours_before_the_store_was_away_does_not_count_together_with_what_follows() {
    let mut mesh = Mesh::new(10);
    mesh.lapse(0, 0);
    mesh.lapse(1, 0);
    assert_eq!(mesh.decisions(0), ["remove 0", "remove 1"]);
    // Nothing happens for two hours; then the store does not answer for a while.
    mesh.hold(7200, 7215);
    mesh.lapse(2, 7201);
    assert_eq!(
        mesh.decisions(7215),
        ["remove 2"],
        "one of eight: no mass lapse"
    );
    // Recent lapses still count: they could have the same cause.
    mesh.lapse(3, 7300);
    mesh.lapse(4, 7301);
    mesh.hold(7305, 7320);
    mesh.lapse(5, 7306);
    assert_eq!(
        mesh.decisions(7320),
        ["suspect 3", "suspect 4", "suspect 5"]
    );
}
