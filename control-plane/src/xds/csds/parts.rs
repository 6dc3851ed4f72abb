//! Answers of bounded size. In come clients with what they hold, out go responses that end before they grow past a
//! limit; a client may be continued in the next one. Pure.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{
        admin::v3::{ClientResourceStatus, UpdateFailureState},
        config::core::v3::Node,
        service::status::v3::{
            ClientConfig, ClientStatusResponse, ConfigStatus, client_config::GenericXdsConfig,
        },
    },
    google::protobuf::{Any, Struct, Value, value},
};
use prost::Message as _;

use super::holding::{Holding, State};
use crate::xds::NodeInfo;

/// A part of an answer that is as long as it may be is sent, and the next one begun.
pub(super) struct Parts {
    limit: usize,
    contents: bool,
    part: ClientStatusResponse,
    bytes: usize,
}

impl Parts {
    /// `contents`: the resources themselves too.
    pub(super) fn new(limit: usize, contents: bool) -> Self {
        Self {
            limit,
            contents,
            part: ClientStatusResponse::default(),
            bytes: 0,
        }
    }

    /// Adds a client; gives the parts that are full.
    pub(super) fn add(
        &mut self,
        info: &NodeInfo,
        holdings: &[Holding],
    ) -> Vec<ClientStatusResponse> {
        let mut full = Vec::new();
        let node = node(info);
        let node_bytes = node.encoded_len() + FRAME_BYTES;
        self.begin(node.clone(), node_bytes, &mut full);
        for holding in holdings {
            let config = self.describe(holding);
            let bytes = config.encoded_len() + FRAME_BYTES;
            if self.bytes + bytes > self.limit {
                full.push(self.take());
                self.begin(node.clone(), node_bytes, &mut full);
            }
            self.bytes += bytes;
            if let Some(client) = self.part.config.last_mut() {
                client.generic_xds_configs.push(config);
            }
        }
        full
    }

    /// What is left.
    pub(super) fn take(&mut self) -> ClientStatusResponse {
        self.bytes = 0;
        std::mem::take(&mut self.part)
    }

    fn begin(&mut self, node: Node, bytes: usize, full: &mut Vec<ClientStatusResponse>) {
        if self.bytes + bytes > self.limit && !self.part.config.is_empty() {
            full.push(self.take());
        }
        self.bytes += bytes;
        self.part.config.push(ClientConfig {
            node: Some(node),
            ..ClientConfig::default()
        });
    }

    fn describe(&self, holding: &Holding) -> GenericXdsConfig {
        let (client, config) = match &holding.state {
            State::Requested => (ClientResourceStatus::Requested, ConfigStatus::NotSent),
            State::Sent => (ClientResourceStatus::Requested, ConfigStatus::Stale),
            State::Absent => (ClientResourceStatus::DoesNotExist, ConfigStatus::NotSent),
            State::Acknowledged => (ClientResourceStatus::Acked, ConfigStatus::Synced),
            State::Rejected { .. } => (ClientResourceStatus::Nacked, ConfigStatus::Error),
        };
        let error_state = match &holding.state {
            State::Rejected { version, reason } => Some(UpdateFailureState {
                details: reason.clone(),
                version_info: version.clone(),
                ..UpdateFailureState::default()
            }),
            _ => None,
        };
        let resource = holding.resource.as_ref().filter(|resource| {
            // One that no response has room for is shown without its content.
            self.contents && resource.size() < self.limit / 2
        });
        GenericXdsConfig {
            type_url: holding.kind.url().to_owned(),
            name: holding.name.to_string(),
            version_info: holding.version.to_string(),
            xds_config: resource.and_then(|resource| Any::decode(resource.any()).ok()),
            config_status: config as i32,
            client_status: client as i32,
            error_state,
            ..GenericXdsConfig::default()
        }
    }
}

/// Tags and lengths around one entry, at most.
const FRAME_BYTES: usize = 16;

fn node(info: &NodeInfo) -> Node {
    let ours = info.role == "proxy";
    let role = Value {
        kind: Some(value::Kind::StringValue(info.role.clone())),
    };
    Node {
        id: info.id.clone(),
        user_agent_name: if ours {
            String::new()
        } else {
            info.role.clone()
        },
        metadata: ours.then(|| Struct {
            fields: HashMap::from([("role".to_owned(), role)]),
        }),
        ..Node::default()
    }
}
