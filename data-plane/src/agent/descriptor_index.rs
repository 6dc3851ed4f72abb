//! Indexes a descriptor file: its names, imports, services and extensions. Input: the bytes of a
//! serialized FileDescriptorProto. Output: names, one after the other. The file is not decoded: it comes from outside,
//! and decoded it takes up to sixty times its bytes. Options and fields are skipped.

use super::wire::{Value, WireError, values};

/// The deepest nesting of messages; protoc itself stops at 32.
const MAX_DEPTH: usize = 64;
/// The longest full name of a message, enum, extension or service, in bytes. It is bounded because every name repeats
/// the names of its enclosing scopes.
const MAX_NAME: usize = 1024;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DescriptorError {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("a name is not UTF-8")]
    NotUtf8,
    #[error("a file has no name")]
    NoName,
    #[error("messages nest deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("a full name is longer than {MAX_NAME} bytes")]
    LongName,
    /// The reader wants no more.
    #[error("it was not read completely")]
    Stopped,
}

/// One item of a file, in the order of the file. Names are full names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'f> {
    /// The file's own name; always the first item.
    Name(&'f str),
    /// The name of an imported file.
    Import(&'f str),
    Service(&'f str),
    /// A method of the preceding service that may safely be called twice.
    IdempotentMethod(&'f str),
    /// A message or an enum.
    Type(&'f str),
    Extension {
        name: &'f str,
        extended: &'f str,
        number: i32,
    },
}

/// Takes the items of a file; returning false ends the reading.
pub trait Reader {
    fn take(&mut self, item: Item<'_>) -> bool;
}

impl<F: FnMut(Item<'_>) -> bool> Reader for F {
    fn take(&mut self, item: Item<'_>) -> bool {
        self(item)
    }
}

/// Reads a serialized FileDescriptorProto.
///
/// # Errors
/// It is not one, it exceeds a bound, or the reader stopped.
pub fn read(file: &[u8], reader: &mut dyn Reader) -> Result<(), DescriptorError> {
    // The package is needed for every name, but fields may come in any order: read it in a first pass.
    let (mut name, mut package) = ("", "");
    for field in values(file) {
        match field? {
            (1, Value::Bytes(it)) => name = utf8(it)?,
            (2, Value::Bytes(it)) => package = utf8(it)?,
            _ => {}
        }
    }
    if name.is_empty() {
        return Err(DescriptorError::NoName);
    }
    let mut walk = Walk {
        reader,
        scope: String::new(),
    };
    walk.emit(Item::Name(name))?;
    walk.inside(package, |walk| walk.file(file))
}

/// The position in a file: the reader, and the full name of the current scope.
struct Walk<'r> {
    reader: &'r mut dyn Reader,
    scope: String,
}

impl Walk<'_> {
    fn emit(&mut self, item: Item<'_>) -> Result<(), DescriptorError> {
        continue_if(self.reader.take(item))
    }

    /// Runs `read` with `name` added to the scope.
    fn inside(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<(), DescriptorError>,
    ) -> Result<(), DescriptorError> {
        let outer = self.scope.len();
        if outer + 1 + name.len() > MAX_NAME {
            return Err(DescriptorError::LongName);
        }
        if outer > 0 && !name.is_empty() {
            self.scope.push('.');
        }
        self.scope.push_str(name);
        let done = read(self);
        self.scope.truncate(outer);
        done
    }

    fn file(&mut self, file: &[u8]) -> Result<(), DescriptorError> {
        for field in values(file) {
            match field? {
                (3, Value::Bytes(it)) => self.emit(Item::Import(utf8(it)?))?,
                (4, Value::Bytes(it)) => self.message(it, 1)?,
                (5, Value::Bytes(it)) => self.enumeration(it)?,
                (6, Value::Bytes(it)) => self.service(it)?,
                (7, Value::Bytes(it)) => self.extension(it)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn message(&mut self, message: &[u8], depth: usize) -> Result<(), DescriptorError> {
        if depth > MAX_DEPTH {
            return Err(DescriptorError::TooDeep);
        }
        self.inside(text(message, 1)?, |walk| {
            walk.emit_scope(|scope| Item::Type(scope))?;
            for field in values(message) {
                match field? {
                    (3, Value::Bytes(it)) => walk.message(it, depth + 1)?,
                    (4, Value::Bytes(it)) => walk.enumeration(it)?,
                    (6, Value::Bytes(it)) => walk.extension(it)?,
                    _ => {}
                }
            }
            Ok(())
        })
    }

    fn enumeration(&mut self, it: &[u8]) -> Result<(), DescriptorError> {
        self.inside(text(it, 1)?, |walk| {
            walk.emit_scope(|scope| Item::Type(scope))
        })
    }

    fn service(&mut self, service: &[u8]) -> Result<(), DescriptorError> {
        self.inside(text(service, 1)?, |walk| {
            walk.emit_scope(|scope| Item::Service(scope))?;
            for field in values(service) {
                if let (2, Value::Bytes(method)) = field?
                    && is_idempotent(method)?
                {
                    walk.emit(Item::IdempotentMethod(text(method, 1)?))?;
                }
            }
            Ok(())
        })
    }

    fn extension(&mut self, it: &[u8]) -> Result<(), DescriptorError> {
        let extended = text(it, 2)?.trim_start_matches('.');
        if extended.len() > MAX_NAME {
            return Err(DescriptorError::LongName);
        }
        let number = i32::try_from(number(it, 3)?).unwrap_or_default();
        self.inside(text(it, 1)?, |walk| {
            let item = Item::Extension {
                name: &walk.scope,
                extended,
                number,
            };
            continue_if(walk.reader.take(item))
        })
    }

    /// Reports an item about the current scope.
    fn emit_scope(
        &mut self,
        item: impl for<'s> FnOnce(&'s str) -> Item<'s>,
    ) -> Result<(), DescriptorError> {
        continue_if(self.reader.take(item(&self.scope)))
    }
}

fn continue_if(wanted: bool) -> Result<(), DescriptorError> {
    match wanted {
        true => Ok(()),
        false => Err(DescriptorError::Stopped),
    }
}

/// `MethodDescriptorProto.options.idempotency_level` is NO_SIDE_EFFECTS or IDEMPOTENT.
fn is_idempotent(method: &[u8]) -> Result<bool, DescriptorError> {
    let mut level = 0;
    for field in values(method) {
        if let (4, Value::Bytes(options)) = field? {
            level = number(options, 34)?.max(level);
        }
    }
    Ok(matches!(level, 1 | 2))
}

/// The value of a text field; empty if it is missing.
fn text(message: &[u8], number: u32) -> Result<&str, DescriptorError> {
    let mut found = "";
    for field in values(message) {
        if let (at, Value::Bytes(it)) = field?
            && at == number
        {
            found = utf8(it)?;
        }
    }
    Ok(found)
}

fn number(message: &[u8], number: u32) -> Result<u64, DescriptorError> {
    let mut found = 0;
    for field in values(message) {
        if let (at, Value::Varint(it)) = field?
            && at == number
        {
            found = it;
        }
    }
    Ok(found)
}

fn utf8(bytes: &[u8]) -> Result<&str, DescriptorError> {
    std::str::from_utf8(bytes).map_err(|_| DescriptorError::NotUtf8)
}
