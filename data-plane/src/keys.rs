//! The keys of connections, calls and pools. They are declared below the modules that own the values, so that these
//! modules can refer to each other's values without depending on their types. Only keys belong here.

use crate::arena::Key;

/// Marks keys of connections.
#[derive(Debug)]
pub(crate) enum ConnKind {}
/// Marks keys of calls.
#[derive(Debug)]
pub(crate) enum CallKind {}
/// Marks keys of pools.
#[derive(Debug)]
pub(crate) enum PoolKind {}

pub(crate) type ConnKey = Key<ConnKind>;
pub(crate) type CallKey = Key<CallKind>;
pub(crate) type PoolKey = Key<PoolKind>;
