//! The options of heddle-echo, as typed.

/// A small gRPC service for demos, tests and benchmarks of the mesh
#[derive(Clone, Debug, clap::Parser)]
// --version names the service's version here, so this program has no such flag of its own.
#[command(name = "heddle-echo", disable_version_flag = true)]
pub struct Options {
    /// Where to listen: IP:PORT (port 0: a free one), localhost:PORT (127.0.0.1 and ::1) or unix:/path; repeatable
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: Vec<String>,
    /// The mesh name to register
    #[arg(long, value_name = "NAME", default_value = "heddle-echo")]
    pub service: String,
    /// The namespace of the service
    #[arg(long, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// The version to register
    #[arg(long, value_name = "V", default_value = "v1")]
    pub version: String,
    /// The name of this instance, unique on its node
    #[arg(long, value_name = "ID", default_value_t = fresh_id(), hide_default_value = true)]
    #[arg(
        help = "The name of this instance, unique on its node [default: echo- and 8 random characters]"
    )]
    pub instance: String,
    /// The agent of this node: http://HOST:PORT or unix:/path; "none": do not register
    #[arg(
        long,
        value_name = "URL",
        env = "HEDDLE_AGENT",
        default_value = "http://127.0.0.1:15002"
    )]
    pub agent: String,
}

fn fresh_id() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let (short, _) = random.split_at(8);
    format!("echo-{short}")
}
