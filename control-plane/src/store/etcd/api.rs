//! The messages of etcd's API, generated from proto/etcd.proto, and the paths of its calls. Only the etcd engine uses
//! them.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    rustdoc::all
)]

tonic::include_proto!("etcdserverpb");

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(super) const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(super) const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(super) const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
pub(super) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
pub(super) const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// An answer that includes the store's revision.
pub(super) trait Answer: prost::Message + Default + Send + Sync + 'static {
    fn header(&self) -> Option<&ResponseHeader>;

    /// The store's revision at the time of the answer; 0 if it is missing.
    fn store_revision(&self) -> crate::store::Revision {
        super::translate::revision(self.header().map_or(0, |header| header.revision))
    }
}

macro_rules! answers {
    ($($message:ident),*) => {
        $(
            impl Answer for $message {
                fn header(&self) -> Option<&ResponseHeader> {
                    self.header.as_ref()
                }
            }
        )*
    };
}

answers!(
    RangeResponse,
    TxnResponse,
    WatchResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseKeepAliveResponse,
    StatusResponse,
    AuthenticateResponse
);
