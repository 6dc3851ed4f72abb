//! What every process of Heddle shares at its edges: options from flags, environment and file; logging; the ready
//! line; signals; the one-line failure; background tasks whose end is noticed. In come words that a person wrote, out go typed options or one line per
//! fault. No option of any one program may come in here: each program defines its own with clap.

mod layers;
mod file;
mod nearest;
mod private;
mod logging;
mod process;
mod tasks;

pub use layers::{Parsed, Stop, parse, try_parse};
pub use logging::init_logging;
pub use nearest::{edit_distance, nearest};
pub use private::{create_private_dir, make_private, private_file};
pub use process::{
    complain, fail, one_line, raise_file_limit, ready, terminated, terminated_again,
};
pub use tasks::Tasks;

#[cfg(test)]
mod tests;
