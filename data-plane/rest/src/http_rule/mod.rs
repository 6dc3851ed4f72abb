//! The HTTP bindings of a method: what its `google.api.http` and `heddle.http.v1.method` options say, checked against its
//! request and response. Takes descriptors, gives bindings, and a finding for each rule that cannot be served; the other rules of
//! the service are not affected by it. Which binding a request gets is decided in `path_template`.

mod check;
mod options;

use prost_reflect::MethodDescriptor;

use crate::path_template::Template;

/// One way to call a method by HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// `GET`, or `*` for every method.
    pub http_method: Box<str>,
    pub template: Template,
    pub body: Body,
    /// The field of the response that the content is, by its number; the response itself if `None`.
    pub response_body: Option<u32>,
}

/// What the content of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none: fields that the path does not name come from the query.
    None,
    /// The request message.
    Message,
    /// A field of the request, by its number.
    Field(u32),
}

/// The options of a method that HTTP clients see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Its bindings in the order in which they are declared. Empty: it has no `google.api.http`.
    pub bindings: Vec<Binding>,
    /// The status of an OK answer: 200 unless the method says another one.
    pub status: u16,
    /// The `Location` of an OK answer; its variables are fields of the response.
    pub location: Option<Template>,
    /// The field that gives events their id; empty: none.
    pub cursor: Box<str>,
    /// Rules that cannot be served.
    pub findings: Vec<Finding>,
}

/// A rule that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `package.Service.Method`
    pub method: String,
    /// The file that declares it.
    pub file: String,
    /// Its line in that file, from 1, if the service gave source information.
    pub line: Option<u32>,
    /// What is wrong, with the rule.
    pub why: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            method, file, why, ..
        } = self;
        match self.line {
            Some(line) => write!(f, "{file}:{line}: {method}: {why}"),
            None => write!(f, "{file}: {method}: {why}"),
        }
    }
}

impl HttpOptions {
    /// Reads the options of a method.
    #[must_use]
    pub fn of(method: &MethodDescriptor) -> Self {
        let raw = options::of(method);
        let mut read = Self {
            bindings: Vec::new(),
            status: 200,
            location: None,
            cursor: Box::default(),
            findings: Vec::new(),
        };
        for rule in &raw.rules {
            match check::binding(method, rule) {
                Ok(binding) => read.bindings.push(binding),
                Err(why) => read.find(method, why),
            }
        }
        match check::status(raw.method.status) {
            Ok(status) => read.status = status,
            Err(why) => read.find(method, why),
        }
        match check::location(method, &raw.method.location) {
            Ok(location) => read.location = location,
            Err(why) => read.find(method, why),
        }
        match check::cursor(method, &raw.method.cursor) {
            Ok(()) => read.cursor = raw.method.cursor.into(),
            Err(why) => read.find(method, why),
        }
        if let Some(why) = raw.fault {
            read.find(method, why);
        }
        read
    }

    fn find(&mut self, method: &MethodDescriptor, why: String) {
        let file = method.parent_file();
        self.findings.push(Finding {
            method: method.full_name().to_owned(),
            file: file.name().to_owned(),
            line: options::line(method),
            why,
        });
    }
}

#[cfg(test)]
mod tests;
