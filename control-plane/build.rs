//! Compiles what reflection says of Envoy's services, whose generated code comes without descriptors.

use std::{env, fs, path::PathBuf};

const FILES: &[&str] = &[
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/status/v3/csds.proto",
    "envoy/service/load_stats/v3/lrs.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=reflection");
    let mut compiler = protox::Compiler::new(["reflection"])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("envoy.bin"), compiler.encode_file_descriptor_set())?;
    Ok(())
}
