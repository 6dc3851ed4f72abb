use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        admin::v3::ClientResourceStatus,
        service::{
            discovery::v3::DeltaDiscoveryRequest,
            status::v3::{ClientConfig, ConfigStatus},
        },
        r#type::matcher::v3::{
            NodeMatcher, RegexMatcher, StringMatcher, StructMatcher, string_matcher::MatchPattern,
        },
    },
    google::rpc::Status,
};

use super::{
    filter::{InvalidMatcher, NodeFilter},
    merge::Merge,
    parts::{Part, Parts},
    pieces::{MAX_CONTENT_BYTES, PIECE_BYTES, Piece, Pieces},
};
use crate::{
    snapshot::{Audience, Kind, Resource, fixture::Mesh},
    xds::{
        ClientState, ClientView, Delta, NodeInfo,
        subscription::{ResourceStatus, State},
    },
};

fn info(id: &str, role: &str) -> NodeInfo {
    NodeInfo {
        id: id.to_owned(),
        role: role.to_owned(),
        audience: Audience::Proxy,
        outbound: None,
        revision: 0,
        process_id: String::new(),
    }
}

fn request_names(state: &mut ClientState, names: &[&str], nonce: &str, error: Option<&str>) {
    let request = DeltaDiscoveryRequest {
        type_url: Kind::Endpoint.url().to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        error_detail: error.map(|message| Status {
            message: message.to_owned(),
            ..Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    state.on_request::<Delta>(Kind::Endpoint, &request).unwrap();
}

fn states(state: &ClientState) -> Vec<(String, State)> {
    let resource_statuses = state.subscription(Kind::Endpoint).resource_statuses();
    resource_statuses
        .iter()
        .map(|each| (each.name.to_string(), each.state.clone()))
        .collect()
}

#[test]
fn a_resource_is_requested_then_sent_then_acknowledged_or_rejected() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    let snapshot = mesh.snapshot();
    let mut state = ClientState::new(ClientView::new(Audience::Proxy), &snapshot);
    assert_eq!(states(&state), [], "it has requested nothing");

    let of = |users: State, none: State| {
        vec![
            ("none.default".to_owned(), none),
            ("users.default".to_owned(), users),
        ]
    };
    request_names(&mut state, &["users.default", "none.default"], "", None);
    assert_eq!(states(&state), of(State::Requested, State::Requested));

    let (_, first) = state.next::<Delta>(&snapshot).unwrap();
    assert_eq!(states(&state), of(State::Sent, State::Absent));

    request_names(&mut state, &[], &first.nonce, None);
    assert_eq!(states(&state), of(State::Acknowledged, State::Absent));
    let resource_statuses = state.subscription(Kind::Endpoint).resource_statuses();
    let users = resource_statuses.last().unwrap();
    let sent = snapshot.get(Kind::Endpoint, Audience::Proxy, "users.default");
    assert_eq!(users.version, sent.unwrap().version);
    assert!(Arc::ptr_eq(users.resource.as_ref().unwrap(), sent.unwrap()));

    mesh.put("a/users/1", "10.0.0.2:80");
    let snapshot = mesh.snapshot();
    state.observe(&snapshot);
    let (_, second) = state.next::<Delta>(&snapshot).unwrap();
    request_names(&mut state, &[], &second.nonce, Some("bad address"));
    let rejected = State::Rejected {
        version: snapshot
            .get(Kind::Endpoint, Audience::Proxy, "users.default")
            .unwrap()
            .version
            .to_string(),
        reason: "bad address".to_owned(),
    };
    assert_eq!(states(&state), of(rejected, State::Absent));
}

fn resource_status(name: &str, state: State) -> ResourceStatus {
    ResourceStatus {
        kind: Kind::Cluster,
        name: name.into(),
        version: "v1".into(),
        resource: None,
        state,
    }
}

#[test]
fn states_are_reported_in_the_terms_of_csds() {
    let rejected = State::Rejected {
        version: "7".to_owned(),
        reason: "no".to_owned(),
    };
    let resource_statuses = [
        resource_status("a", State::Requested),
        resource_status("b", State::Sent),
        resource_status("c", State::Absent),
        resource_status("d", State::Acknowledged),
        resource_status("e", rejected),
    ];
    let client = &whole(&info("p", "proxy"), &resource_statuses, true);
    let stock = &whole(&info("s", "grpc-go 1.75"), &[], true);
    let node = client.node.as_ref().unwrap();
    assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("p", ""));
    assert!(node.metadata.as_ref().unwrap().fields.contains_key("role"));
    assert_eq!(stock.node.as_ref().unwrap().user_agent_name, "grpc-go 1.75");
    let shown: Vec<_> = client
        .generic_xds_configs
        .iter()
        .map(|each| {
            (
                each.name.as_str(),
                each.client_status(),
                each.config_status(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("a", ClientResourceStatus::Requested, ConfigStatus::NotSent),
            ("b", ClientResourceStatus::Requested, ConfigStatus::Stale),
            (
                "c",
                ClientResourceStatus::DoesNotExist,
                ConfigStatus::NotSent
            ),
            ("d", ClientResourceStatus::Acked, ConfigStatus::Synced),
            ("e", ClientResourceStatus::Nacked, ConfigStatus::Error),
        ]
    );
    let error = client.generic_xds_configs[4].error_state.as_ref().unwrap();
    assert_eq!(
        (error.details.as_str(), error.version_info.as_str()),
        ("no", "7")
    );
    assert!(
        client.generic_xds_configs[..4]
            .iter()
            .all(|each| each.error_state.is_none())
    );
}

/// A client that fits into one piece.
fn whole(info: &NodeInfo, resource_statuses: &[ResourceStatus], contents: bool) -> ClientConfig {
    let mut pieces = Pieces::new(info, resource_statuses.to_vec(), contents);
    let piece = pieces.next().unwrap();
    assert!(!piece.continued);
    assert_eq!(pieces.next(), None);
    piece.client
}

#[test]
fn contents_come_unless_they_are_left_out_or_longer_than_an_answer_has_room_for() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    let snapshot = mesh.snapshot();
    let resource = snapshot.get(Kind::Cluster, Audience::Proxy, "users.default");
    let content = |resource: &Arc<Resource>, contents: bool| {
        let mut of = resource_status("users.default", State::Acknowledged);
        of.resource = Some(Arc::clone(resource));
        whole(&info("p", "proxy"), &[of], contents).generic_xds_configs[0]
            .xds_config
            .clone()
    };
    let any = content(resource.unwrap(), true).unwrap();
    assert_eq!(any.type_url, Kind::Cluster.url());
    assert!(!any.value.is_empty());
    assert_eq!(content(resource.unwrap(), false), None);

    let of = |bytes: usize| {
        let (name, value) = ("users.default".into(), vec![0; bytes].into());
        Resource::with_version(Kind::Cluster, name, "v1".into(), value)
    };
    assert!(content(&of(MAX_CONTENT_BYTES - 1000), true).is_some());
    assert_eq!(content(&of(MAX_CONTENT_BYTES), true), None);
}

fn services(count: usize) -> Vec<ResourceStatus> {
    (0..count)
        .map(|n| resource_status(&format!("service-{n:04}.default"), State::Acknowledged))
        .collect()
}

/// The resources of each client of an answer; the parts of one client are joined.
fn names_by_client(pieces: impl IntoIterator<Item = Piece>) -> Vec<(String, Vec<String>)> {
    let mut clients: Vec<(String, Vec<String>)> = Vec::new();
    for piece in pieces {
        let names = piece.client.generic_xds_configs.iter();
        let names = names.map(|each| each.name.clone());
        if piece.continued {
            let last = clients.last_mut().unwrap();
            assert_eq!(last.0, piece.node_id());
            last.1.extend(names);
        } else {
            clients.push((piece.node_id().to_owned(), names.collect()));
        }
    }
    clients
}

#[test]
fn an_answer_is_parted_before_it_grows_past_its_limit() {
    use prost::Message as _;

    let resource_statuses = services(3000);
    let limit = 100_000;
    let mut parts = Parts::new(limit);
    let mut answers: Vec<Part> = Vec::new();
    let ids = ["a", "b", "b", "c"];
    for id in ids {
        for piece in Pieces::new(&info(id, "proxy"), resource_statuses.clone(), true) {
            assert!(piece.client.encoded_len() <= PIECE_BYTES);
            answers.extend(parts.add(piece));
        }
    }
    answers.push(parts.take());
    assert!(answers.len() > 5, "{}", answers.len());
    for answer in &answers {
        let bytes = answer.response.encoded_len();
        assert!(bytes <= limit, "{bytes}");
    }
    let names: Vec<_> = resource_statuses
        .iter()
        .map(|each| each.name.to_string())
        .collect();
    let expected = ids.map(|id| (id.to_owned(), names.clone()));
    let pieces = answers.into_iter().flat_map(Part::into_pieces);
    assert_eq!(
        names_by_client(pieces),
        expected,
        "each resource of each once"
    );
}

#[test]
fn a_client_in_several_pieces_is_one_in_an_answer_that_has_room_for_it() {
    let mut parts = Parts::new(3 << 20);
    for id in ["a", "b"] {
        for piece in Pieces::new(&info(id, "proxy"), services(3000), true) {
            assert_eq!(parts.add(piece), None);
        }
    }
    let clients = parts.take().response.config;
    let sizes: Vec<_> = clients
        .iter()
        .map(|client| client.generic_xds_configs.len())
        .collect();
    assert_eq!(sizes, [3000, 3000]);
}

/// A piece of the client with this id; the name of its resource shows its source.
fn piece(id: &str, name: &str, continued: bool) -> Piece {
    Piece {
        client: whole(
            &info(id, "proxy"),
            &[resource_status(name, State::Acknowledged)],
            true,
        ),
        continued,
    }
}

#[test]
fn sorted_answers_are_merged_and_no_client_is_torn_by_another_of_its_name() {
    let sources = [
        vec![piece("b", "r1", false), piece("d", "r1", false)],
        vec![
            piece("a", "r2", false),
            piece("b", "r2", false),
            piece("b", "r2-more", true),
            piece("b", "r2-again", false),
        ],
        vec![piece("b", "r3", false), piece("b", "r3-more", true)],
        vec![],
    ];
    let mut sources = sources.map(Vec::into_iter);
    let mut merge = Merge::new(sources.len());
    assert_eq!(merge.pop(), None, "nothing is known yet");
    let mut merged = Vec::new();
    loop {
        for (number, source) in sources.iter_mut().enumerate() {
            if merge.is_missing(number) {
                assert_eq!(merge.pop(), None, "it could be the first");
                merge.put(number, source.next());
            }
        }
        let Some(next) = merge.pop() else { break };
        merged.push(next);
    }
    assert_eq!(merge.pop(), None);
    let of = |id: &str, names: &[&str]| {
        let names = names.iter().map(ToString::to_string);
        (id.to_owned(), names.collect::<Vec<_>>())
    };
    assert_eq!(
        names_by_client(merged),
        [
            of("a", &["r2"]),
            of("b", &["r1"]),
            of("b", &["r2", "r2-more"]),
            of("b", &["r2-again"]),
            of("b", &["r3", "r3-more"]),
            of("d", &["r1"]),
        ]
    );
}

fn matcher(pattern: Option<MatchPattern>, ignore_case: bool) -> NodeMatcher {
    NodeMatcher {
        node_id: Some(StringMatcher {
            ignore_case,
            match_pattern: pattern,
        }),
        node_metadatas: Vec::new(),
    }
}

#[test]
fn clients_are_chosen_by_node_id() {
    let exact = |text: &str| MatchPattern::Exact(text.to_owned());
    let prefix = MatchPattern::Prefix("Node-".to_owned());
    let suffix = MatchPattern::Suffix("-1".to_owned());
    let contains = MatchPattern::Contains("de-".to_owned());
    for (pattern, ignore_case, id, expected) in [
        (exact("node-1"), false, "node-1", true),
        (exact("node-1"), false, "node-12", false),
        (exact("NODE-1"), true, "node-1", true),
        (prefix.clone(), false, "node-1", false),
        (prefix, true, "NODE-1", true),
        (suffix, false, "node-1", true),
        (contains, false, "node-1", true),
    ] {
        let filter = NodeFilter::parse(vec![matcher(Some(pattern.clone()), ignore_case)]).unwrap();
        assert_eq!(filter.is_about(id), expected, "{pattern:?} {id}");
    }
    assert!(NodeFilter::parse(Vec::new()).unwrap().is_about("anything"));
    let either = vec![
        matcher(Some(exact("a")), false),
        matcher(Some(exact("b")), false),
    ];
    let either = NodeFilter::parse(either).unwrap();
    assert!(either.is_about("a") && either.is_about("b") && !either.is_about("c"));
}

#[test]
fn a_matcher_that_cannot_be_honoured_is_refused() {
    let metadata = NodeMatcher {
        node_metadatas: vec![StructMatcher::default()],
        ..matcher(Some(MatchPattern::Exact("a".to_owned())), false)
    };
    let regex = MatchPattern::SafeRegex(RegexMatcher::default());
    let long = MatchPattern::Contains("x".repeat(1000));
    for (matcher, expected) in [
        (metadata, InvalidMatcher::Metadata(0)),
        (NodeMatcher::default(), InvalidMatcher::NoNodeId(0)),
        (matcher(None, false), InvalidMatcher::Pattern(0)),
        (matcher(Some(regex), false), InvalidMatcher::Pattern(0)),
        (matcher(Some(long), false), InvalidMatcher::TooLong(0)),
    ] {
        assert_eq!(NodeFilter::parse(vec![matcher]).unwrap_err(), expected);
    }
    let many = vec![matcher(None, false); 1001];
    assert_eq!(
        NodeFilter::parse(many).unwrap_err(),
        InvalidMatcher::TooMany
    );
}
