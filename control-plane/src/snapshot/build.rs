//! Builds the next snapshot from the services that changed; only their resources are built again. Pure: the same
//! contents give the same versions, in whatever order they came.

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
use heddle_proto::{
    control::v1::ProtoService,
    registry::v1::Protocol,
    xds::v1::{PathClaim, ServiceIndex},
};
use prost::Message as _;

use super::{
    Audience, Changed, Encodes, Kind, Reading, Resource, ServiceContent, Snapshot, outbound,
};

/// Keeps the contents and the snapshot that was built from them.
#[derive(Default)]
pub struct Builder {
    contents: BTreeMap<Arc<str>, ServiceContent>,
    snapshot: Snapshot,
    encodes: Arc<Encodes>,
}

/// The changes for the next snapshot that are built so far.
#[derive(Default)]
pub(super) struct Step {
    changed: Changed,
    /// Envoy's routes must be built again.
    routes: bool,
}

/// What other resources than the endpoints contain of a service.
struct ServiceSummary {
    protocol: Protocol,
    protos: Vec<ProtoService>,
    claims: Vec<PathClaim>,
    schema_sha256: Option<Arc<str>>,
    schema_reason: Arc<str>,
    without_instances: bool,
}

impl ServiceSummary {
    fn of(content: &ServiceContent) -> Self {
        Self {
            protocol: content.protocol,
            protos: content.protos.clone(),
            claims: content.claims.clone(),
            schema_sha256: content.schema_sha256.clone(),
            schema_reason: Arc::clone(&content.schema_reason),
            without_instances: content.has_no_instances(),
        }
    }
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

    /// The content of a service that has resources, by full name.
    #[must_use]
    pub fn content(&self, full_name: &str) -> Option<&ServiceContent> {
        self.contents.get(full_name)
    }

    /// Takes the new contents of changed services (none: the service is removed with all its resources) and builds the
    /// next snapshot at this revision of the store.
    pub fn apply(
        &mut self,
        revision: u64,
        services: impl IntoIterator<Item = (Arc<str>, Option<ServiceContent>)>,
    ) -> &Snapshot {
        let mut step = Step::default();
        for (full_name, content) in services {
            match content {
                Some(content) => {
                    let before = self.contents.get(&full_name).map(ServiceSummary::of);
                    self.put(before.as_ref(), content, &mut step);
                }
                None => self.remove(&full_name, &mut step),
            }
        }
        self.finish(revision, step)
    }

    /// Like `apply`, for services of which some instances changed.
    pub fn update(
        &mut self,
        revision: u64,
        readings: impl IntoIterator<Item = Reading>,
    ) -> &Snapshot {
        let mut step = Step::default();
        for reading in readings {
            self.take(reading, &mut step);
        }
        self.finish(revision, step)
    }

    /// Adds one service to the next step; returns its number of endpoints.
    pub(super) fn take(&mut self, reading: Reading, step: &mut Step) -> usize {
        let name = Arc::clone(&reading.full_name);
        let held = self.contents.remove(&name);
        let before = held.as_ref().map(ServiceSummary::of);
        // If the service is removed, these are the listeners to remove.
        let listeners = held.as_ref().map(listener_names).unwrap_or_default();
        if let Some(content) = ServiceContent::after(held, reading) {
            let endpoints = content.endpoints();
            self.put(before.as_ref(), content, step);
            return endpoints;
        }
        if before.is_some() {
            self.take_away(&name, listeners, step);
        }
        0
    }

    /// The next snapshot, with everything in the step.
    pub(super) fn finish(&mut self, revision: u64, step: Step) -> &Snapshot {
        let Step {
            mut changed,
            routes,
        } = step;
        if routes || self.snapshot.generation == 0 {
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

    fn put(&mut self, before: Option<&ServiceSummary>, content: ServiceContent, step: &mut Step) {
        let name = Arc::clone(&content.full_name);
        let now = ServiceSummary::of(&content);
        let same = |of: fn(&ServiceSummary, &ServiceSummary) -> bool| {
            before.is_some_and(|it| of(it, &now))
        };
        let same_protocol = same(|a, b| a.protocol == b.protocol);
        let same_protos = same(|a, b| a.protos == b.protos);
        let same_claims = same(|a, b| a.claims == b.claims);
        let same_schema = same(|a, b| a.schema_sha256 == b.schema_sha256);
        let same_reason = same(|a, b| a.schema_reason == b.schema_reason);
        let same_life = same(|a, b| a.without_instances == b.without_instances);
        let changed = &mut step.changed;
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
        if before.is_none() {
            self.set(Some(route(&name, &encodes)), Kind::Route, &name, changed);
            for listener_name in listener_names(&content) {
                let resource = listener(&listener_name, &name, &encodes);
                self.set(Some(resource), Kind::Listener, &listener_name, changed);
            }
        }
        if !(same_protocol && same_protos && same_claims && same_schema && same_reason) {
            self.set(
                Some(index(&content, &encodes)),
                Kind::ServiceIndex,
                &name,
                changed,
            );
        }
        self.contents.insert(name, content);
        step.routes |= !(same_claims && same_life);
    }

    fn remove(&mut self, name: &Arc<str>, step: &mut Step) {
        if let Some(content) = self.contents.remove(name) {
            self.take_away(name, listener_names(&content), step);
        }
    }

    fn take_away(&mut self, name: &Arc<str>, listeners: Vec<Arc<str>>, step: &mut Step) {
        let changed = &mut step.changed;
        for kind in [Kind::Cluster, Kind::Route, Kind::ServiceIndex] {
            self.set(None, kind, name, changed);
        }
        for listener_name in listeners {
            self.set(None, Kind::Listener, &listener_name, changed);
        }
        for audience in Audience::ALL {
            if self.snapshot.set(Kind::Endpoint, audience, name, None) {
                changed.insert(Kind::Endpoint, Arc::clone(name));
            }
        }
        step.routes = true;
    }

    fn set_assignments(&mut self, content: &ServiceContent, changed: &mut Changed) {
        let [proxy, local, remote] = Audience::ALL
            .map(|audience| Resource::from_assignment(content.assignment(audience), &self.encodes));
        // If no loopback address makes a difference, the two are equal and encoded once.
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
        // Kinds other than endpoints have one table for all audiences.
        if self.snapshot.set(kind, Audience::Proxy, name, resource) {
            changed.insert(kind, Arc::clone(name));
        }
    }
}

/// The full name, and in the namespace `default` the short one as an alias.
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
        // gRPC reports its load to the server that sent the cluster; Envoy uses its bootstrap.
        lrs_server: Some(itself()),
        // A map with one entry: its encoding is canonical.
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

/// No timeout: Envoy's default of 15 s would end long streams.
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

/// The first resource that gRPC requests for `xds:///NAME`.
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
        schema_reason: content.schema_reason.to_string(),
        claims: content.claims.clone(),
        claims_kept: true,
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
