//! Whether a call may go on: bounds, shares and budgets per service and per connection. Counts and `now` come in, yes
//! or no goes out. Nothing here calls out, and no sockets may come in.

pub mod budget;
pub(crate) mod buffers;
pub mod call;
pub mod share;

pub use budget::RetryBudget;
pub use call::CallPolicy;
pub use share::{Shares, within_group_share, within_share};
