//! How often something may be done: exponential backoff between attempts, and a token bucket. Both are pure: the time is
//! an argument, and nothing here sleeps. Anything that knows what is being done may not come in here.

mod backoff;
mod bucket;

pub use backoff::{Backoff, jittered};
pub use bucket::TokenBucket;
