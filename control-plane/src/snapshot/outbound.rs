//! What makes a stock Envoy an outbound proxy: the socket listener `heddle/outbound`, at the address that its node
//! metadata asks for, and its routes. They route as our own proxy's `outbound` does: an authority names a service or
//! nothing, and only an IP literal or `localhost` stands for the proto service in the path.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use envoy_types::{
    pb::{
        envoy::{
            config::{
                listener::v3::{Filter, FilterChain, Listener, filter},
                route::v3::{
                    HeaderMatcher, Route, RouteConfiguration, VirtualHost, header_matcher,
                },
            },
            r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher},
        },
        google::protobuf::Duration,
    },
    util::pack_any,
};
use heddle_proto::paths::{ByPath, Claimant, Instances, Path, Rank};
use prost::Message as _;

use crate::registry::CALLERS;

use super::{
    Encodes, Kind, Resource, ServiceContent,
    assignment::socket_address,
    build::{connection_manager, prefix, route_to},
};

/// The name of the listener and of its routes: no service can have it.
pub const OUTBOUND: &str = "heddle/outbound";

/// Authorities that mean "route by the proto service": an IP literal, IPv6 also with a zone, or `localhost`, each with
/// or without the final dot and a port. Envoy compares this header exactly as it was sent.
const BY_PATH: &str =
    r"(?i)^(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-f:.]+(%[^\]]+)?\])\.?(:[0-9]{1,5})?$";

/// The socket listener for one Envoy.
#[must_use]
pub fn listener(address: SocketAddr, encodes: &Encodes) -> Arc<Resource> {
    let mut manager = connection_manager(OUTBOUND);
    manager.stat_prefix = "heddle_outbound".to_owned();
    // Idle streams are legal: a watch may be silent for hours.
    manager.stream_idle_timeout = Some(Duration::default());
    let message = Listener {
        name: OUTBOUND.to_owned(),
        address: Some(socket_address(address)),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    };
    let refs = vec![(Kind::Route, OUTBOUND.into())];
    Resource::from_value(
        Kind::Listener,
        OUTBOUND.into(),
        message.encode_to_vec(),
        refs,
        encodes,
    )
}

/// One virtual host per service, and one for what is routed by path.
pub(super) fn routes<'a>(
    services: impl Iterator<Item = &'a ServiceContent>,
    encodes: &Encodes,
) -> Arc<Resource> {
    let mut claims: BTreeMap<&str, Vec<Claimant<'a, &'a ServiceContent>>> = BTreeMap::new();
    let mut refs = Vec::new();
    let mut virtual_hosts = Vec::new();
    for service in services {
        for claim in &service.claims {
            let claimant = Claimant {
                service,
                namespace: &service.name.namespace,
                name: &service.name.service,
                rank: match claim.since {
                    0 => Rank::Unordered,
                    since => Rank::Since(since),
                },
                instances: match service.has_no_instances() {
                    true => Instances::None,
                    false => Instances::Some,
                },
            };
            claims.entry(&claim.proto).or_default().push(claimant);
        }
        refs.push((Kind::Cluster, Arc::clone(&service.full_name)));
        virtual_hosts.push(virtual_host(service));
    }
    virtual_hosts.push(VirtualHost {
        name: "by proto service".to_owned(),
        domains: vec!["*".to_owned()],
        routes: claims
            .into_iter()
            .filter_map(|(proto, claimants)| route_by_path(proto, claimants))
            .collect(),
        ..VirtualHost::default()
    });
    let message = RouteConfiguration {
        name: OUTBOUND.to_owned(),
        virtual_hosts,
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    };
    Resource::from_value(
        Kind::Route,
        OUTBOUND.into(),
        message.encode_to_vec(),
        refs,
        encodes,
    )
}

fn virtual_host(service: &ServiceContent) -> VirtualHost {
    let full_name = &service.full_name;
    // Envoy compares hosts in lower case and without their port.
    let mut names = vec![full_name.to_string(), format!("{full_name}.mesh")];
    if service.name.namespace == "default" {
        names.push(service.name.service.clone());
    }
    let from_root = names.iter().map(|name| format!("{name}."));
    let domains = from_root.chain(names.iter().cloned()).collect();
    VirtualHost {
        name: full_name.to_string(),
        domains,
        routes: vec![route_to(prefix("/"), full_name)],
        ..VirtualHost::default()
    }
}

/// None if several services may be meant by a proto service: it is not routed by path. Envoy's callers have the same
/// namespace as those of Heddle's proxies, and the rule is the same.
fn route_by_path(proto: &str, claimants: Vec<Claimant<'_, &ServiceContent>>) -> Option<Route> {
    let ByPath::One(service) = Path::of(claimants).calls_from(CALLERS) else {
        return None;
    };
    let mut matched = prefix(&format!("/{proto}/"));
    matched.headers = vec![HeaderMatcher {
        name: ":authority".to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(
            StringMatcher {
                match_pattern: Some(string_matcher::MatchPattern::SafeRegex(RegexMatcher {
                    regex: BY_PATH.to_owned(),
                    ..RegexMatcher::default()
                })),
                ..StringMatcher::default()
            },
        )),
        ..HeaderMatcher::default()
    }];
    Some(route_to(matched, &service.full_name))
}
