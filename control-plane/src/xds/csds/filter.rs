//! Which clients a request is about: Envoy's node matchers applied to a node id. The error for an unsupported matcher
//! names it. Pure.

use envoy_types::pb::envoy::r#type::matcher::v3::{
    NodeMatcher, StringMatcher, string_matcher::MatchPattern,
};

/// Most matchers of one request, and the longest pattern in bytes.
const MAX_MATCHERS: usize = 1000;
const MAX_PATTERN_BYTES: usize = 512;

/// Why a request cannot be answered.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvalidMatcher {
    #[error("node_matchers: more than {MAX_MATCHERS}; ask for fewer nodes at a time, or for all")]
    TooMany,
    #[error(
        "node_matchers[{0}].node_metadatas: clients are identified by node_id only; leave it out"
    )]
    Metadata(usize),
    #[error("node_matchers[{0}].node_id: must be set; leave node_matchers out to ask for all")]
    NoNodeId(usize),
    #[error("node_matchers[{0}].node_id: must be exact, prefix, suffix or contains")]
    Pattern(usize),
    #[error("node_matchers[{0}].node_id: longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong(usize),
}

/// The clients that match any of the matchers; all if there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeFilter(Vec<Matcher>);

#[derive(Clone, Debug)]
struct Matcher {
    pattern: MatchPattern,
    ignore_case: bool,
}

impl NodeFilter {
    pub(super) fn parse(matchers: Vec<NodeMatcher>) -> Result<Self, InvalidMatcher> {
        if matchers.len() > MAX_MATCHERS {
            return Err(InvalidMatcher::TooMany);
        }
        let numbered = matchers.into_iter().enumerate();
        numbered
            .map(|(number, matcher)| Matcher::parse(number, matcher))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_about(&self, node_id: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|matcher| matcher.fits(node_id))
    }
}

impl Matcher {
    fn parse(number: usize, matcher: NodeMatcher) -> Result<Self, InvalidMatcher> {
        if !matcher.node_metadatas.is_empty() {
            return Err(InvalidMatcher::Metadata(number));
        }
        let StringMatcher {
            ignore_case,
            match_pattern,
        } = matcher.node_id.ok_or(InvalidMatcher::NoNodeId(number))?;
        let lower = |text: String| {
            if text.len() > MAX_PATTERN_BYTES {
                return Err(InvalidMatcher::TooLong(number));
            }
            Ok(if ignore_case {
                text.to_ascii_lowercase()
            } else {
                text
            })
        };
        let pattern = match match_pattern {
            Some(MatchPattern::Exact(text)) => MatchPattern::Exact(lower(text)?),
            Some(MatchPattern::Prefix(text)) => MatchPattern::Prefix(lower(text)?),
            Some(MatchPattern::Suffix(text)) => MatchPattern::Suffix(lower(text)?),
            Some(MatchPattern::Contains(text)) => MatchPattern::Contains(lower(text)?),
            Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_)) | None => {
                return Err(InvalidMatcher::Pattern(number));
            }
        };
        Ok(Self {
            pattern,
            ignore_case,
        })
    }

    fn fits(&self, node_id: &str) -> bool {
        let lowered;
        let node_id = if self.ignore_case {
            lowered = node_id.to_ascii_lowercase();
            &lowered
        } else {
            node_id
        };
        match &self.pattern {
            MatchPattern::Exact(text) => node_id == text,
            MatchPattern::Prefix(text) => node_id.starts_with(text),
            MatchPattern::Suffix(text) => node_id.ends_with(text),
            MatchPattern::Contains(text) => node_id.contains(text),
            // `parse` never produces these.
            MatchPattern::SafeRegex(_) | MatchPattern::Custom(_) => false,
        }
    }
}
