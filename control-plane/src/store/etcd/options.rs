//! Where an etcd is and how to connect to it, parsed from the options: endpoints that are ready to connect, or the
//! option that is wrong. Files with keys and passwords are read here. No connection is made.

use std::{fs, path::PathBuf, time::Duration};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::store::StoreError;

/// The longest prefix: with it, the longest transaction still fits into a request of etcd.
const MAX_PREFIX_BYTES: usize = 64;
/// The time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// The interval of keep-alive pings on connections with open calls. etcd closes a connection with more than one in 5 s.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Where the members are and how to connect to them.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// As `scheme://host:port`, all with the same scheme; see [`urls`].
    pub urls: Vec<String>,
    /// Added before every key; it ends with a slash.
    pub prefix: String,
    /// PEM of the authorities that may sign etcd's certificate (`--store-ca`).
    pub ca: Option<PathBuf>,
    /// PEM of the client certificate for etcd, and of its key (`--store-cert`, `--store-key`).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password (`--store-user`, `--store-password-file`).
    pub user: Option<(String, String)>,
    /// The time limit of a call. Default 5 s.
    pub timeout: Duration,
}

impl EtcdOptions {
    #[must_use]
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            prefix: "heddle/".to_owned(),
            ca: None,
            identity: None,
            user: None,
            timeout: Duration::from_secs(5),
        }
    }

    /// The URL and the endpoint of each member.
    pub(super) fn members(&self) -> Result<Vec<(String, Endpoint)>, StoreError> {
        let tls = self.tls()?;
        let dial = |url: &String| {
            let wrong = |cause: String| self.wrong(cause);
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| wrong(format!("{url} is not an address: {error}")))?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true);
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(|error| {
                    wrong(format!(
                        "--store-ca, --store-cert or --store-key cannot be used: {error}"
                    ))
                })?;
            }
            Ok((url.clone(), endpoint))
        };
        self.urls.iter().map(dial).collect()
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, StoreError> {
        if !self.urls.iter().any(|url| url.starts_with("https:")) {
            return Ok(None);
        }
        let Some(ca) = &self.ca else {
            return Err(self.wrong(
                "https needs --store-ca FILE, the authority of etcd's certificate".to_owned(),
            ));
        };
        let ca = self.pem("--store-ca", ca, "CERTIFICATE")?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((cert, key)) = &self.identity {
            let cert = self.pem("--store-cert", cert, "CERTIFICATE")?;
            let key = self.pem("--store-key", key, "PRIVATE KEY")?;
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Ok(Some(tls))
    }

    fn pem(&self, option: &str, path: &PathBuf, holds: &str) -> Result<String, StoreError> {
        let path_text = path.display();
        let text = fs::read_to_string(path)
            .map_err(|error| self.wrong(format!("{option} {path_text}: {error}")))?;
        let has = |line: &str| {
            line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{holds}-----"))
        };
        if text.lines().any(has) {
            Ok(text)
        } else {
            Err(self.wrong(format!("{option} {path_text} contains no {holds} in PEM")))
        }
    }

    fn wrong(&self, cause: String) -> StoreError {
        StoreError::Options {
            store: format!("etcd:{}", self.urls.join(",")),
            cause,
        }
    }
}

/// Parses `http://h1:2379,h2:2379`: the scheme of the first applies to all, and may be omitted after it.
pub fn urls(text: &str) -> Result<Vec<String>, String> {
    let example = "for example etcd:http://h1:2379,http://h2:2379";
    let (scheme, _) = text
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or_else(|| format!("an address of etcd begins with http:// or https://, {example}"))?;
    let read = |part: &str| {
        let host = match part.split_once("://") {
            Some((own, host)) if own == scheme => host,
            Some(_) => {
                return Err(format!(
                    "{part}: all addresses must have the scheme {scheme}"
                ));
            }
            None => part,
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        let url = format!("{scheme}://{host}");
        let uri: http::Uri = url
            .parse()
            .map_err(|error| format!("{part:?} is not an address ({error}), {example}"))?;
        let plain = uri.path() == "/" && uri.query().is_none() && !host.contains('@');
        if uri.port_u16().is_none() || !plain {
            return Err(format!("{part:?} must be host:port, {example}"));
        }
        Ok(url)
    };
    text.split(',').map(read).collect()
}

/// Parses `--store-prefix`; adds a slash at its end if it has none.
pub fn prefix(text: &str) -> Result<String, String> {
    let mut prefix = text.to_owned();
    if !prefix.ends_with('/') {
        prefix.push('/');
    }
    let fits =
        prefix.len() <= MAX_PREFIX_BYTES && prefix.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits || prefix.len() < 2 {
        return Err(format!(
            "must be 1 to {} printable ASCII characters, for example heddle/",
            MAX_PREFIX_BYTES - 1
        ));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let check = |text: &str, expect: &[&str]| assert_eq!(urls(text).unwrap(), expect, "{text}");
        check("http://h1:2379", &["http://h1:2379"]);
        check(
            "http://h1:2379,h2:1,http://[::1]:2",
            &["http://h1:2379", "http://h2:1", "http://[::1]:2"],
        );
        check(
            "https://h1:2379/,h2:2379",
            &["https://h1:2379", "https://h2:2379"],
        );
        let wrong = |text: &str, part: &str| {
            let error = urls(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        wrong("h1:2379", "begins with http://");
        wrong("", "begins with http://");
        wrong("ftp://h1:2379", "begins with http://");
        wrong("http://h1:2379,https://h2:2379", "scheme http");
        wrong("http://h1", "host:port");
        wrong("http://h1:2379,", "not an address");
        wrong("http://h1:2379/path", "host:port");
        wrong("http://u@h1:2379", "host:port");
    }

    #[test]
    fn prefixes_are_read() {
        assert_eq!(prefix("heddle").unwrap(), "heddle/");
        assert_eq!(prefix("/a/b/").unwrap(), "/a/b/");
        for wrong in ["", "/", "a b", "ä", &"x".repeat(64)] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_files_names_the_option() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let check = |change: &dyn Fn(&mut EtcdOptions), part: &str| {
            let mut options = EtcdOptions::new(vec!["https://h1:2379".to_owned()]);
            change(&mut options);
            let error = options.members().err().unwrap().to_string();
            assert!(
                error.contains(part) && error.contains("https://h1:2379"),
                "{error}"
            );
        };
        check(&|_| {}, "needs --store-ca");
        check(&|options| options.ca = Some(path.clone()), "No such file");
        fs::write(&path, "a letter").unwrap();
        check(
            &|options| options.ca = Some(path.clone()),
            "contains no CERTIFICATE",
        );
        fs::write(
            &path,
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        check(&|options| options.ca = Some(path.clone()), "--store-ca");
    }
    #[test]
    fn etcd_options_do_not_suggest_a_file() {
        let options = EtcdOptions::new(vec!["https://h1:2379".to_owned()]);
        let error = options.members().err().unwrap().to_string();
        assert!(!error.contains("embedded"), "{error}");
    }
}
