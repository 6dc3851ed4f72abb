//! Changed services become changed resources, and nothing else is made again. In come the contents of the services
//! that changed, out goes the next snapshot. Pure: no clock, no handle; the same contents give the same versions in
//! whatever order they came.

use std::{collections::BTreeMap, collections::HashMap, sync::Arc};

use envoy_types::{
    pb::{
        envoy::{
            config::{
                cluster::v3::{Cluster, cluster},
                core::v3::{
                    AggregatedConfigSource, ApiVersion, ConfigSource, Http1ProtocolOptions,
                    Http2ProtocolOptions, SelfConfigSource, config_source,
                },
                listener::v3::{ApiListener, Listener},
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
                    route_action, route_match,
                },
            },
            extensions::{
                filters::{
                    http::router::v3::Router,
                    network::http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager,
                        http_filter,
                    },
                },
                upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
            },
        },
        google::protobuf::Duration,
    },
    util::pack_any,
};
use heddle_proto::{registry::v1::Protocol, xds::v1::ServiceIndex};
use prost::Message as _;

use super::{Audience, Changed, Encodes, Kind, Resource, ServiceContent, Snapshot, outbound};

/// Keeps the contents beside the snapshot that was made of them.
#[derive(Default)]
pub struct Builder {
    contents: BTreeMap<Arc<str>, ServiceContent>,
    snapshot: Snapshot,
    encodes: Arc<Encodes>,
}

impl Builder {
    #[must_use]
    pub fn new(encodes: Arc<Encodes>) -> Self {
        Self {
            encodes,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Services that have resources, by full name.
    #[must_use]
    pub fn content(&self, full_name: &str) -> Option<&ServiceContent> {
        self.contents.get(full_name)
    }

    /// Takes the new contents of changed services (none: the service goes with all its resources) and makes the
    /// next snapshot, at this revision of the store.
    pub fn apply(
        &mut self,
        revision: u64,
        services: impl IntoIterator<Item = (Arc<str>, Option<ServiceContent>)>,
    ) -> &Snapshot {
        let mut changed = Changed::default();
        let mut routes_changed = self.snapshot.generation == 0;
        for (full_name, content) in services {
            routes_changed |= match content {
                Some(content) => self.put(content, &mut changed),
                None => self.remove(&full_name, &mut changed),
            };
        }
        if routes_changed {
            let resource = outbound::routes(self.contents.values(), &self.encodes);
            self.set(
                Some(resource),
                Kind::Route,
                &outbound::OUTBOUND.into(),
                &mut changed,
            );
        }
        self.snapshot.step(revision, changed);
        &self.snapshot
    }

    /// True if Envoy's routes are no longer right.
    fn put(&mut self, content: ServiceContent, changed: &mut Changed) -> bool {
        let name = Arc::clone(&content.full_name);
        let old = self.contents.get(&name);
        let known = old.is_some();
        let same_protocol = old.is_some_and(|old| old.protocol == content.protocol);
        let same_protos = old.is_some_and(|old| old.protos == content.protos);
        let same_schema = old.is_some_and(|old| old.schema_sha256 == content.schema_sha256);
        let same_life = old.is_some_and(|old| old.is_deserted() == content.is_deserted());
        let encodes = Arc::clone(&self.encodes);
        if !same_protocol {
            self.set(
                Some(cluster(&content, &encodes)),
                Kind::Cluster,
                &name,
                changed,
            );
        }
        self.set_assignments(&content, changed);
        if !known {
            self.set(Some(route(&name, &encodes)), Kind::Route, &name, changed);
            for listener_name in listener_names(&content) {
                let resource = listener(&listener_name, &name, &encodes);
                self.set(Some(resource), Kind::Listener, &listener_name, changed);
            }
        }
        if !(same_protocol && same_protos && same_schema) {
            self.set(
                Some(index(&content, &encodes)),
                Kind::ServiceIndex,
                &name,
                changed,
            );
        }
        self.contents.insert(name, content);
        !(known && same_protos && same_life)
    }

    fn remove(&mut self, name: &Arc<str>, changed: &mut Changed) -> bool {
        let Some(content) = self.contents.remove(name) else {
            return false;
        };
        for kind in [Kind::Cluster, Kind::Route, Kind::ServiceIndex] {
            self.set(None, kind, name, changed);
        }
        for listener_name in listener_names(&content) {
            self.set(None, Kind::Listener, &listener_name, changed);
        }
        for audience in Audience::ALL {
            if self.snapshot.set(Kind::Endpoint, audience, name, None) {
                changed.insert(Kind::Endpoint, Arc::clone(name));
            }
        }
        true
    }

    fn set_assignments(&mut self, content: &ServiceContent, changed: &mut Changed) {
        let [proxy, local, remote] = Audience::ALL
            .map(|audience| Resource::from_assignment(content.assignment(audience), &self.encodes));
        // Where no loopback address makes a difference the two are one, encoded once.
        let remote = if remote.version == local.version {
            Arc::clone(&local)
        } else {
            remote
        };
        for (audience, resource) in Audience::ALL.into_iter().zip([proxy, local, remote]) {
            let name = Arc::clone(&content.full_name);
            if self
                .snapshot
                .set(Kind::Endpoint, audience, &name, Some(resource))
            {
                changed.insert(Kind::Endpoint, name);
            }
        }
    }

    fn set(
        &mut self,
        resource: Option<Arc<Resource>>,
        kind: Kind,
        name: &Arc<str>,
        changed: &mut Changed,
    ) {
        // Kinds other than endpoints have one table for all.
        if self.snapshot.set(kind, Audience::Proxy, name, resource) {
            changed.insert(kind, Arc::clone(name));
        }
    }
}

/// The full name, and the bare one as an alias in the namespace `default`.
fn listener_names(content: &ServiceContent) -> Vec<Arc<str>> {
    let mut names = vec![Arc::clone(&content.full_name)];
    if content.name.namespace == "default" {
        names.push(content.name.service.as_str().into());
    }
    names
}

fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource {},
        )),
        ..ConfigSource::default()
    }
}

/// The control plane that sent the resource.
fn itself() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Self_(
            SelfConfigSource::default(),
        )),
        ..ConfigSource::default()
    }
}

fn cluster(content: &ServiceContent, encodes: &Encodes) -> Arc<Resource> {
    use http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    let protocol = match content.protocol {
        Protocol::Http | Protocol::Tcp => {
            ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())
        }
        Protocol::Grpc | Protocol::Unspecified => {
            ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())
        }
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(protocol),
            },
        )),
        ..HttpProtocolOptions::default()
    };
    let message = Cluster {
        name: content.full_name.to_string(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: String::new(),
        }),
        connect_timeout: Some(Duration {
            seconds: 5,
            nanos: 0,
        }),
        lb_policy: cluster::LbPolicy::RoundRobin as i32,
        // gRPC reports its load where it has the cluster from; Envoy goes by its bootstrap.
        lrs_server: Some(itself()),
        // One entry: its encoding is canonical.
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack_any(options),
        )]),
        ..Cluster::default()
    };
    let refs = vec![(Kind::Endpoint, Arc::clone(&content.full_name))];
    let name = Arc::clone(&content.full_name);
    Resource::from_value(Kind::Cluster, name, message.encode_to_vec(), refs, encodes)
}

fn route(name: &Arc<str>, encodes: &Encodes) -> Arc<Resource> {
    let message = RouteConfiguration {
        name: name.to_string(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_string(),
            domains: vec!["*".to_owned()],
            routes: vec![route_to(prefix("/"), name)],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let refs = vec![(Kind::Cluster, Arc::clone(name))];
    Resource::from_value(
        Kind::Route,
        Arc::clone(name),
        message.encode_to_vec(),
        refs,
        encodes,
    )
}

pub(super) fn prefix(prefix: &str) -> RouteMatch {
    RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix(prefix.to_owned())),
        ..RouteMatch::default()
    }
}

/// Without a timeout: Envoy's own default of 15 s would cut streams.
pub(super) fn route_to(matched: RouteMatch, cluster: &str) -> Route {
    Route {
        r#match: Some(matched),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
            timeout: Some(Duration::default()),
            ..RouteAction::default()
        })),
        ..Route::default()
    }
}

/// What gRPC's `xds:///NAME` begins with.
fn listener(name: &Arc<str>, route: &Arc<str>, encodes: &Encodes) -> Arc<Resource> {
    let message = Listener {
        name: name.to_string(),
        api_listener: Some(ApiListener {
            api_listener: Some(pack_any(connection_manager(route))),
        }),
        ..Listener::default()
    };
    let refs = vec![(Kind::Route, Arc::clone(route))];
    Resource::from_value(
        Kind::Listener,
        Arc::clone(name),
        message.encode_to_vec(),
        refs,
        encodes,
    )
}

pub(super) fn connection_manager(route: &str) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: route.to_owned(),
        route_specifier: Some(http_connection_manager::RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: route.to_owned(),
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(
                Router::default(),
            ))),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    }
}

fn index(content: &ServiceContent, encodes: &Encodes) -> Arc<Resource> {
    let message = ServiceIndex {
        service: content.full_name.to_string(),
        protos: content.protos.clone(),
        protocol: content.protocol as i32,
        schema_sha256: content
            .schema_sha256
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
    };
    let refs = vec![(Kind::Cluster, Arc::clone(&content.full_name))];
    let name = Arc::clone(&content.full_name);
    Resource::from_value(
        Kind::ServiceIndex,
        name,
        message.encode_to_vec(),
        refs,
        encodes,
    )
}
