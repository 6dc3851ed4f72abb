//! The delta protocol as far as a client needs it: messages of `envoy.service.discovery.v3` with only the fields used
//! here, so that a thousand clients in one process cost little. The content of a resource stays a slice of the received
//! bytes.

use std::collections::HashMap;

use bytes::Bytes;

pub(super) const PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
pub(super) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(super) const ENDPOINTS: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(super) const INDEX: &str = "type.googleapis.com/heddle.xds.v1.ServiceIndex";

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "3")]
    pub(super) metadata: Option<prost_types::Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) subscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    pub(super) initial_versions: HashMap<String, String>,
    #[prost(string, tag = "6")]
    pub(super) nonce: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    /// The `Any`, undecoded.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) content: Bytes,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

/// A proxy's node: it gets every instance.
pub(super) fn proxy(id: &str) -> Node {
    let role = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("proxy".to_owned())),
    };
    Node {
        id: id.to_owned(),
        metadata: Some(prost_types::Struct {
            fields: [("role".to_owned(), role)].into(),
        }),
    }
}
