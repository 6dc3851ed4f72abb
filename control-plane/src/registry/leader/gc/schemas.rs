//! Removes descriptors that nothing refers to, in two steps. Marked descriptors count as missing: a node that needs
//! them is asked to upload them, which removes the mark. Those that are still unused at the next run are deleted. So a
//! registration that runs meanwhile never loses the descriptors that it relies on.

use std::{collections::BTreeSet, sync::Arc};

use super::{Collector, NewEvent, named, now};
use crate::{
    names::keys,
    store::{Compare, MAX_TXN_OPS, Op, StoreError},
};

impl Collector<'_> {
    pub(super) async fn check_schemas(&mut self) -> Result<(), StoreError> {
        let (unused, marked, unmarked) = self.registry.read(|view| {
            let named: BTreeSet<_> = named(view).collect();
            let unused: BTreeSet<_> = view
                .schemas()
                .filter(|sha256| !named.contains(sha256))
                .cloned()
                .collect();
            let (marked, unmarked): (BTreeSet<_>, BTreeSet<_>) = view
                .marked_schemas()
                .iter()
                .cloned()
                .partition(|sha256| !named.contains(sha256));
            (unused, marked, unmarked)
        });
        let options = &self.registry.options().gc;
        self.unused.observe(unused, now());
        self.marked.observe(marked.clone(), now());
        let due = self
            .unused
            .due(now(), options.schemas_after, options.max_unused_schemas);
        let due: Vec<_> = due
            .into_iter()
            .filter(|sha256| !marked.contains(sha256))
            .collect();
        for some in due.chunks(MAX_TXN_OPS) {
            let marks = some.iter().map(|it| Op::put(&keys::marked_schema(it), ""));
            self.write(vec![], marks.collect(), &[]).await?;
        }
        let unmarked: Vec<_> = unmarked.into_iter().collect();
        for some in unmarked.chunks(MAX_TXN_OPS) {
            let marks = some.iter().map(|it| Op::delete(&keys::marked_schema(it)));
            self.write(vec![], marks.collect(), &[]).await?;
        }
        for sha256 in self.marked.due(now(), options.interval, usize::MAX) {
            self.remove(&sha256).await?;
        }
        Ok(())
    }

    async fn remove(&self, sha256: &Arc<str>) -> Result<(), StoreError> {
        let store = self.registry.store();
        let key = keys::marked_schema(sha256);
        let Some(mark) = store.get(&key).await? else {
            return Ok(());
        };
        // A reference may have been added since this run began.
        if self
            .registry
            .read(|view| named(view).any(|it| it == sha256))
        {
            return Ok(());
        }
        let parts = store.range_keys(&keys::schema_parts(sha256), None).await?;
        let mut then = vec![Op::delete(&keys::schema(sha256)), Op::delete(&key)];
        let parts = parts.items.iter().map(|part| &part.key);
        let parts = parts.filter(|key| keys::whole_of_part(key).is_some());
        then.extend(parts.map(|key| Op::delete(key)));
        let cause = format!("no instance or service uses the descriptors {sha256} any more");
        let event = NewEvent::of_mesh("schema-removed", &cause);
        let compare = vec![Compare::unchanged(&key, mark.mod_revision)];
        if self.write(compare, then, &[event]).await? {
            tracing::info!(
                event = "schema-removed",
                %sha256,
                "deleted unused descriptors"
            );
        }
        Ok(())
    }

    /// Removes parts without their whole: those of an interrupted upload.
    pub(super) async fn check_parts(&mut self) -> Result<(), StoreError> {
        let found = self
            .registry
            .store()
            .range_keys(keys::SCHEMAS, None)
            .await?;
        let wholes: BTreeSet<&str> = found.items.iter().map(|item| &*item.key).collect();
        // Only keys that are certainly parts: another mesh's prefix may end with this mesh's folder of descriptors.
        let is_orphan =
            |key: &Arc<str>| keys::whole_of_part(key).is_some_and(|whole| !wholes.contains(whole));
        let keys = found.items.iter().map(|item| &item.key);
        let orphans = keys.filter(|key| is_orphan(key)).cloned().collect();
        self.parts.observe(orphans, now());
        let options = &self.registry.options().gc;
        let due = self
            .parts
            .due(now(), options.interval, options.max_unused_schemas);
        for key in due {
            let Some(whole) = keys::whole_of_part(&key) else {
                continue;
            };
            let compare = vec![Compare::absent(whole)];
            self.write(compare, vec![Op::delete(&key)], &[]).await?;
        }
        Ok(())
    }
}
