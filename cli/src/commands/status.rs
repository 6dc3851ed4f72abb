//! `heddle status`: the mesh at a glance, with its nodes.

use std::{ffi::OsString, process::ExitCode};

use heddle_proto::status::v1::{GetMeshRequest, Mesh};
use serde::Serialize;

use super::{ViewOptions, show};
use crate::output::{Table, Tabular};

/// Show the mesh at a glance: nodes, services, instances, clients
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle status", version)]
struct Options {
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_STATUS", args);
    heddle_options::init_logging("warn");
    show(&options.view, async |control| {
        let mut mesh = control.mesh.clone();
        control
            .answer(mesh.get_mesh(GetMeshRequest {}))
            .await
            .map(Answer::from)
    })
}

#[derive(Debug, Serialize)]
struct Answer {
    version: String,
    store: String,
    revision: u64,
    replica: String,
    services: u32,
    instances: u32,
    healthy_instances: u32,
    clients: u32,
    nodes: Vec<Node>,
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
}

impl From<Mesh> for Answer {
    fn from(mesh: Mesh) -> Self {
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
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            version: mesh.version,
            store: mesh.store,
            revision: mesh.revision,
            replica: mesh.replica,
            services: mesh.services,
            instances: mesh.instances,
            healthy_instances: mesh.healthy_instances,
            clients: mesh.clients,
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
            "VERSION",
        ]);
        for node in &self.nodes {
            let locality = match (node.region.as_str(), node.zone.as_str()) {
                ("", "") => String::new(),
                (region, zone) => format!("{region}/{zone}"),
            };
            table.row(vec![
                node.name.clone(),
                if node.alive { "alive" } else { "lapsed" }.to_owned(),
                node.advertise.clone(),
                locality,
                node.instances.to_string(),
                node.epoch.to_string(),
                node.version.clone(),
            ]);
        }
        let alive = self.nodes.iter().filter(|node| node.alive).count();
        format!(
            "Heddle {}, store {} at revision {}, replica {}\n\
             {alive} of {} alive, {}, {} of {} healthy, {}\n\n{table}",
            self.version,
            self.store,
            self.revision,
            self.replica,
            count(self.nodes.len(), "node"),
            count(self.services, "service"),
            self.healthy_instances,
            count(self.instances, "instance"),
            count(self.clients, "xDS client"),
        )
    }
}

fn count(number: impl TryInto<u64>, what: &str) -> String {
    match number.try_into() {
        Ok(1) => format!("1 {what}"),
        Ok(number) => format!("{number} {what}s"),
        Err(_) => format!("many {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use heddle_proto::status::v1::{Mesh, Node};

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
            ..Node::default()
        };
        Answer::from(Mesh {
            version: "0.1.0".into(),
            store: "embedded".into(),
            revision: 42,
            nodes: vec![node("b", false), node("a", true)],
            services: 1,
            instances: 4,
            healthy_instances: 2,
            clients: 2,
            replica: "r1".into(),
            ..Mesh::default()
        })
    }

    #[test]
    fn the_table_says_it_at_a_glance() {
        assert_eq!(
            render(Format::Table, &mesh()).unwrap(),
            "Heddle 0.1.0, store embedded at revision 42, replica r1\n\
             1 of 2 nodes alive, 1 service, 2 of 4 instances healthy, 2 xDS clients\n\
             \n\
             NODE  STATE   INBOUND          LOCALITY  INSTANCES  EPOCH  VERSION\n\
             a     alive   127.0.0.1:15008  eu/a      2          3      0.1.0\n\
             b     lapsed  127.0.0.1:15008  -         2          3      0.1.0\n"
        );
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
    }
}
