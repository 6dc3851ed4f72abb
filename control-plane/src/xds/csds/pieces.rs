//! One client in pieces of bounded size, in the terms of CSDS. Pieces are built one at a time: a client of 10,000
//! services is never kept as a whole. Pure.

use std::{collections::HashMap, iter::Peekable, vec};

use envoy_types::pb::{
    envoy::{
        admin::v3::{ClientResourceStatus, UpdateFailureState},
        config::core::v3::Node,
        service::status::v3::{ClientConfig, ConfigStatus, client_config::GenericXdsConfig},
    },
    google::protobuf::{Any, Struct, Value, value},
};
use prost::Message as _;

use crate::xds::{
    NodeInfo,
    subscription::{ResourceStatus, State},
};

/// A piece ends at this size. A single resource may be larger.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// A larger resource is shown without its content, whoever asks and whichever replica has it.
pub(super) const MAX_CONTENT_BYTES: usize = 1 << 20;
/// Most bytes of tags and lengths around one entry.
pub(super) const FRAME_BYTES: usize = 16;

/// A client or a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) client: ClientConfig,
    /// It continues the client of the piece before.
    pub(crate) continued: bool,
}

impl Piece {
    pub(super) fn node_id(&self) -> &str {
        self.client.node.as_ref().map_or("", |node| &node.id)
    }
}

/// The pieces of one client: at least one, even if it has nothing.
pub(super) struct Pieces {
    node: Node,
    resources: Peekable<vec::IntoIter<ResourceStatus>>,
    contents: bool,
    begun: bool,
}

impl Pieces {
    /// `contents`: include the resources themselves.
    pub(super) fn new(
        info: &NodeInfo,
        resource_statuses: Vec<ResourceStatus>,
        contents: bool,
    ) -> Self {
        Self {
            node: node(info),
            resources: resource_statuses.into_iter().peekable(),
            contents,
            begun: false,
        }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let continued = self.begun;
        if continued && self.resources.peek().is_none() {
            return None;
        }
        self.begun = true;
        let mut bytes = self.node.encoded_len() + FRAME_BYTES;
        let mut configs = Vec::new();
        while let Some(status) = self.resources.peek() {
            let config = describe(status, self.contents);
            bytes += config.encoded_len() + FRAME_BYTES;
            if bytes > PIECE_BYTES && !configs.is_empty() {
                break;
            }
            configs.push(config);
            self.resources.next();
        }
        let client = ClientConfig {
            node: Some(self.node.clone()),
            generic_xds_configs: configs,
            ..ClientConfig::default()
        };
        Some(Piece { client, continued })
    }
}

fn describe(status: &ResourceStatus, contents: bool) -> GenericXdsConfig {
    let (client, config) = match &status.state {
        State::Requested => (ClientResourceStatus::Requested, ConfigStatus::NotSent),
        State::Sent => (ClientResourceStatus::Requested, ConfigStatus::Stale),
        State::Absent => (ClientResourceStatus::DoesNotExist, ConfigStatus::NotSent),
        State::Acknowledged => (ClientResourceStatus::Acked, ConfigStatus::Synced),
        State::Rejected { .. } => (ClientResourceStatus::Nacked, ConfigStatus::Error),
    };
    let error_state = match &status.state {
        State::Rejected { version, reason } => Some(UpdateFailureState {
            details: reason.clone(),
            version_info: version.clone(),
            ..UpdateFailureState::default()
        }),
        _ => None,
    };
    let resource = status.resource.as_ref();
    let shown = resource.filter(|resource| contents && resource.size() < MAX_CONTENT_BYTES);
    GenericXdsConfig {
        type_url: status.kind.url().to_owned(),
        name: status.name.to_string(),
        version_info: status.version.to_string(),
        xds_config: shown.and_then(|resource| Any::decode(resource.any()).ok()),
        config_status: config as i32,
        client_status: client as i32,
        error_state,
        ..GenericXdsConfig::default()
    }
}

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
