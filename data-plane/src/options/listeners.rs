//! Resolves the listener options: addresses, consent to those beyond loopback, and the address that other nodes dial.
//! Input: words. Output: addresses, and every fault as a sentence with the option's name.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use heddle_listen::{InsecureListeners, ListenAddr, ListenOption};

use super::{RawOptions, is_own_address};

/// The default port of inbound.
const INBOUND_PORT: u16 = 15008;

/// Parses the words of one listener option.
pub(super) fn listeners(
    name: &str,
    words: &[String],
    faults: &mut Vec<String>,
) -> Vec<ListenOption> {
    let mut out = Vec::new();
    for word in words {
        match word.parse() {
            Ok(option) => out.push(option),
            Err(why) => faults.push(format!("{name} \"{word}\": {why}")),
        }
    }
    out
}

/// The workers' sockets. `localhost` means both loopback addresses if the host has both.
pub(super) fn sockets(options: &[ListenOption]) -> Vec<ListenAddr> {
    let mut out = Vec::new();
    for option in options {
        let mut each = option.each();
        if matches!(option, ListenOption::Localhost(_))
            && !is_own_address(Ipv6Addr::LOCALHOST.into())
        {
            each.truncate(1);
        }
        out.extend(each);
    }
    out
}

/// Refuses listeners beyond loopback that `--insecure-listen` does not name. Returns the warnings.
pub(super) fn check_exposure(
    raw: &RawOptions,
    listeners_of: &[(&str, &[ListenOption], &str)],
    faults: &mut Vec<String>,
) -> Vec<String> {
    let mut consent =
        InsecureListeners::new(listeners("--insecure-listen", &raw.insecure_listen, faults));
    let mut warnings = Vec::new();
    for (option, addresses, risk) in listeners_of {
        for address in *addresses {
            match consent.check(option, address, risk) {
                Ok(()) => warnings.extend(InsecureListeners::warning(option, address, risk)),
                Err(fault) => faults.push(fault),
            }
        }
    }
    faults.extend(consent.unused().err());
    warnings
}

pub(super) fn inbound(raw: &RawOptions, faults: &mut Vec<String>) -> Vec<ListenAddr> {
    if raw.inbound.is_empty() {
        let ip = if raw.insecure_inbound {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        return vec![ListenAddr::Tcp(SocketAddr::from((ip, INBOUND_PORT)))];
    }
    let options = listeners("--inbound", &raw.inbound, faults);
    for option in &options {
        if !raw.insecure_inbound && option.is_beyond_loopback() {
            faults.push(format!(
                "--inbound \"{option}\" is not a loopback address and there is no mTLS yet: add \
                 --insecure-inbound if anyone who can reach it may call every instance of this \
                 node, or use 127.0.0.1:{}",
                option.port().unwrap_or(INBOUND_PORT)
            ));
        }
    }
    sockets(&options)
}

pub(super) fn advertise(word: &str, faults: &mut Vec<String>) -> Option<SocketAddr> {
    let found = word.to_socket_addrs().map(|mut addrs| addrs.next());
    let why = match found {
        Ok(Some(addr)) if addr.ip().is_unspecified() => {
            "other nodes cannot dial the unspecified address".to_owned()
        }
        Ok(Some(addr)) if addr.port() == 0 => "the port may not be 0".to_owned(),
        Ok(Some(addr)) => return Some(addr),
        Ok(None) => "the name has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    faults.push(format!(
        "--advertise \"{word}\": {why}; use HOST:PORT at which other nodes reach inbound"
    ));
    None
}
