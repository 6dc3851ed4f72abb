//! Limits how often something may be done: exponential backoff between attempts, and a token bucket. Both are pure: the
//! time is an argument, and nothing sleeps here. What is being limited is not known here.

mod backoff;
mod bucket;

pub use backoff::{Backoff, doubled, jittered};
pub use bucket::TokenBucket;
