//! gRPC server reflection, v1 and v1alpha: of the whole mesh on outbound, of the proxy's own services on the admin
//! port. Descriptors are collected when somebody asks. Input: requests. Output: raw files. Calls and routing do not
//! depend on it.

use std::{
    collections::{BTreeSet, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt as _, stream};
use prost::bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::{v1, v1alpha};
use v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    server_reflection_server as server_v1,
};
use v1alpha::server_reflection_server as server_v1alpha;

use super::catalog::{Catalog, LeftOut, Source};
use crate::{
    agent::Agent,
    mesh::{Mesh, SchemaClaim},
    route::Service,
    xds::schemas::Schemas,
};

/// The most memory that the descriptors of the whole mesh and their index may take.
const MAX_TOTAL: usize = 128 * 1024 * 1024;
/// The size of one answer. Below the 4 MiB that clients accept by default; the client requests further files by name.
const MAX_ANSWER: usize = 1024 * 1024;
/// Concurrent fetches from the control plane.
const MAX_CONCURRENT_FETCHES: usize = 16;

/// The services that the proxy itself answers.
const OWN_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The source of the descriptors.
#[derive(Clone)]
enum Origin {
    /// Only the process's own services: those beside health and reflection, and their descriptors.
    Own {
        services: &'static [&'static str],
        set: &'static [u8],
    },
    Mesh {
        mesh: watch::Receiver<Mesh>,
        agent: Agent,
        schemas: Schemas,
    },
}

/// See the module documentation. Clones share the cache.
#[derive(Clone)]
pub struct Reflection {
    origin: Origin,
    cache: Arc<Mutex<Option<Cached>>>,
}

struct Cached {
    /// The content it was built from: service, ready instances, descriptors and owned proto services.
    made_of: Vec<(String, usize, Bytes, Vec<String>)>,
    catalog: Arc<Catalog>,
}

impl Reflection {
    /// For the admin port: only health and reflection.
    #[must_use]
    pub fn admin() -> Self {
        Self {
            origin: Origin::Own {
                services: &[],
                set: &[],
            },
            cache: Arc::default(),
        }
    }

    /// For the agent's listeners: the registry too.
    #[must_use]
    pub fn agent() -> Self {
        let origin = Origin::Own {
            services: &["heddle.registry.v1.Registry"],
            set: heddle_proto::DESCRIPTOR_SET,
        };
        Self {
            origin,
            cache: Arc::default(),
        }
    }

    /// For outbound: every service of the mesh.
    #[must_use]
    pub fn mesh(mesh: watch::Receiver<Mesh>, agent: Agent, schemas: Schemas) -> Self {
        Self {
            origin: Origin::Mesh {
                mesh,
                agent,
                schemas,
            },
            cache: Arc::default(),
        }
    }

    fn services(&self) -> Vec<String> {
        let mut names: BTreeSet<String> =
            OWN_SERVICES.iter().map(|&name| name.to_owned()).collect();
        match &self.origin {
            Origin::Own { services, .. } => {
                names.extend(services.iter().map(|&name| name.to_owned()));
            }
            Origin::Mesh { mesh, .. } => {
                names.extend(mesh.borrow().table.proto_services().map(str::to_owned));
            }
        }
        names.into_iter().collect()
    }

    async fn catalog(&self) -> Arc<Catalog> {
        let mut sources = own_sources();
        if let Origin::Own { services, set } = &self.origin {
            sources.push(Source {
                set: Bytes::from_static(set),
                protos: services.iter().map(|&name| name.to_owned()).collect(),
                owned: Vec::new(),
                ready: 0,
                name: "own".to_owned(),
            });
        }
        if let Origin::Mesh {
            mesh,
            agent,
            schemas,
        } = &self.origin
        {
            let claims = Arc::clone(&mesh.borrow().schemas);
            let mut claims: Vec<SchemaClaim> = claims.iter().cloned().collect();
            // Most ready instances first: over the bound those with the fewest are left out.
            claims.sort_by(|a, b| {
                b.ready
                    .cmp(&a.ready)
                    .then_with(|| a.service.cmp(&b.service))
            });
            let wanted: Vec<_> = claims
                .into_iter()
                .map(|claim| fetch(agent.clone(), schemas.clone(), claim))
                .collect();
            let mut fetched = stream::iter(wanted).buffered(MAX_CONCURRENT_FETCHES);
            let mut total = 0;
            let mut seen = HashSet::new();
            while let Some(source) = fetched.next().await {
                let Some(source) = source else { continue };
                if seen.insert(source.set.clone()) {
                    total += source.set.len();
                }
                let full = total > MAX_TOTAL;
                sources.push(source);
                if full {
                    // The catalogue leaves this one out and records it.
                    break;
                }
            }
        }
        self.cached(sources)
    }

    /// Building parses all descriptors, so it is done once per content.
    fn cached(&self, sources: Vec<Source>) -> Arc<Catalog> {
        let made_of: Vec<_> = sources
            .iter()
            .map(|s| (s.name.clone(), s.ready, s.set.clone(), s.owned.clone()))
            .collect();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cache.as_ref().filter(|cached| cached.made_of == made_of) {
            return Arc::clone(&cached.catalog);
        }
        // Dropped first: two catalogues at once would exceed the bound.
        *cache = None;
        let catalog = Arc::new(Catalog::build(sources, MAX_TOTAL));
        let left_out = catalog.left_out();
        if let Some(first) = left_out.first() {
            tracing::warn!(
                services = left_out.len(),
                "reflection omits descriptors, first those of {}: {}",
                first.service,
                first.why
            );
        }
        *cache = Some(Cached {
            made_of,
            catalog: Arc::clone(&catalog),
        });
        catalog
    }

    fn open(&self, mut questions: Questions) -> Answers<ServerReflectionResponse> {
        let (answers, stream) = mpsc::channel(4);
        let this = self.clone();
        tokio::spawn(async move {
            // One catalogue per stream, so that file names of one answer are valid in the next request.
            let mut catalog = None;
            while let Some(Ok(question)) = questions.next().await {
                let answer = this.answer(question, &mut catalog).await;
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }

    async fn answer(
        &self,
        question: ServerReflectionRequest,
        catalog: &mut Option<Arc<Catalog>>,
    ) -> Result<ServerReflectionResponse, Status> {
        let Some(query) = question.message_request.clone() else {
            return Err(Status::invalid_argument(
                "the request is empty: set one of its fields",
            ));
        };
        let answer = if matches!(query, MessageRequest::ListServices(_)) {
            let service = self
                .services()
                .into_iter()
                .map(|name| ServiceResponse { name })
                .collect();
            MessageResponse::ListServicesResponse(ListServiceResponse { service })
        } else {
            let known = match catalog {
                Some(known) => Arc::clone(known),
                None => {
                    let made = self.catalog().await;
                    *catalog = Some(Arc::clone(&made));
                    made
                }
            };
            match self.undescribed(&known, &query) {
                Some(why) => error(Code::FailedPrecondition, why),
                None => look_up(&known, query),
            }
        };
        Ok(ServerReflectionResponse {
            valid_host: question.host.clone(),
            original_request: Some(question),
            message_response: Some(answer),
        })
    }
}

impl Reflection {
    /// Why a symbol of a known proto service has no descriptors: names the service and the remedy. Not NOT_FOUND,
    /// because clients (grpcurl) drop the message of that.
    fn undescribed(&self, catalog: &Catalog, query: &MessageRequest) -> Option<String> {
        let MessageRequest::FileContainingSymbol(symbol) = query else {
            return None;
        };
        let symbol = symbol.trim_start_matches('.');
        if catalog.file_of_symbol(symbol).is_some() {
            return None;
        }
        let is_of = |proto: &str| {
            let rest = symbol.strip_prefix(proto);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let of_it = |left_out: &&LeftOut| left_out.protos.iter().any(|proto| is_of(proto));
        if let Some(LeftOut { service, why, .. }) = catalog.left_out().iter().find(of_it) {
            return Some(format!("the descriptors of {service} are omitted: {why}"));
        }
        let Origin::Mesh { mesh, .. } = &self.origin else {
            return None;
        };
        let table = Arc::clone(&mesh.borrow().table);
        let serves = |service: &&Arc<Service>| service.protos.iter().any(|it| is_of(&it.name));
        let service = table.services().find(serves)?;
        Some(format!(
            "{} serves {symbol}, but nobody has given its descriptors: enable server reflection in it, or give them \
             with --descriptors FILE (heddle run) or descriptors: FILE (services file)",
            service.name
        ))
    }
}

fn look_up(catalog: &Catalog, query: MessageRequest) -> MessageResponse {
    let (file, what) = match query {
        MessageRequest::FileByFilename(name) => (
            catalog.file(&name).map(|_| name.clone()),
            format!("file \"{name}\""),
        ),
        MessageRequest::FileContainingSymbol(symbol) => (
            catalog.file_of_symbol(&symbol).map(str::to_owned),
            format!("symbol \"{symbol}\": no descriptors in the mesh define it"),
        ),
        MessageRequest::FileContainingExtension(e) => (
            catalog
                .file_of_extension(&e.containing_type, e.extension_number)
                .map(str::to_owned),
            format!(
                "extension {} of \"{}\"",
                e.extension_number, e.containing_type
            ),
        ),
        MessageRequest::AllExtensionNumbersOfType(name) => {
            return match catalog.extension_numbers(&name) {
                Some(extension_number) => {
                    MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                        base_type_name: name,
                        extension_number,
                    })
                }
                None => not_found(&format!("message \"{name}\"")),
            };
        }
        MessageRequest::ListServices(_) => (None, "services".into()),
    };
    let Some(file) = file else {
        return not_found(&what);
    };
    let files = catalog.closure(&file, MAX_ANSWER);
    let file_descriptor_proto = files.into_iter().map(|(_, bytes)| bytes.to_vec()).collect();
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
        file_descriptor_proto,
    })
}

fn not_found(what: &str) -> MessageResponse {
    error(Code::NotFound, format!("not found: {what}"))
}

fn error(code: Code, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse {
        error_code: code.into(),
        error_message,
    })
}

/// The descriptors of the services that the proxy itself answers. They describe these services; if file names clash,
/// the mesh's files keep their names.
fn own_sources() -> Vec<Source> {
    let own = |name: &str, set: &'static [u8]| Source {
        set: Bytes::from_static(set),
        protos: OWN_SERVICES.iter().map(|&s| s.to_owned()).collect(),
        owned: Vec::new(),
        ready: 0,
        // Sorts after every mesh service.
        name: format!("~{name}"),
    };
    vec![
        own("health", tonic_health::pb::FILE_DESCRIPTOR_SET),
        // The messages of error details, so that grpcurl can show them.
        own("error-details", tonic_types::pb::FILE_DESCRIPTOR_SET),
        own("reflection", v1::FILE_DESCRIPTOR_SET),
        own("reflection-alpha", v1alpha::FILE_DESCRIPTOR_SET),
    ]
}

/// The first set that is available: from this node's agent, else from the control plane.
async fn fetch(agent: Agent, schemas: Schemas, claim: SchemaClaim) -> Option<Source> {
    for hash in &claim.hashes {
        let found = match agent.schema(hash) {
            Some(schema) => Some(schema.bytes),
            None => schemas.get(hash).await,
        };
        if let Some(set) = found {
            return Some(Source {
                set,
                protos: claim.protos,
                owned: claim.owned,
                ready: claim.ready,
                name: claim.service,
            });
        }
    }
    None
}

type Questions = Pin<Box<dyn Stream<Item = Result<ServerReflectionRequest, Status>> + Send>>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl server_v1::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        Ok(Response::new(self.open(Box::pin(request.into_inner()))))
    }
}

#[tonic::async_trait]
impl server_v1alpha::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<v1alpha::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let questions = request.into_inner().map(|q| same(&q?));
        let answers = self.open(Box::pin(questions)).map(|a| same(&a?));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The messages of both versions are equal on the wire.
fn same<A: prost::Message, B: prost::Message + Default>(message: &A) -> Result<B, Status> {
    B::decode(message.encode_to_vec().as_slice())
        .map_err(|error| Status::internal(error.to_string()))
}
