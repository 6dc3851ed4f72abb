//! All messages and services of Heddle, generated from the .proto files of this crate; the list of reasons of failures; and
//! the rules that both planes share: limits of names and sizes, path ownership, gRPC statuses that are errors, texts of
//! transport errors. The two planes share only this crate and xDS. No other behaviour belongs here.

mod count;
mod event_kind;
mod reason;
pub mod error_text;
pub mod rules;
pub mod status_code;
pub mod paths;

pub use count::count;
pub use event_kind::EVENT_KINDS;
pub use reason::{ERROR_DOMAIN, Reason};

/// Reason in the `google.rpc.ErrorInfo` of a replica that shows an older revision than its client has seen, with `revision`
/// and `seen` in its metadata.
pub const BEHIND: &str = "BEHIND";

/// Every .proto of this crate with its imports and comments: a serialized
/// `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/heddle.bin"));

macro_rules! generated {
    ($($name:ident: $package:literal),* $(,)?) => {
        $(
            #[allow(
                clippy::all,
                clippy::pedantic,
                clippy::unwrap_used,
                unused_qualifications,
                rustdoc::all
            )]
            pub mod $name {
                pub mod v1 {
                    tonic::include_proto!($package);
                }
            }
        )*
    };
}

generated! {
    registry: "heddle.registry.v1",
    control: "heddle.control.v1",
    status: "heddle.status.v1",
    xds: "heddle.xds.v1",
    link: "heddle.link.v1",
    store: "heddle.store.v1",
    echo: "heddle.echo.v1",
}
