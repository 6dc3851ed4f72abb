//! heddle-echo: a small gRPC service for trying, testing and measuring the mesh. Input: options. Output: a server that
//! answers as each request asks, registered with the node's agent. It uses nothing of the control or data plane: it is
//! an ordinary service like any other program.

use std::{ffi::OsString, process::ExitCode, sync::Arc};

use heddle_proto::{
    echo::v1::echo_server::EchoServer,
    registry::v1::{Instance, Protocol},
};
use heddle_sdk::{
    Finish, ListenError, Listener, Registration, RegistrationOptions, serve_until_drained, server,
};
use tonic::transport::server::Router;

mod options;
mod schema;
mod service;

pub use options::Options;
pub use schema::{PROTO_SERVICE, descriptors};
pub use service::{Echo, Identity, MAX_MESSAGE_BYTES};

#[cfg(test)]
mod tests;

/// Why the service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    #[error("--listen {address}: {why}")]
    Listen { address: String, why: ListenError },
    #[error("--agent: {0}")]
    Agent(#[from] heddle_sdk::SdkError),
    #[error("the descriptors built into this program cannot be read: {0}")]
    Schema(String),
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Serve(#[from] heddle_sdk::ServeError),
}

/// The program: `args[0]` is its name. Returns when it has drained.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_ECHO", args);
    heddle_options::init_logging("info");
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(why) => return heddle_options::fail(EchoError::Runtime(why)),
    };
    match runtime.block_on(async { serve(options, heddle_options::terminated()).await }) {
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => heddle_options::fail(why),
    }
}

/// Listens, registers, prints the ready line, and serves until `stop` and the drain after it.
///
/// # Errors
/// An address cannot be bound, or the agent's address is invalid.
pub async fn serve(options: Options, stop: impl Future<Output = ()>) -> Result<Finish, EchoError> {
    let mut listeners = Vec::new();
    for address in &options.listen {
        let bound = Listener::bind_each(address).await;
        listeners.extend(bound.map_err(|why| EchoError::Listen {
            address: address.clone(),
            why,
        })?);
    }
    let registration = register(&options, &listeners)?;
    let identity = Identity {
        service: options.service.clone(),
        version: options.version.clone(),
        instance: options.instance.clone(),
        node: registration.clone(),
    };
    let router = router(identity).await?;
    let addresses: Vec<String> = listeners.iter().map(ToString::to_string).collect();
    heddle_options::ready(&format!(
        "heddle-echo ready: listen {}, service {}.{}, instance {}",
        addresses.join("+"),
        options.service,
        options.namespace,
        options.instance
    ));
    Ok(serve_until_drained(router, listeners, registration.as_ref(), stop).await?)
}

fn register(options: &Options, listeners: &[Listener]) -> Result<Option<Registration>, EchoError> {
    if options.agent == "none" {
        return Ok(None);
    }
    let Some(address) = listeners.iter().find_map(Listener::advertised) else {
        tracing::warn!(
            "not registered: the mesh reaches instances by IP and port; add --listen IP:PORT"
        );
        return Ok(None);
    };
    let instance = Instance {
        service: options.service.clone(),
        namespace: options.namespace.clone(),
        id: options.instance.clone(),
        version: options.version.clone(),
        address: address.to_string(),
        protocol: Protocol::Grpc.into(),
        protos: vec![PROTO_SERVICE.to_owned()],
        ..Instance::default()
    };
    let registration_options = RegistrationOptions {
        instance,
        file_descriptor_set: descriptors()?,
        agent: options.agent.clone(),
    };
    Ok(Some(Registration::start(registration_options)?))
}

/// Echo, health and reflection (v1 and v1alpha) on one server.
async fn router(identity: Identity) -> Result<Router, EchoError> {
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<EchoServer<Echo>>().await;
    let describe = || {
        descriptors().map(|set| {
            tonic_reflection::server::Builder::configure()
                .register_file_descriptor_set(schema::decoded(&set))
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        })
    };
    let schema = |why: tonic_reflection::server::Error| EchoError::Schema(why.to_string());
    let echo = EchoServer::new(Echo::new(Arc::new(identity)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    Ok(server()
        .add_service(echo)
        .add_service(health_server)
        .add_service(describe()?.build_v1().map_err(schema)?)
        .add_service(describe()?.build_v1alpha().map_err(schema)?))
}
