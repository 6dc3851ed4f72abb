//! Whether a call may continue: limits, shares and budgets per service and per connection. Takes counts and `now`,
//! answers yes or no. Calls nothing else and has no sockets.

pub mod budget;
pub(crate) mod buffers;
pub mod call;
pub mod share;

pub use budget::RetryBudget;
pub use call::CallPolicy;
pub use share::{Shares, within_group_share, within_share};
