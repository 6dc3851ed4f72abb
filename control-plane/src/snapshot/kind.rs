//! The resource types that are served, and a value per type.

/// A resource type on the ADS stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoint,
    Listener,
    Route,
    ServiceIndex,
    /// Descriptors by their hash; never in a snapshot: fetched by name on demand.
    Schema,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::Route,
        Self::ServiceIndex,
        Self::Schema,
    ];

    /// The type URL on the wire.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::ServiceIndex => "type.googleapis.com/heddle.xds.v1.ServiceIndex",
            Self::Schema => "type.googleapis.com/heddle.xds.v1.Schema",
        }
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
            Self::Listener => "listener",
            Self::Route => "route",
            Self::ServiceIndex => "service_index",
            Self::Schema => "schema",
        }
    }

    #[must_use]
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// A type of our own, which no stock client requests.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::ServiceIndex | Self::Schema)
    }

    /// A state-of-the-world response must carry everything subscribed to: what is missing is deleted. (xDS protocol,
    /// "Deleting Resources", requires this for listeners and clusters; our index follows the same rule.)
    #[must_use]
    pub const fn whole_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::ServiceIndex)
    }
}

/// One value for each kind.
#[derive(Clone, Debug, Default)]
pub struct PerKind<T> {
    cluster: T,
    endpoint: T,
    listener: T,
    route: T,
    service_index: T,
    schema: T,
}

impl<T> PerKind<T> {
    pub fn new(mut make: impl FnMut(Kind) -> T) -> Self {
        Self {
            cluster: make(Kind::Cluster),
            endpoint: make(Kind::Endpoint),
            listener: make(Kind::Listener),
            route: make(Kind::Route),
            service_index: make(Kind::ServiceIndex),
            schema: make(Kind::Schema),
        }
    }

    #[must_use]
    pub const fn get(&self, kind: Kind) -> &T {
        match kind {
            Kind::Cluster => &self.cluster,
            Kind::Endpoint => &self.endpoint,
            Kind::Listener => &self.listener,
            Kind::Route => &self.route,
            Kind::ServiceIndex => &self.service_index,
            Kind::Schema => &self.schema,
        }
    }

    pub const fn get_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Cluster => &mut self.cluster,
            Kind::Endpoint => &mut self.endpoint,
            Kind::Listener => &mut self.listener,
            Kind::Route => &mut self.route,
            Kind::ServiceIndex => &mut self.service_index,
            Kind::Schema => &mut self.schema,
        }
    }
}
