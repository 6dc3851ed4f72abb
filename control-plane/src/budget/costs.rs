//! Estimates the memory of a call besides its messages, from its method and the size of the mesh. An answer that lists
//! the mesh is admitted before it is built.

/// The task of a call, its stream and its headers, and what its transport buffers of an answer (`grpc::SEND_BUFFER`).
const CALL: usize = 32 << 10;
/// The ids of the events that a watcher was sent: at most about 1,000.
const EVENTS: usize = 64 << 10;

/// One row of an answer, as a message and encoded.
const INSTANCE: usize = 1 << 10;
const SERVICE: usize = 512;
const NODE: usize = 512;
const CLIENT: usize = 4 << 10;

/// The numbers of what answers list.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeshSize {
    pub services: usize,
    pub instances: usize,
    pub nodes: usize,
    pub clients: usize,
}

pub(super) fn of(path: &str, mesh: impl FnOnce() -> MeshSize) -> usize {
    let more = match path {
        "/heddle.registry.v1.Registry/ListServices" => mesh().services * SERVICE,
        "/heddle.registry.v1.Registry/ListInstances" => mesh().instances * INSTANCE,
        "/heddle.status.v1.MeshStatus/ListServices" => {
            let mesh = mesh();
            mesh.services * SERVICE + mesh.instances * INSTANCE
        }
        "/heddle.status.v1.MeshStatus/GetMesh" => mesh().nodes * NODE,
        "/heddle.status.v1.MeshStatus/ListProxies"
        | "/heddle.status.v1.MeshStatus/ListEdges"
        | "/heddle.control.v1.Replica/ListClients" => mesh().clients * CLIENT,
        "/heddle.status.v1.MeshStatus/WatchEvents" => EVENTS,
        _ => 0,
    };
    CALL + more
}

/// Whether building the answer to a call takes long in a large mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Little,
    /// The service builds it for this call.
    Builds,
    /// The service shares it between calls (`status/shared`): only its encoding is for this call.
    Encodes,
}

pub(super) fn work(path: &str) -> Work {
    match path {
        "/heddle.registry.v1.Registry/ListServices"
        | "/heddle.registry.v1.Registry/ListInstances"
        | "/heddle.status.v1.MeshStatus/ListServices"
        | "/heddle.status.v1.MeshStatus/GetService"
        | "/heddle.control.v1.Replica/ListClients" => Work::Builds,
        "/heddle.status.v1.MeshStatus/GetMesh"
        | "/heddle.status.v1.MeshStatus/ListProxies"
        | "/heddle.status.v1.MeshStatus/ListEdges" => Work::Encodes,
        _ => Work::Little,
    }
}
