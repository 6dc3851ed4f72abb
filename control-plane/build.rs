//! Compiles what reflection says of Envoy's services, whose generated code comes without descriptors, and the messages
//! of etcd's API.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/status/v3/csds.proto",
    "envoy/service/load_stats/v3/lrs.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=reflection");
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["reflection"])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("envoy.bin"), compiler.encode_file_descriptor_set())?;

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_source_info(true)
        .open_files(["etcd.proto"])?;
    let bytes = compiler.encode_file_descriptor_set();
    let set = prost_types::FileDescriptorSet::decode(bytes.as_slice())?;
    // Messages only: the client makes its calls itself.
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .bytes(".")
        .compile_fds(set)?;
    Ok(())
}
