//! Schemas for one stream: fetches the schemas that its client waits for from the store, one at a time, and sends them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tonic::Status;

use super::{Variant, stream::Stream};
use crate::{registry::Registry, snapshot::Kind};

/// How often the store is asked again for a schema that is not uploaded yet.
pub(super) const SCHEMA_RETRY: Duration = Duration::from_secs(1);

impl<V: Variant> Stream<'_, V> {
    pub(super) fn fetch_schema(
        &self,
    ) -> Option<impl Future<Output = (Arc<str>, Option<Bytes>)> + Send + use<V>> {
        let name = self.member.client.state().wanted_schema()?;
        let registry = self.ads.registry().clone();
        Some(async move {
            let descriptors = if is_sha256(&name) {
                read_schema(&registry, &name).await
            } else {
                None
            };
            (name, descriptors)
        })
    }

    pub(super) fn send_schema(
        &mut self,
        name: &Arc<str>,
        descriptors: Option<Bytes>,
    ) -> Result<(), Status> {
        let response =
            self.member
                .client
                .state()
                .schema_fetched::<V>(&self.snapshot, name, descriptors);
        match response {
            Some(response) => self.send(Kind::Schema, response),
            None => Ok(()),
        }
    }
}

/// None: the store has no such descriptors. While the store cannot be read the client waits: it would act on a false
/// "does not exist".
async fn read_schema(registry: &Registry, sha256: &str) -> Option<Bytes> {
    let mut logged = false;
    loop {
        match registry.schema(sha256).await {
            Ok(found) => return found,
            Err(error) if !logged => {
                logged = true;
                tracing::warn!(sha256, %error, "cannot read descriptors from the store; retrying every second");
            }
            Err(_) => {}
        }
        tokio::time::sleep(SCHEMA_RETRY).await;
    }
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
