//! What stock clients accept, and where it routes their calls.

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;

use super::*;

#[test]
fn localities_are_what_stock_clients_accept() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80")
        .instance
        .as_mut()
        .unwrap()
        .weight = 3;
    mesh.put("a/users/2", "10.0.0.2:80");
    mesh.put("b/users/3", "10.0.0.3:80");
    mesh.node("b").zone = "z2".to_owned();
    let snapshot = mesh.snapshot();
    for audience in Audience::ALL {
        let assignment: ClusterLoadAssignment =
            get(&snapshot, Kind::Endpoint, audience, "users.default");
        assert_eq!(assignment.cluster_name, "users.default");
        let localities: Vec<_> = assignment
            .endpoints
            .iter()
            .map(|each| {
                let weight = each.load_balancing_weight.unwrap().value;
                (
                    each.locality.as_ref().unwrap().zone.as_str(),
                    weight,
                    each.priority,
                )
            })
            .collect();
        assert_eq!(localities, [("", 4, 0), ("z2", 1, 0)]);
    }
    let assignment: ClusterLoadAssignment =
        get(&snapshot, Kind::Endpoint, Audience::Proxy, "users.default");
    let endpoint = &assignment.endpoints[1].lb_endpoints[0];
    let fields = &endpoint.metadata.as_ref().unwrap().filter_metadata["heddle"].fields;
    let text = |key: &str| match &fields[key].kind {
        Some(value::Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text("instance"), "3");
    assert_eq!(text("node"), "b");
    assert_eq!(text("inbound"), "127.0.0.1:15208");
    assert_eq!(text("zone"), "z2");
    let direct: ClusterLoadAssignment = get(
        &snapshot,
        Kind::Endpoint,
        Audience::DirectLocal,
        "users.default",
    );
    assert_eq!(direct.endpoints[0].lb_endpoints[0].metadata, None);
}

#[test]
fn clusters_listeners_and_routes_lead_to_each_other() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/web.shop/1", "10.0.0.2:80")
        .instance
        .as_mut()
        .unwrap()
        .protocol = Protocol::Http as i32;
    let snapshot = mesh.snapshot();
    let names: Vec<_> = snapshot
        .table(Kind::Listener, Audience::Proxy)
        .keys()
        .map(|name| &**name)
        .collect();
    assert_eq!(names, ["users", "users.default", "web.shop"]);
    for name in names {
        let listener: Listener = get(&snapshot, Kind::Listener, Audience::DirectLocal, name);
        let manager = listener.api_listener.unwrap().api_listener.unwrap();
        let manager = HttpConnectionManager::decode(manager.value.as_slice()).unwrap();
        assert!(!manager.stat_prefix.is_empty());
        assert_eq!(
            manager.http_filters.last().unwrap().name,
            "envoy.filters.http.router"
        );
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else {
            panic!()
        };
        let routes: RouteConfiguration = get(
            &snapshot,
            Kind::Route,
            Audience::DirectLocal,
            &rds.route_config_name,
        );
        assert_eq!(routes.virtual_hosts[0].domains, ["*"]);
        let Some(route::Action::Route(action)) = &routes.virtual_hosts[0].routes[0].action else {
            panic!()
        };
        assert_eq!(
            action.timeout.unwrap().seconds,
            0,
            "Envoy's default of 15 s cuts streams"
        );
        let Some(route_action::ClusterSpecifier::Cluster(to)) = &action.cluster_specifier else {
            panic!()
        };
        let cluster: Cluster = get(&snapshot, Kind::Cluster, Audience::DirectLocal, to);
        assert_eq!(
            cluster.cluster_discovery_type,
            Some(cluster::ClusterDiscoveryType::Type(
                cluster::DiscoveryType::Eds as i32
            ))
        );
        assert_eq!(cluster.lb_policy, cluster::LbPolicy::RoundRobin as i32);
        assert!(
            matches!(
                cluster.lrs_server.unwrap().config_source_specifier,
                Some(ConfigSourceSpecifier::Self_(_))
            ),
            "gRPC reports its load to whom it has the cluster from"
        );
        assert!(
            snapshot
                .get(Kind::Endpoint, Audience::DirectLocal, to)
                .is_some()
        );
    }
}

#[test]
fn envoys_routes_say_what_outbound_does() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80").protos = vec![proto("u.Users", &[]), proto("x.Both", &[])];
    mesh.put("a/orders.shop/1", "10.0.0.2:80").protos = vec![proto("x.Both", &[])];
    let snapshot = mesh.snapshot();
    let paths = |snapshot: &Snapshot| {
        let routes: RouteConfiguration =
            get(snapshot, Kind::Route, Audience::DirectLocal, OUTBOUND);
        let mut domains = BTreeSet::new();
        for host in &routes.virtual_hosts {
            for domain in &host.domains {
                assert!(
                    domains.insert(domain.clone()),
                    "Envoy takes a domain once: {domain}"
                );
            }
        }
        let last = routes.virtual_hosts.last().unwrap();
        let paths: Vec<_> = last
            .routes
            .iter()
            .map(|route| {
                let matched = route.r#match.as_ref().unwrap();
                assert_eq!(matched.headers[0].name, ":authority");
                let Some(route_match::PathSpecifier::Prefix(prefix)) = &matched.path_specifier
                else {
                    panic!("{matched:?}");
                };
                let Some(route::Action::Route(to)) = &route.action else {
                    panic!("{route:?}");
                };
                let Some(route_action::ClusterSpecifier::Cluster(cluster)) = &to.cluster_specifier
                else {
                    panic!("{to:?}");
                };
                format!("{prefix} {cluster}")
            })
            .collect();
        (domains.into_iter().collect::<Vec<_>>(), paths)
    };
    let (domains, by_path) = paths(&snapshot);
    assert_eq!(
        domains,
        [
            "*",
            "orders.shop",
            "orders.shop.",
            "orders.shop.mesh",
            "orders.shop.mesh.",
            "users",
            "users.",
            "users.default",
            "users.default.",
            "users.default.mesh",
            "users.default.mesh."
        ]
    );
    let users = ["/u.Users/ users.default", "/x.Both/ users.default"];
    assert_eq!(by_path, users, "the namespace of the callers comes first");

    // Issue 10, B2: the oldest claim owns the path, and other claims have no effect.
    mesh.claim("users", "x.Both", 5);
    mesh.claim("a-canary", "x.Both", 6);
    mesh.put("a/a-canary/1", "10.0.0.3:80").protos = vec![proto("x.Both", &[])];
    let quiet = mesh.put("a/quiet/1", "10.0.0.4:80");
    quiet.protos = vec![proto("q.Quiet", &[])];
    quiet.instance.as_mut().unwrap().claim_paths = Some(false);
    assert_eq!(paths(&mesh.snapshot()).1, users);
    mesh.remove("a/users/1");
    let stood_in = ["/u.Users/ users.default", "/x.Both/ a-canary.default"];
    assert_eq!(
        paths(&mesh.snapshot()).1,
        stood_in,
        "the owner has no instance"
    );
    mesh.put("a/users/2", "10.0.0.1:80").protos = vec![proto("u.Users", &[]), proto("x.Both", &[])];
    assert_eq!(paths(&mesh.snapshot()).1, users, "it is back");

    // Services of several other namespaces: none has precedence.
    mesh.put("a/one.x/1", "10.0.0.5:80").protos = vec![proto("z.Z", &[])];
    mesh.put("a/one.y/1", "10.0.0.6:80").protos = vec![proto("z.Z", &[])];
    assert_eq!(paths(&mesh.snapshot()).1, users);
    mesh.remove("a/one.x/1");
    let z = paths(&mesh.snapshot()).1.pop();
    assert_eq!(
        z.as_deref(),
        Some("/z.Z/ one.y"),
        "one without instances is in nobody's way"
    );
    mesh.remove("a/one.y/1");
    let z = paths(&mesh.snapshot()).1.pop();
    assert!(
        z.is_some_and(|z| z.starts_with("/z.Z/ one.")),
        "UNAVAILABLE"
    );
    // Calls do not leave the caller's namespace while its own service has no instance.
    mesh.remove("a/a-canary/1");
    mesh.remove("a/users/2");
    let both = &paths(&mesh.snapshot()).1[1];
    assert!(!both.ends_with("orders.shop"), "{both}");
}

/// Issue 10, B2: proxies get the claims and since when they exist, and a change of one claim changes one index.
#[test]
fn an_index_contains_the_claimed_paths_and_their_ages() {
    let mut mesh = Mesh::new();
    for path in ["a/users/1", "a/canary/1"] {
        mesh.put(path, "10.0.0.1:80").protos = vec![proto("u.Users", &[]), proto("x.X", &[])];
    }
    let quiet = mesh.put("a/quiet/1", "10.0.0.4:80");
    quiet.protos = vec![proto("u.Users", &[])];
    quiet.instance.as_mut().unwrap().claim_paths = Some(false);
    mesh.claim("users", "u.Users", 5);
    let claims = |snapshot: &Snapshot, name: &str| {
        let index: ServiceIndex = get(snapshot, Kind::ServiceIndex, Audience::Proxy, name);
        assert!(index.claims_kept);
        let claims = index.claims.into_iter();
        claims
            .map(|claim| (claim.proto, claim.since))
            .collect::<Vec<_>>()
    };
    let claim = |proto: &str, since| (proto.to_owned(), since);
    let snapshot = mesh.snapshot();
    assert_eq!(
        claims(&snapshot, "users.default"),
        [claim("u.Users", 5), claim("x.X", 1)]
    );
    assert_eq!(claims(&snapshot, "quiet.default"), []);
    mesh.claim("users", "u.Users", 9);
    let next = mesh.snapshot();
    assert_eq!(claims(&next, "users.default")[0], claim("u.Users", 9));
    let version = |snapshot: &Snapshot| {
        let canary = snapshot.get(Kind::ServiceIndex, Audience::Proxy, "canary.default");
        canary.unwrap().version.clone()
    };
    assert_eq!(version(&next), version(&snapshot));
}

#[test]
fn addresses_that_differ_in_what_eds_cannot_say_are_handed_out_once_or_not_at_all() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "[::1]:80");
    mesh.put("a/users/2", "[::1%1]:80");
    mesh.put("a/users/3", "[fd00::1%2]:80");
    mesh.put("a/users/4", "[fd00::1%3]:80");
    mesh.put("a/users/5", "[fe80::1%2]:80");
    mesh.put("a/users/6", "127.0.0.1:80");
    mesh.put("a/users/7", "[::ffff:127.0.0.1]:80");
    let snapshot = mesh.snapshot();
    let direct = endpoints(&snapshot, Audience::DirectLocal, "users.default");
    assert_eq!(
        direct,
        [
            "::1:80=HEALTHY",
            "fd00::1:80=HEALTHY",
            "127.0.0.1:80=HEALTHY"
        ]
    );
    let all = endpoints(&snapshot, Audience::Proxy, "users.default");
    assert_eq!(all.len(), 7);
    let name = "users.default".parse_name();
    let hidden = hidden_from_direct_clients(&mesh.view(), &name);
    let hidden: Vec<&str> = hidden.keys().map(|(_, id)| &**id).collect();
    assert_eq!(hidden, ["2", "4", "5", "7"]);
}
