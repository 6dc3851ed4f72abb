//! Clients as the protocol describes them, without a transport: they keep what they are sent and answer on request.

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DiscoveryRequest, Resource as WrappedResource,
    },
    google::{protobuf::Any, rpc::Status},
};
use prost::Message as _;

use super::super::{
    wire::{DeltaDiscoveryResponse, DiscoveryResponse},
    *,
};
use crate::snapshot::{Audience, Kind, Snapshot, fixture::Mesh};

pub(super) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn rejection(text: &str) -> Option<Status> {
    Some(Status {
        code: 3,
        message: text.to_owned(),
        details: Vec::new(),
    })
}

/// A delta client that keeps what it is sent.
pub(super) struct DeltaClient {
    pub(super) state: ClientState,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) resources: BTreeMap<(Kind, String), String>,
    pub(super) nonces: BTreeMap<Kind, String>,
    pub(super) log: Vec<String>,
}

impl DeltaClient {
    pub(super) fn new(audience: Audience, snapshot: Arc<Snapshot>) -> Self {
        Self {
            state: ClientState::new(ClientView::new(audience), &snapshot),
            snapshot,
            resources: BTreeMap::new(),
            nonces: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn subscribe(&mut self, kind: Kind, add: &[&str], take: &[&str]) -> &mut Self {
        self.request(
            kind,
            &DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                resource_names_subscribe: strings(add),
                resource_names_unsubscribe: strings(take),
                ..DeltaDiscoveryRequest::default()
            },
        );
        self
    }

    pub(super) fn request(
        &mut self,
        kind: Kind,
        request: &DeltaDiscoveryRequest,
    ) -> RequestOutcome {
        self.state.on_request::<Delta>(kind, request).unwrap()
    }

    pub(super) fn see(&mut self, snapshot: &Arc<Snapshot>) -> &mut Self {
        self.snapshot = Arc::clone(snapshot);
        self.state.observe(snapshot);
        self
    }

    /// Takes all responses that may be sent, without answering them.
    pub(super) fn pump(&mut self) -> Vec<(Kind, DeltaDiscoveryResponse)> {
        let mut responses = Vec::new();
        while let Some((kind, response)) = self.state.next::<Delta>(&self.snapshot) {
            assert!(
                self.nonces.insert(kind, response.nonce.clone()).is_none(),
                "one response per type at a time"
            );
            let mut parts = Vec::new();
            for resource in &response.resources {
                let resource = WrappedResource::decode(resource.clone()).unwrap();
                self.resources
                    .insert((kind, resource.name.clone()), resource.version);
                parts.push(format!("+{}", resource.name));
            }
            for name in &response.removed_resources {
                self.resources.remove(&(kind, name.clone()));
                parts.push(format!("-{name}"));
            }
            self.log.push(
                format!("{} {}", kind.word(), parts.join(" "))
                    .trim()
                    .to_owned(),
            );
            responses.push((kind, response));
        }
        responses
    }

    pub(super) fn answer(&mut self, kind: Kind, reason: Option<&str>) -> RequestOutcome {
        let nonce = self.nonces.remove(&kind).expect("a response is under way");
        self.request(
            kind,
            &DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                response_nonce: nonce,
                error_detail: reason.and_then(rejection),
                ..DeltaDiscoveryRequest::default()
            },
        )
    }

    pub(super) fn ack(&mut self, kind: Kind) -> &mut Self {
        assert_eq!(self.answer(kind, None), RequestOutcome::Acknowledged);
        self
    }

    /// Acknowledges everything until nothing more is sent; returns what was sent.
    pub(super) fn settle(&mut self) -> Vec<String> {
        self.log.clear();
        loop {
            self.pump();
            let Some(kind) = self.nonces.keys().next().copied() else {
                return std::mem::take(&mut self.log);
            };
            self.ack(kind);
        }
    }

    pub(super) fn names(&self, kind: Kind) -> Vec<&str> {
        self.resources
            .keys()
            .filter(|(held, _)| *held == kind)
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

/// A state-of-the-world client that keeps what it is sent.
pub(super) struct SotwClient {
    pub(super) state: ClientState,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) wanted: BTreeMap<Kind, Vec<String>>,
    pub(super) resources: BTreeMap<Kind, BTreeMap<String, Vec<u8>>>,
    pub(super) versions: BTreeMap<Kind, String>,
    pub(super) nonces: BTreeMap<Kind, String>,
    pub(super) unanswered: BTreeMap<Kind, String>,
}

impl SotwClient {
    pub(super) fn new(audience: Audience, snapshot: Arc<Snapshot>) -> Self {
        Self {
            state: ClientState::new(ClientView::new(audience), &snapshot),
            snapshot,
            wanted: BTreeMap::new(),
            resources: BTreeMap::new(),
            versions: BTreeMap::new(),
            nonces: BTreeMap::new(),
            unanswered: BTreeMap::new(),
        }
    }

    pub(super) fn subscribe(&mut self, kind: Kind, names: &[&str]) -> RequestOutcome {
        self.wanted.insert(kind, strings(names));
        self.request(kind, None)
    }

    pub(super) fn request(&mut self, kind: Kind, error: Option<&str>) -> RequestOutcome {
        let request = DiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names: self.wanted.get(&kind).cloned().unwrap_or_default(),
            version_info: self.versions.get(&kind).cloned().unwrap_or_default(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            error_detail: error.and_then(rejection),
            ..DiscoveryRequest::default()
        };
        self.state.on_request::<Sotw>(kind, &request).unwrap()
    }

    pub(super) fn see(&mut self, snapshot: &Arc<Snapshot>) -> &mut Self {
        self.snapshot = Arc::clone(snapshot);
        self.state.observe(snapshot);
        self
    }

    pub(super) fn pump(&mut self) -> Vec<(Kind, Vec<String>, DiscoveryResponse)> {
        let mut responses = Vec::new();
        while let Some((kind, response)) = self.state.next::<Sotw>(&self.snapshot) {
            assert!(
                self.unanswered
                    .insert(kind, response.version_info.clone())
                    .is_none()
            );
            self.nonces.insert(kind, response.nonce.clone());
            let mut names = Vec::new();
            let held = self.resources.entry(kind).or_default();
            if kind.whole_state() {
                held.clear();
            }
            for resource in &response.resources {
                let any = Any::decode(resource.clone()).unwrap();
                let name = name_of(kind, &any.value);
                held.insert(name.clone(), any.value);
                names.push(name);
            }
            responses.push((kind, names, response));
        }
        responses
    }

    pub(super) fn answer(&mut self, kind: Kind, reason: Option<&str>) -> RequestOutcome {
        let version = self
            .unanswered
            .remove(&kind)
            .expect("a response is under way");
        if reason.is_none() {
            self.versions.insert(kind, version);
        }
        self.request(kind, reason)
    }

    pub(super) fn settle(&mut self) -> Vec<String> {
        let mut log = Vec::new();
        loop {
            for (kind, names, _) in self.pump() {
                log.push(
                    format!("{} {}", kind.word(), names.join(" "))
                        .trim()
                        .to_owned(),
                );
            }
            let Some(kind) = self.unanswered.keys().next().copied() else {
                return log;
            };
            assert_eq!(self.answer(kind, None), RequestOutcome::Acknowledged);
        }
    }
}

/// Every type that is served has the name in field 1.
pub(super) fn name_of(_: Kind, value: &[u8]) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(value).unwrap().name
}

pub(super) fn two_services() -> (Mesh, Arc<Snapshot>) {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/orders/1", "10.0.0.2:80");
    let snapshot = mesh.snapshot();
    (mesh, snapshot)
}
