//! (pick, next)
