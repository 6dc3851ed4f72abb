//! Compiles every .proto with protox (no system `protoc`) into messages, services and one descriptor set.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "heddle/registry/v1/registry.proto",
    "heddle/control/v1/node_session.proto",
    "heddle/control/v1/replica.proto",
    "heddle/status/v1/mesh_status.proto",
    "heddle/xds/v1/resources.proto",
    "heddle/link/v1/link.proto",
    "heddle/store/v1/records.proto",
    "heddle/echo/v1/echo.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=heddle");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // As protox encodes it: a pass through generated descriptor types would drop extensions.
    let bytes = compiler.encode_file_descriptor_set();
    fs::write(out.join("heddle.bin"), &bytes)?;
    let set = prost_types::FileDescriptorSet::decode(bytes.as_slice())?;
    tonic_prost_build::configure().bytes(".").compile_fds(set)?;
    Ok(())
}
