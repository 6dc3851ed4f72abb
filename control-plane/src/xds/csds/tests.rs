use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        admin::v3::ClientResourceStatus,
        service::{
            discovery::v3::DeltaDiscoveryRequest,
            status::v3::{ClientStatusResponse, ConfigStatus},
        },
        r#type::matcher::v3::{
            NodeMatcher, RegexMatcher, StringMatcher, StructMatcher, string_matcher::MatchPattern,
        },
    },
    google::rpc::Status,
};

use super::{
    asked::{Asked, Unclear},
    holding::{Holding, State},
    parts::Parts,
};
use crate::{
    snapshot::{Audience, Kind, fixture::Mesh},
    xds::{Delta, Lens, NodeInfo, Session},
};

fn info(id: &str, role: &str) -> NodeInfo {
    NodeInfo {
        id: id.to_owned(),
        role: role.to_owned(),
        audience: Audience::Proxy,
        outbound: None,
        revision: 0,
    }
}

fn ask(session: &mut Session, names: &[&str], nonce: &str, error: Option<&str>) {
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
    session
        .on_request::<Delta>(Kind::Endpoint, &request)
        .unwrap();
}

fn states(session: &Session) -> Vec<(String, State)> {
    let holdings = session.subscription(Kind::Endpoint).holdings();
    holdings
        .iter()
        .map(|each| (each.name.to_string(), each.state.clone()))
        .collect()
}

#[test]
fn a_resource_is_requested_then_sent_then_acknowledged_or_rejected() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    let snapshot = mesh.snapshot();
    let mut session = Session::new(Lens::new(Audience::Proxy), &snapshot);
    assert_eq!(states(&session), [], "it has asked for nothing");

    let of = |users: State, none: State| {
        vec![
            ("none.default".to_owned(), none),
            ("users.default".to_owned(), users),
        ]
    };
    ask(&mut session, &["users.default", "none.default"], "", None);
    assert_eq!(states(&session), of(State::Requested, State::Requested));

    let (_, first) = session.next::<Delta>(&snapshot).unwrap();
    assert_eq!(states(&session), of(State::Sent, State::Absent));

    ask(&mut session, &[], &first.nonce, None);
    assert_eq!(states(&session), of(State::Acknowledged, State::Absent));
    let holdings = session.subscription(Kind::Endpoint).holdings();
    let users = holdings.last().unwrap();
    let sent = snapshot.get(Kind::Endpoint, Audience::Proxy, "users.default");
    assert_eq!(users.version, sent.unwrap().version);
    assert!(Arc::ptr_eq(users.resource.as_ref().unwrap(), sent.unwrap()));

    mesh.put("a/users/1", "10.0.0.2:80");
    let snapshot = mesh.snapshot();
    session.observe(&snapshot);
    let (_, second) = session.next::<Delta>(&snapshot).unwrap();
    ask(&mut session, &[], &second.nonce, Some("bad address"));
    let rejected = State::Rejected {
        version: snapshot
            .get(Kind::Endpoint, Audience::Proxy, "users.default")
            .unwrap()
            .version
            .to_string(),
        reason: "bad address".to_owned(),
    };
    assert_eq!(states(&session), of(rejected, State::Absent));
}

fn holding(name: &str, state: State) -> Holding {
    Holding {
        kind: Kind::Cluster,
        name: name.into(),
        version: "v1".into(),
        resource: None,
        state,
    }
}

#[test]
fn states_are_told_in_the_words_of_csds() {
    let rejected = State::Rejected {
        version: "7".to_owned(),
        reason: "no".to_owned(),
    };
    let holdings = [
        holding("a", State::Requested),
        holding("b", State::Sent),
        holding("c", State::Absent),
        holding("d", State::Acknowledged),
        holding("e", rejected),
    ];
    let mut parts = Parts::new(1 << 20, true);
    assert_eq!(parts.add(&info("p", "proxy"), &holdings), []);
    assert_eq!(parts.add(&info("s", "grpc-go 1.75"), &[]), []);
    let answer = parts.take();
    let [client, stock] = answer.config.as_slice() else {
        panic!("{answer:?}")
    };
    let node = client.node.as_ref().unwrap();
    assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("p", ""));
    assert!(node.metadata.as_ref().unwrap().fields.contains_key("role"));
    assert_eq!(stock.node.as_ref().unwrap().user_agent_name, "grpc-go 1.75");
    let told: Vec<_> = client
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
        told,
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

#[test]
fn contents_come_unless_they_are_left_out() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    let snapshot = mesh.snapshot();
    let resource = snapshot.get(Kind::Cluster, Audience::Proxy, "users.default");
    let mut of = holding("users.default", State::Acknowledged);
    of.resource = resource.cloned();
    let content = |contents: bool, limit: usize| {
        let mut parts = Parts::new(limit, contents);
        parts.add(&info("p", "proxy"), std::slice::from_ref(&of));
        parts.take().config[0].generic_xds_configs[0]
            .xds_config
            .clone()
    };
    let any = content(true, 1 << 20).unwrap();
    assert_eq!(any.type_url, Kind::Cluster.url());
    assert!(!any.value.is_empty());
    assert_eq!(content(false, 1 << 20), None);
    assert_eq!(content(true, 100), None, "longer than an answer may be");
}

#[test]
fn an_answer_is_parted_before_it_grows_past_its_limit() {
    use prost::Message as _;

    let holdings: Vec<_> = (0..1000)
        .map(|n| holding(&format!("service-{n:04}.default"), State::Acknowledged))
        .collect();
    let limit = 10_000;
    let mut parts = Parts::new(limit, true);
    let mut answers: Vec<ClientStatusResponse> = Vec::new();
    for id in ["a", "b", "c"] {
        answers.extend(parts.add(&info(id, "proxy"), &holdings));
    }
    answers.push(parts.take());
    assert!(answers.len() > 20, "{}", answers.len());
    for answer in &answers {
        assert!(answer.encoded_len() <= limit, "{}", answer.encoded_len());
    }
    for id in ["a", "b", "c"] {
        let names: Vec<_> = answers
            .iter()
            .flat_map(|answer| &answer.config)
            .filter(|client| client.node.as_ref().unwrap().id == id)
            .flat_map(|client| &client.generic_xds_configs)
            .map(|each| each.name.clone())
            .collect();
        let expected: Vec<_> = holdings.iter().map(|each| each.name.to_string()).collect();
        assert_eq!(names, expected, "{id}: each resource once");
    }
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
        let asked = Asked::parse(vec![matcher(Some(pattern.clone()), ignore_case)]).unwrap();
        assert_eq!(asked.is_about(id), expected, "{pattern:?} {id}");
    }
    assert!(Asked::parse(Vec::new()).unwrap().is_about("anything"));
    let either = vec![
        matcher(Some(exact("a")), false),
        matcher(Some(exact("b")), false),
    ];
    let either = Asked::parse(either).unwrap();
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
        (metadata, Unclear::Metadata(0)),
        (NodeMatcher::default(), Unclear::NoNodeId(0)),
        (matcher(None, false), Unclear::Pattern(0)),
        (matcher(Some(regex), false), Unclear::Pattern(0)),
        (matcher(Some(long), false), Unclear::TooLong(0)),
    ] {
        assert_eq!(Asked::parse(vec![matcher]).unwrap_err(), expected);
    }
    let many = vec![matcher(None, false); 1001];
    assert_eq!(Asked::parse(many).unwrap_err(), Unclear::TooMany);
}
