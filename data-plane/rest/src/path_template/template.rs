//! One template: its grammar, its shape, and what its variables hold of a path that fits it.

use std::fmt;

use super::escapes;
use super::request_path::PathFault;

/// Longest template, in bytes; real ones have less than 100.
const MOST_BYTES: usize = 2048;

/// A parsed template, such as `/v1/{name=shelves/*}/books/{book.id}:publish`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Vec<Part>,
    verb: Option<Box<[u8]>>,
    variables: Vec<Variable>,
}

/// One segment of a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// In the form in which literals are compared.
    Literal(Box<[u8]>),
    /// Any one segment.
    Star,
    /// Any number of segments, also none. Only the last part.
    DoubleStar,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Variable {
    /// As it is written: `book.id`.
    field_path: Box<str>,
    start: usize,
    /// One past its last part.
    end: usize,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFault {
    /// Offset in bytes.
    pub at: usize,
    /// What is wrong there.
    pub why: String,
}

impl fmt::Display for TemplateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for TemplateFault {}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(text: &str) -> Result<Self, TemplateFault> {
        if text.len() > MOST_BYTES {
            return fault(MOST_BYTES, "it is longer than 2048 bytes");
        }
        let mut parser = Parser {
            text,
            at: 0,
            template: Self {
                text: text.into(),
                parts: Vec::new(),
                verb: None,
                variables: Vec::new(),
            },
        };
        parser.template()?;
        Ok(parser.template)
    }

    /// The field paths of its variables, in the order in which they are written.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|variable| &*variable.field_path)
    }

    /// The template without the names of its variables: `/v1/shelves/*/books/*:publish`. Templates with the same shape
    /// fit the same paths.
    #[must_use]
    pub fn shape(&self) -> String {
        let mut shape = String::new();
        for part in &self.parts {
            shape.push('/');
            shape.push_str(&match part {
                Part::Literal(literal) => String::from_utf8_lossy(literal),
                Part::Star => "*".into(),
                Part::DoubleStar => "**".into(),
            });
        }
        if let Some(verb) = &self.verb {
            shape.push(':');
            shape.push_str(&String::from_utf8_lossy(verb));
        }
        shape
    }

    /// The number of literal parts before the first other one.
    #[must_use]
    pub fn leading_literals(&self) -> usize {
        let literal = |part: &&Part| matches!(part, Part::Literal(_));
        self.parts.iter().take_while(literal).count()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn verb(&self) -> Option<&[u8]> {
        self.verb.as_deref()
    }

    /// What each variable holds of a path that fits, its verb cut off.
    pub(super) fn captures<'t>(
        &'t self,
        segments: &[&[u8]],
    ) -> Result<Vec<(&'t str, String)>, PathFault> {
        let text = |variable: &'t Variable| {
            let pattern = self.parts.get(variable.start..variable.end);
            let one_segment =
                !matches!(pattern, Some([Part::DoubleStar])) && variable.end == variable.start + 1;
            let end = match pattern.and_then(<[Part]>::last) {
                Some(Part::DoubleStar) => segments.len(),
                _ => variable.end,
            };
            let mut text = Vec::new();
            let held = segments.get(variable.start..end).unwrap_or_default();
            for (i, segment) in held.iter().enumerate() {
                if i > 0 {
                    text.push(b'/');
                }
                escapes::decode(segment, !one_segment, &mut text);
            }
            let text = String::from_utf8(text).map_err(|_| PathFault::NotUtf8)?;
            Ok((&*variable.field_path, text))
        };
        self.variables.iter().map(text).collect()
    }
}

impl fmt::Display for Template {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn fault<T>(at: usize, why: impl Into<String>) -> Result<T, TemplateFault> {
    Err(TemplateFault {
        at,
        why: why.into(),
    })
}

/// Reads from left to right; `at` is always at a character boundary.
struct Parser<'t> {
    text: &'t str,
    at: usize,
    template: Template,
}

impl Parser<'_> {
    /// `"/" Segments [":" LITERAL]`
    fn template(&mut self) -> Result<(), TemplateFault> {
        if !self.eat('/') {
            return fault(0, "it does not start with \"/\"");
        }
        loop {
            self.segment(false)?;
            if !self.eat('/') {
                break;
            }
        }
        if self.eat(':') {
            let start = self.at;
            let verb = self.literal(false)?;
            if verb.contains(&b':') {
                return fault(start, "a verb contains no \":\"");
            }
            self.template.verb = Some(verb);
        }
        match self.peek() {
            None => Ok(()),
            Some(c) => fault(self.at, format!("unexpected {c:?}")),
        }
    }

    /// `"*" | "**" | LITERAL | Variable`
    fn segment(&mut self, in_variable: bool) -> Result<(), TemplateFault> {
        let start = self.at;
        if self.template.parts.last() == Some(&Part::DoubleStar) {
            return fault(start, "\"**\" must be the last segment");
        }
        if self.eat('{') {
            if in_variable {
                return fault(start, "a variable inside a variable");
            }
            return self.variable(start);
        }
        let part = if self.eat('*') {
            match self.eat('*') {
                true => Part::DoubleStar,
                false => Part::Star,
            }
        } else {
            Part::Literal(self.literal(!in_variable)?)
        };
        if !matches!(part, Part::Literal(_)) && self.peek().is_some_and(|c| !"/:}".contains(c)) {
            return fault(self.at, "a wildcard is a whole segment");
        }
        self.template.parts.push(part);
        Ok(())
    }

    /// `FieldPath ["=" Segments] "}"`, after the brace at `start`.
    fn variable(&mut self, start: usize) -> Result<(), TemplateFault> {
        let field_path = self.field_path()?;
        if self.template.variables().any(|other| other == field_path) {
            return fault(start, format!("the field {field_path} appears twice"));
        }
        let first = self.template.parts.len();
        if self.eat('=') {
            loop {
                self.segment(true)?;
                if !self.eat('/') {
                    break;
                }
            }
        } else {
            self.template.parts.push(Part::Star);
        }
        if !self.eat('}') {
            return fault(
                start,
                format!("the variable {field_path} has no closing brace"),
            );
        }
        if self.peek().is_some_and(|c| !"/:".contains(c)) {
            return fault(self.at, "a variable is a whole segment");
        }
        let end = self.template.parts.len();
        self.template.variables.push(Variable {
            field_path: field_path.into(),
            start: first,
            end,
        });
        Ok(())
    }

    /// `IDENT {"." IDENT}`
    fn field_path(&mut self) -> Result<String, TemplateFault> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        {
            self.at += 1;
        }
        let path = self.text.get(start..self.at).unwrap_or_default();
        let ident =
            |name: &str| !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
        match path.split('.').all(ident) {
            true => Ok(path.to_owned()),
            false => fault(start, format!("{path:?} is no path of a field")),
        }
    }

    /// A literal in its normal form. `colons`: a `:` belongs to it if another segment or `:` comes after it, because only
    /// the last one of the last segment begins the verb.
    fn literal(&mut self, colons: bool) -> Result<Box<[u8]>, TemplateFault> {
        let start = self.at;
        while let Some(c) = self.peek() {
            let ends = matches!(c, '/' | '{' | '}' | '*')
                || c == ':' && !(colons && self.colon_is_literal());
            if ends {
                break;
            }
            if c.is_control() || matches!(c, ' ' | '?' | '#' | '=') {
                return fault(self.at, format!("unexpected {c:?}"));
            }
            self.at += c.len_utf8();
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        if text.is_empty() {
            return fault(start, "an empty segment");
        }
        if escapes::is_dot_segment(text.as_bytes()) {
            return fault(
                start,
                "a segment \".\" or \"..\", which no request may have",
            );
        }
        match escapes::normal(text.as_bytes()) {
            Some(normal) => Ok(normal.into()),
            None => fault(start, "a \"%\" without two hexadecimal digits, or %00"),
        }
    }

    fn colon_is_literal(&self) -> bool {
        let after = self.text.get(self.at + 1..).unwrap_or_default();
        after.contains(['/', ':'])
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn eat(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.at += expected.len_utf8();
        }
        found
    }
}
