//! The responses as they are sent. They have the fields of `envoy.service.discovery.v3`, but their resources are bytes
//! that were encoded before, so that a thousand streams share them. (On the wire a repeated message and repeated bytes
//! are the same.)

use bytes::Bytes;

/// `envoy.config.core.v3.ControlPlane`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ControlPlane {
    #[prost(string, tag = "1")]
    pub identifier: String,
}

impl ControlPlane {
    #[must_use]
    pub fn ours() -> Self {
        Self {
            identifier: concat!("heddle-control/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// `envoy.service.discovery.v3.DiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Each a `google.protobuf.Any`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(message, optional, tag = "6")]
    pub control_plane: Option<ControlPlane>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Each an `envoy.service.discovery.v3.Resource`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}
