//! Who a client is, from the node of its first request: a plain value, or an error that names the wrong field.

use std::net::SocketAddr;

use envoy_types::pb::{
    envoy::config::core::v3::{Node, node::UserAgentVersionType},
    google::protobuf::value,
};

use prost::Message as _;

use crate::snapshot::Audience;

/// Node metadata with which an Envoy asks for the socket listener `heddle/outbound`; its value is "IP:port".
pub const OUTBOUND_KEY: &str = "heddle.outbound";
/// Node metadata that marks our own proxies; its value is "proxy".
const ROLE_KEY: &str = "role";
/// Node metadata in which a reconnecting delta client sends the newest revision that it saw, as decimal text (delta
/// requests have no field for it).
const REVISION_KEY: &str = "revision";
/// Node metadata of our own proxies: the id of the process. Two processes of one node may be connected at a time.
const PROCESS_KEY: &str = "process";
/// Node metadata of our own proxies: "draining" once the process is stopping. A later request may carry it.
const STATE_KEY: &str = "state";

/// Longest node id that is kept; longer ones are cut.
const MAX_ID_BYTES: usize = 256;

/// Largest node: Envoy lists all its extensions in it, some tens of KiB.
const MAX_NODE_BYTES: usize = 512 << 10;

/// A client as its first request describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: String,
    /// "proxy" for our own proxies, else the client's user agent.
    pub role: String,
    pub audience: Audience,
    pub outbound: Option<SocketAddr>,
    /// The newest revision that it saw; 0 if unknown.
    pub revision: u64,
    /// The process of one of our own proxies; empty if unknown.
    pub process_id: String,
}

/// What is wrong with a node.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    #[error("the first request of a stream must carry the node")]
    Missing,
    #[error("node.id is empty: set an id in the client's bootstrap")]
    NoId,
    #[error("the node has {0} bytes; at most {MAX_NODE_BYTES} are allowed: shorten its metadata")]
    TooLarge(usize),
    #[error(
        "node.id was \"{was}\" and is \"{is}\" now: a stream belongs to one node, open a new one"
    )]
    Changed { was: String, is: String },
    #[error(
        "node.metadata[\"{OUTBOUND_KEY}\"] is \"{0}\"; it must be \"IP:port\", for example \"127.0.0.1:15001\""
    )]
    Outbound(String),
    #[error("node.metadata[\"{REVISION_KEY}\"] is \"{0}\"; it must be a decimal number")]
    Revision(String),
}

impl NodeInfo {
    pub fn parse(node: Option<&Node>, local: bool) -> Result<Self, NodeError> {
        let node = node.ok_or(NodeError::Missing)?;
        if node.id.is_empty() {
            return Err(NodeError::NoId);
        }
        if node.encoded_len() > MAX_NODE_BYTES {
            return Err(NodeError::TooLarge(node.encoded_len()));
        }
        let proxy = metadata(node, ROLE_KEY) == Some("proxy");
        let outbound = match metadata(node, OUTBOUND_KEY) {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| NodeError::Outbound(cut(text, 64).to_owned()))?,
            ),
            None => None,
        };
        let revision = match metadata(node, REVISION_KEY) {
            Some(text) => text
                .parse()
                .map_err(|_| NodeError::Revision(cut(text, 64).to_owned()))?,
            None => 0,
        };
        Ok(Self {
            id: cut(&node.id, MAX_ID_BYTES).to_owned(),
            role: if proxy {
                "proxy".to_owned()
            } else {
                user_agent(node)
            },
            audience: match (proxy, local) {
                (true, _) => Audience::Proxy,
                (false, true) => Audience::DirectLocal,
                (false, false) => Audience::DirectRemote,
            },
            outbound,
            revision,
            process_id: cut(metadata(node, PROCESS_KEY).unwrap_or_default(), 64).to_owned(),
        })
    }
}

/// Whether a request says that the process is stopping.
pub(super) fn says_draining(node: Option<&Node>) -> bool {
    node.is_some_and(|node| metadata(node, STATE_KEY) == Some("draining"))
}

impl NodeInfo {
    /// A later request may repeat the node or leave it out.
    pub(super) fn check_same(&self, later: Option<&Node>) -> Result<(), NodeError> {
        let id = later.map_or("", |node| node.id.as_str());
        if id.is_empty() || cut(id, MAX_ID_BYTES) == self.id {
            return Ok(());
        }
        Err(NodeError::Changed {
            was: self.id.clone(),
            is: cut(id, MAX_ID_BYTES).to_owned(),
        })
    }
}

fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

fn user_agent(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            build.version.as_ref().map_or_else(String::new, |version| {
                format!(
                    "{}.{}.{}",
                    version.major_number, version.minor_number, version.patch
                )
            })
        }
        None => String::new(),
    };
    cut(
        format!("{} {version}", node.user_agent_name).trim(),
        MAX_ID_BYTES,
    )
    .to_owned()
}

/// At most `max` bytes of a text, cut between two characters.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}
