//! Path templates of `google.api.http` (grammar in google/api/http.proto) and their matcher: which template of many a
//! request's path fits, and what its variables hold. Takes raw paths, before any decoding. What a variable's text means
//! for its field is decided by the reader of requests; hosts and query strings are not known here.

mod escapes;
mod matcher;
mod request_path;
mod template;

pub use matcher::{Capture, Find, Matcher};
pub use request_path::{PathFault, RequestPath};
pub use template::{Template, TemplateFault};

#[cfg(test)]
mod tests;
