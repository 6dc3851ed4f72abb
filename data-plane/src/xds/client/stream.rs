//! One connection of the delta stream: what is subscribed, and who waits for which descriptors. Input: responses.
//! Output: requests. `resources` has the state of the mesh.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Locality, Node, node::UserAgentVersionType},
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc::Status as RpcStatus,
    },
};
use prost::bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Code;

use super::{ClientIdentity, MAX_WANTED, OPEN_TIMEOUT};
use crate::xds::{
    ASSIGNMENT, CLUSTER, INDEX, SCHEMA,
    demand::Demand,
    resources::{Applied, Resources},
    schemas::Wanted,
    translate,
};

/// One connection's state.
pub(super) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// Services whose clusters and endpoints are subscribed on this stream.
    requested: BTreeSet<String>,
    /// Callers that wait for descriptors, by hash.
    wanted: BTreeMap<String, Vec<oneshot::Sender<Option<Bytes>>>>,
}

impl Stream {
    pub(super) fn new(requests: mpsc::Sender<DeltaDiscoveryRequest>) -> Self {
        Self {
            requests,
            requested: BTreeSet::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Subscribes to the names of all services, and to clusters and endpoints of those in demand. Only the first
    /// request carries the node. The versions this proxy has are listed, so that the answer is the difference.
    pub(super) fn first_questions(
        &mut self,
        asker: &ClientIdentity,
        seen: u64,
        resources: &Resources,
        demand: &Demand,
    ) -> Result<(), String> {
        let mut first = question(INDEX, vec!["*".to_owned()], resources.versions(INDEX));
        first.node = Some(node(asker, seen));
        let mut questions = vec![first];
        self.requested = demand.names().cloned().collect();
        // A first request without names would be a wildcard subscription.
        if !self.requested.is_empty() {
            for kind in [CLUSTER, ASSIGNMENT] {
                let names = self.requested.iter().cloned().collect();
                questions.push(question(kind, names, resources.versions(kind)));
            }
        }
        for one in questions {
            self.requests.try_send(one).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Reports that this process is stopping: a request without names that carries the node again.
    pub(super) async fn send_draining(&self, asker: &ClientIdentity) -> Result<(), String> {
        let mut request = question(INDEX, Vec::new(), HashMap::new());
        let mut node = node(asker, 0);
        if let Some(metadata) = &mut node.metadata {
            metadata.fields.insert("state".to_owned(), word("draining"));
        }
        request.node = Some(node);
        self.send(request).await
    }

    /// ACK, or NACK with the reason of each rejected resource.
    pub(super) async fn answer(
        &self,
        response: &DeltaDiscoveryResponse,
        faults: &[String],
    ) -> Result<(), String> {
        let error_detail = (!faults.is_empty()).then(|| RpcStatus {
            code: Code::InvalidArgument.into(),
            // Too many faults would not fit; the first ones are enough.
            message: faults.join("; ").chars().take(4000).collect(),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    /// Subscribes to clusters and endpoints of the services that are newly in demand, and unsubscribes from the rest.
    pub(super) async fn follow(&mut self, demand: &Demand) -> Result<(), String> {
        let new: Vec<String> = demand
            .names()
            .filter(|name| !self.requested.contains(*name))
            .cloned()
            .collect();
        let gone: Vec<String> = self
            .requested
            .iter()
            .filter(|name| !demand.wants(name))
            .cloned()
            .collect();
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        for name in &gone {
            self.requested.remove(name);
        }
        self.requested.extend(new.iter().cloned());
        for kind in [CLUSTER, ASSIGNMENT] {
            let mut request = question(kind, new.clone(), HashMap::new());
            request.resource_names_unsubscribe = gone.clone();
            self.send(request).await?;
        }
        Ok(())
    }

    pub(super) async fn subscribe(&mut self, wanted: Wanted) -> Result<(), String> {
        let Wanted { sha256, answer } = wanted;
        self.wanted
            .retain(|_, waiting| waiting.iter().any(|w| !w.is_closed()));
        if self.wanted.len() >= MAX_WANTED {
            let _ = answer.send(None);
            return Ok(());
        }
        let waiting = self.wanted.entry(sha256.clone()).or_default();
        waiting.push(answer);
        if waiting.len() > 1 {
            return Ok(());
        }
        self.send(question(SCHEMA, vec![sha256], HashMap::new()))
            .await
    }

    pub(super) fn take_schemas(&mut self, response: &DeltaDiscoveryResponse) -> Applied {
        let mut applied = Applied::default();
        for resource in &response.resources {
            let bytes = resource
                .resource
                .as_ref()
                .map(|any| Bytes::copy_from_slice(&any.value))
                .unwrap_or_default();
            let found = translate::descriptors(&resource.name, &bytes);
            if let Err(fault) = &found {
                applied.faults.push(format!("{}: {fault}", resource.name));
            }
            self.send_wanted(&resource.name, found.ok().as_ref());
        }
        for name in &response.removed_resources {
            self.send_wanted(name, None);
        }
        applied
    }

    fn send_wanted(&mut self, sha256: &str, bytes: Option<&Bytes>) {
        for answer in self.wanted.remove(sha256).unwrap_or_default() {
            let _ = answer.send(bytes.cloned());
        }
    }

    /// Unsubscribes from descriptors that have arrived: content named by its hash never changes.
    pub(super) async fn release_schemas(
        &self,
        response: &DeltaDiscoveryResponse,
    ) -> Result<(), String> {
        let names = response.resources.iter().map(|r| r.name.clone());
        let gone = names
            .chain(response.removed_resources.iter().cloned())
            .collect();
        let mut request = question(SCHEMA, Vec::new(), HashMap::new());
        request.resource_names_unsubscribe = gone;
        self.send(request).await
    }

    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), String> {
        match timeout(OPEN_TIMEOUT, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("it ended the stream".into()),
            Err(_) => Err(format!("it has read nothing for {OPEN_TIMEOUT:?}")),
        }
    }
}

fn question(
    type_url: &str,
    subscribe: Vec<String>,
    held: HashMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: subscribe,
        initial_resource_versions: held,
        ..DeltaDiscoveryRequest::default()
    }
}

fn word(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

/// `seen` is the newest revision that this proxy knows; a replica that is behind it waits or refuses.
pub(in crate::xds) fn node(asker: &ClientIdentity, seen: u64) -> Node {
    let fields = [
        ("role".to_owned(), word("proxy")),
        ("node".to_owned(), word(&asker.node)),
        ("process".to_owned(), word(&asker.process_id)),
        ("revision".to_owned(), word(&seen.to_string())),
    ]
    .into_iter()
    .collect();
    Node {
        id: asker.node.clone(),
        metadata: Some(Struct { fields }),
        locality: Some(Locality {
            region: asker.region.clone(),
            zone: asker.zone.clone(),
            sub_zone: String::new(),
        }),
        user_agent_name: "heddle-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..Node::default()
    }
}
