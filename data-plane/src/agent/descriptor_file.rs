//! A file with a descriptor set, as protoc or buf writes it, for programs without reflection. Input: a path. Output: a
//! checked schema, or one sentence with file, fault and remedy.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use super::schema::{MAX_SCHEMA_BYTES, Schema, SchemaError};

/// Reads and checks a file. It must contain every file that it imports.
///
/// # Errors
/// One sentence that begins with the file.
pub fn read(path: &Path) -> Result<Schema, String> {
    let shown = path.display();
    let bytes = bytes(path).map_err(|why| format!("{shown} {why}"))?;
    let looks_like = other_form(path, &bytes);
    Schema::parse(bytes.into())
        .and_then(|schema| match schema.missing_import() {
            Some(missing) => Err(missing.clone()),
            None => Ok(schema),
        })
        .map_err(|error| match (error, looks_like) {
            (SchemaError::Malformed(_), Some(what)) => format!(
                "{shown} is {what}, not a serialized google.protobuf.FileDescriptorSet: give the \
                 output of protoc --include_imports --descriptor_set_out=FILE or of buf build -o \
                 FILE.binpb"
            ),
            (error, _) => format!("{shown} {error}"),
        })
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let about = fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let most = MAX_SCHEMA_BYTES as u64;
    File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > most {
        let len = usize::try_from(about.len()).unwrap_or(usize::MAX);
        return Err(SchemaError::TooLarge(len.max(bytes.len())).to_string());
    }
    Ok(bytes)
}

/// The wrong formats that people give by mistake.
fn other_form(path: &Path, bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("empty"),
        [0x1f, 0x8b, ..] => Some("compressed"),
        [b'{', ..] => Some("JSON"),
        _ if path.extension().is_some_and(|it| it == "proto") => Some("a .proto source"),
        _ => None,
    }
}
