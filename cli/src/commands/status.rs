//! `heddle status`: the state of the mesh, with its replicas and nodes.

use std::{ffi::OsString, process::ExitCode};

use heddle_proto::{
    count,
    status::v1::{self as wire, GetMeshRequest, Mesh},
};
use serde::Serialize;

use super::{ViewOptions, show_with_exit};
use crate::{
    client::Control,
    exit::{Exit, HELP},
    output::{Table, Tabular, clean},
};

/// Show the state of the mesh: verdict, problems, replicas, nodes, services, instances, clients
///
/// Exits with 1 if the verdict is FAILING.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle status", version, after_help = HELP)]
struct Options {
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_STATUS", args);
    heddle_options::init_logging("warn");
    let query = async |control: &Control| {
        let mut mesh = control.mesh.clone();
        control
            .answer(mesh.get_mesh(GetMeshRequest {}))
            .await
            .map(Answer::from)
    };
    show_with_exit(&options.view, query, |answer| {
        match answer.verdict.as_str() {
            "FAILING" => Exit::No,
            _ => Exit::Yes,
        }
    })
}

#[derive(Debug, Serialize)]
struct Answer {
    /// OK, DEGRADED or FAILING; UNKNOWN from an older control plane without a verdict.
    verdict: String,
    problems: Vec<Problem>,
    /// How many are left out of `problems`.
    more_problems: u32,
    version: String,
    store: String,
    revision: u64,
    replica: String,
    services: u32,
    instances: u32,
    healthy_instances: u32,
    clients: u32,
    replicas: Vec<Replica>,
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Problem {
    check: String,
    severity: String,
    subject: String,
    sentence: String,
    remedy: String,
}

impl From<wire::Problem> for Problem {
    fn from(problem: wire::Problem) -> Self {
        Self {
            severity: problem.severity().as_str_name().to_owned(),
            check: problem.check,
            subject: problem.subject,
            sentence: problem.sentence,
            remedy: problem.remedy,
        }
    }
}

#[derive(Debug, Serialize)]
struct Replica {
    name: String,
    advertise: String,
    version: String,
    duties: Vec<String>,
    /// As it last reported, some seconds ago.
    xds_streams: u32,
}

#[derive(Debug, Serialize)]
struct Node {
    name: String,
    alive: bool,
    advertise: String,
    region: String,
    zone: String,
    instances: u32,
    epoch: u64,
    version: String,
    suspect: bool,
    left: bool,
    /// Its stopping processes, whose calls in flight are ending.
    draining: u32,
    replica: String,
    clash: String,
}

impl From<Mesh> for Answer {
    fn from(mesh: Mesh) -> Self {
        let verdict = mesh.verdict().as_str_name().to_owned();
        let mut nodes: Vec<Node> = mesh
            .nodes
            .into_iter()
            .map(|node| Node {
                name: node.name,
                alive: node.alive,
                advertise: node.advertise,
                region: node.region,
                zone: node.zone,
                instances: node.instances,
                epoch: node.epoch,
                version: node.version,
                suspect: node.suspect,
                left: node.left,
                draining: node.draining,
                replica: node.replica,
                clash: node.clash,
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let replica = |replica: wire::Replica| Replica {
            name: replica.name,
            advertise: replica.advertise,
            version: replica.version,
            duties: replica.duties,
            xds_streams: replica.xds_streams,
        };
        Self {
            verdict,
            problems: mesh.problems.into_iter().map(Problem::from).collect(),
            more_problems: mesh.more_problems,
            version: mesh.version,
            store: mesh.store,
            revision: mesh.revision,
            replica: mesh.replica,
            services: mesh.services,
            instances: mesh.instances,
            healthy_instances: mesh.healthy_instances,
            clients: mesh.clients,
            replicas: mesh.replicas.into_iter().map(replica).collect(),
            nodes,
        }
    }
}

impl Tabular for Answer {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "NODE",
            "STATE",
            "INBOUND",
            "LOCALITY",
            "INSTANCES",
            "EPOCH",
            "REPLICA",
            "VERSION",
        ]);
        for node in &self.nodes {
            let locality = match (node.region.as_str(), node.zone.as_str()) {
                ("", "") => String::new(),
                (region, zone) => format!("{region}/{zone}"),
            };
            table.row(vec![
                node.name.clone(),
                node.state(),
                node.advertise.clone(),
                locality,
                node.instances.to_string(),
                node.epoch.to_string(),
                node.replica.clone(),
                node.version.clone(),
            ]);
        }
        let alive = self.nodes.iter().filter(|node| node.alive).count();
        format!(
            "{}\n{}Heddle {}, store {} at revision {}, replica {}\n\
             {alive} of {} alive, {}, {} of {} healthy, {} here\n\n{}{table}{}",
            self.verdict,
            self.problems(),
            self.version,
            self.store,
            self.revision,
            self.replica,
            count(self.nodes.len(), "node"),
            count(self.services, "service"),
            self.healthy_instances,
            count(self.instances, "instance"),
            count(self.clients, "xDS client"),
            self.replicas(),
            self.clashes(),
        )
    }
}

impl Answer {
    /// Two lines per problem.
    fn problems(&self) -> String {
        let lines = self.problems.iter().map(|problem| {
            let (severity, check) = (problem.severity.to_lowercase(), clean(&problem.check));
            let (sentence, remedy) = (clean(&problem.sentence), clean(&problem.remedy));
            format!("  {severity} {check}: {sentence}\n    try: {remedy}\n")
        });
        let more = match self.more_problems {
            0 => String::new(),
            more => format!("  and {more} more\n"),
        };
        lines.chain([more]).collect()
    }

    /// A separate table, if there are any.
    fn replicas(&self) -> String {
        if self.replicas.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["REPLICA", "ADDRESS", "LEADER JOBS", "STREAMS", "VERSION"]);
        for replica in &self.replicas {
            table.row(vec![
                replica.name.clone(),
                replica.advertise.clone(),
                replica.duties.join(", "),
                replica.xds_streams.to_string(),
                replica.version.clone(),
            ]);
        }
        format!("{table}\n")
    }

    /// A line below the nodes for each name that two processes claim.
    fn clashes(&self) -> String {
        let clashes = self.nodes.iter().filter(|node| !node.clash.is_empty());
        let lines = clashes.map(|node| {
            format!(
                "\nnode {}: another running process also claims its name: {}; give one of them another --node\n",
                node.name, node.clash
            )
        });
        lines.collect()
    }
}

impl Node {
    /// The state of its newest process, and how many older ones are draining.
    fn state(&self) -> String {
        let state = match (self.alive, self.suspect) {
            _ if self.left && self.draining > 0 => return "DRAINING".to_owned(),
            (true, _) if self.left => "stopping",
            (true, _) => "alive",
            (false, true) => "suspect",
            (false, false) if self.left => "left",
            (false, false) => "lapsed",
        };
        match self.draining {
            0 => state.to_owned(),
            older => format!("{state} ({older} DRAINING)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use heddle_proto::status::v1::{
        Mesh, Node, Problem, Replica, mesh::Verdict, problem::Severity,
    };

    use super::Answer;
    use crate::output::{Format, render};

    fn mesh() -> Answer {
        let node = |name: &str, alive| Node {
            name: name.into(),
            alive,
            epoch: 3,
            advertise: "127.0.0.1:15008".into(),
            region: if alive { "eu".into() } else { String::new() },
            zone: if alive { "a".into() } else { String::new() },
            instances: 2,
            version: "0.1.0".into(),
            suspect: name == "c",
            left: false,
            draining: u32::from(alive),
            replica: if alive { "r1".into() } else { String::new() },
            clash: if alive {
                "process 7 (had epoch 2)".into()
            } else {
                String::new()
            },
        };
        let replica = |name: &str, duties: &[&str]| Replica {
            name: name.into(),
            advertise: format!("http://{name}:15010"),
            version: "0.1.0".into(),
            duties: duties.iter().map(ToString::to_string).collect(),
            xds_streams: 2,
        };
        Answer::from(Mesh {
            version: "0.1.0".into(),
            store: "embedded".into(),
            revision: 42,
            nodes: vec![node("c", false), node("b", false), node("a", true)],
            services: 1,
            instances: 4,
            healthy_instances: 2,
            clients: 2,
            replica: "r1".into(),
            replicas: vec![replica("r1", &["sweeper"]), replica("r2", &[])],
            verdict: Verdict::Failing.into(),
            problems: vec![Problem {
                check: "node.lapsed".into(),
                severity: Severity::Error.into(),
                subject: "b".into(),
                sentence: "node b has been silent\n".into(),
                remedy: "start its proxy".into(),
            }],
            more_problems: 2,
        })
    }

    #[test]
    fn the_table_says_it_at_a_glance() {
        assert_eq!(
            render(Format::Table, &mesh()).unwrap(),
            "FAILING\n  \
               error node.lapsed: node b has been silent\\n\n    \
                 try: start its proxy\n  \
               and 2 more\n\
             Heddle 0.1.0, store embedded at revision 42, replica r1\n\
             1 of 3 nodes alive, 1 service, 2 of 4 instances healthy, 2 xDS clients here\n\
             \n\
             REPLICA  ADDRESS          LEADER JOBS  STREAMS  VERSION\n\
             r1       http://r1:15010  sweeper      2        0.1.0\n\
             r2       http://r2:15010  -            2        0.1.0\n\
             \n\
             NODE  STATE               INBOUND          LOCALITY  INSTANCES  EPOCH  REPLICA  VERSION\n\
             a     alive (1 DRAINING)  127.0.0.1:15008  eu/a      2          3      r1       0.1.0\n\
             b     lapsed              127.0.0.1:15008  -         2          3      -        0.1.0\n\
             c     suspect             127.0.0.1:15008  -         2          3      -        0.1.0\n\
             \n\
             node a: another running process also claims its name: process 7 (had epoch 2); give one of them another --node\n"
        );
    }

    #[test]
    fn a_stopping_node_shows_how_far_it_is() {
        let state = |alive, draining| {
            let node = Node {
                alive,
                draining,
                left: true,
                ..Node::default()
            };
            Answer::from(Mesh {
                nodes: vec![node],
                ..Mesh::default()
            })
            .nodes[0]
                .state()
        };
        assert_eq!(state(true, 1), "DRAINING");
        assert_eq!(state(true, 0), "stopping");
        assert_eq!(state(false, 1), "DRAINING");
        assert_eq!(state(false, 0), "left");
    }

    #[test]
    fn json_and_yaml_have_the_same_shape() {
        let json: serde_json::Value =
            serde_json::from_str(&render(Format::Json, &mesh()).unwrap()).unwrap();
        let yaml: serde_json::Value =
            serde_saphyr::from_str(&render(Format::Yaml, &mesh()).unwrap()).unwrap();
        assert_eq!(json, yaml);
        assert_eq!(json["nodes"][0]["name"], "a");
        assert_eq!(json["revision"], 42);
        assert_eq!(json["verdict"], "FAILING");
        assert_eq!(json["problems"][0]["severity"], "ERROR");
    }
}
