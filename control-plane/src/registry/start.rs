//! Opens a registry: reads the store, joins the replicas and stands for election. This is the only file that uses all
//! parts of the registry; their rules are not repeated here.

use std::sync::Arc;

use super::{
    core::Registry,
    leader,
    membership::Membership,
    options::{RegistryError, RegistryOptions},
};
use crate::store::Store;

impl Registry {
    /// Reads the store, follows it, and joins the replicas according to the options.
    pub async fn open(
        store: Arc<dyn Store>,
        options: RegistryOptions,
    ) -> Result<Membership, RegistryError> {
        let registry = Self::load(store, options).await?;
        let advertise = registry.options().advertise.clone();
        let membership = Membership::new(registry);
        membership.serve_at(&advertise).await?;
        Ok(membership)
    }
}

impl Membership {
    /// Publishes to the other replicas that this one serves, at "http://host:port", and stands for election from then
    /// on.
    pub async fn serve_at(&self, advertise: &str) -> Result<(), RegistryError> {
        self.join(advertise).await?;
        leader::start(self);
        Ok(())
    }
}
