//! Opens the store that the options name and loads the registry as soon as the store answers. An error that waiting
//! cannot resolve (a wrong option, a locked file, a wrong password) is returned at once; a store that does not answer
//! yet is waited for, and this is logged.

use std::{fs, sync::Arc, time::Duration};

use super::AppError;
use crate::{
    options::{Options, StoreOption},
    registry::RegistryError,
    store::{Embedded, EmbeddedOptions, Etcd, EtcdOptions, Store, StoreError},
};
use heddle_pacing::Backoff;

/// The shortest and the longest pause between attempts to reach the store.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);

/// The store, and its name for the ready line.
pub(super) fn open(options: &Options) -> Result<(Arc<dyn Store>, String), AppError> {
    match &options.store {
        StoreOption::Embedded(path) => {
            let name = format!("embedded:{}", path.display());
            if let Some(option) = given_for_etcd(options) {
                return Err(AppError::NotForStore {
                    option,
                    store: name,
                });
            }
            Ok((Arc::new(Embedded::open(&EmbeddedOptions::new(path))?), name))
        }
        StoreOption::Etcd(urls) => {
            let store = Etcd::open(&etcd(options, urls)?)?;
            // The ready line separates its values with ", ".
            Ok((Arc::new(store), format!("etcd:{}", urls.join(","))))
        }
    }
}

/// The first given option that only an etcd store uses.
fn given_for_etcd(options: &Options) -> Option<&'static str> {
    let given = [
        ("--store-ca", options.store_ca.is_some()),
        ("--store-cert", options.store_cert.is_some()),
        ("--store-key", options.store_key.is_some()),
        ("--store-user", options.store_user.is_some()),
        (
            "--store-password-file",
            options.store_password_file.is_some(),
        ),
    ];
    given
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
}

fn etcd(options: &Options, urls: &[String]) -> Result<EtcdOptions, AppError> {
    let mut etcd = EtcdOptions::new(urls.to_vec());
    etcd.prefix.clone_from(&options.store_prefix);
    etcd.ca.clone_from(&options.store_ca);
    etcd.identity = match (&options.store_cert, &options.store_key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        _ => return Err(AppError::Together("--store-cert", "--store-key")),
    };
    etcd.user = match (&options.store_user, &options.store_password_file) {
        (Some(user), Some(path)) => {
            let password = fs::read_to_string(path).map_err(|error| AppError::Unreadable {
                option: "--store-password-file",
                path: path.display().to_string(),
                cause: error.to_string(),
            })?;
            // Editors end a file with a newline, which is not part of the password.
            Some((
                user.clone(),
                password.trim_end_matches(['\r', '\n']).to_owned(),
            ))
        }
        (None, None) => None,
        _ => return Err(AppError::Together("--store-user", "--store-password-file")),
    };
    let plain = urls.iter().any(|url| url.starts_with("http:"));
    if plain && (etcd.ca.is_some() || etcd.identity.is_some()) {
        return Err(AppError::PlainStore);
    }
    Ok(etcd)
}

/// Repeats `ask` until the store answers.
pub(super) async fn until_store_answers<T>(
    mut ask: impl AsyncFnMut() -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        match ask().await {
            Err(RegistryError::Store(StoreError::Unavailable { cause })) => {
                tracing::warn!(cause, "waiting for the store");
            }
            done => return done,
        }
        // With jitter, so that replicas that wait for one store do not all ask at the same time.
        tokio::time::sleep(backoff.fail()).await;
    }
}
