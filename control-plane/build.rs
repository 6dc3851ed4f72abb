//! Compiles what reflection says of the discovery service, whose generated code comes without descriptors.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=reflection");
    let mut compiler = protox::Compiler::new(["reflection"])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(["envoy/service/discovery/v3/ads.proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("ads.bin"), compiler.encode_file_descriptor_set())?;
    Ok(())
}
