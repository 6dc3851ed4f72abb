//! (authority parse, next)
