//! How errors of transports are written for people: the text of tonic and hyper is only "transport error", and what
//! happened stands in the causes. One place, so that all programs write it the same way.

use std::error::Error;

use tonic::Status;

/// The innermost cause: those above it only say that something failed.
#[must_use]
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// An error with its causes, each once, as `outer: inner`.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    join_causes(error.to_string(), error)
}

/// What a status says: its message, or that the connection broke and why.
#[must_use]
pub fn status_text(status: &Status) -> String {
    match status.source() {
        Some(cause) => format!("the connection broke ({})", root_cause(cause)),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Why a call failed, for use in a sentence: the innermost cause if its connection broke, else the message.
#[must_use]
pub fn status_cause(status: &Status) -> String {
    match status.source() {
        Some(cause) => root_cause(cause),
        None => status.message().to_owned(),
    }
}

/// The message of a status and its causes, each once, without the code.
#[must_use]
pub fn status_with_causes(status: &Status) -> String {
    let text = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    join_causes(text.to_owned(), status)
}

/// An error and its causes, outermost first.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}

fn join_causes(mut text: String, error: &(dyn Error + 'static)) -> String {
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("transport error")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn each_cause_appears_once() {
        let error = Outer(io::Error::other("connection refused"));
        assert_eq!(root_cause(&error), "connection refused");
        assert_eq!(with_causes(&error), "transport error: connection refused");
        let broken = Status::from_error(Box::new(error));
        assert_eq!(
            status_text(&broken),
            "the connection broke (connection refused)"
        );
        assert_eq!(status_cause(&broken), "connection refused");
        assert_eq!(
            status_with_causes(&broken),
            "transport error: connection refused"
        );
        let refused = Status::not_found("no such service");
        assert_eq!(status_text(&refused), "NotFound: no such service");
        assert_eq!(status_with_causes(&refused), "no such service");
    }
}
