//! The address of a listener of this node's proxy (agent, outbound), as a client gives it. Input: a word. Output: a URL,
//! or what to give instead. Nothing is connected here.

/// The word is no address of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give one address, http://HOST:PORT or unix:/path")]
pub struct AddressError;

/// `http://HOST:PORT` or `unix:/path`; `HOST:PORT` alone is taken as the former.
///
/// # Errors
/// The word is none of these.
pub fn proxy_url(word: &str) -> Result<String, AddressError> {
    if word.starts_with("unix:/") {
        return Ok(word.to_owned());
    }
    let address = word.strip_prefix("http://").unwrap_or(word);
    let address = address.strip_suffix('/').unwrap_or(address);
    let (host, port) = address.rsplit_once(':').ok_or(AddressError)?;
    let is_host = !host.is_empty() && !host.contains(['/', ',', ' ', '?', '#', '@']);
    match port.parse::<u16>() {
        Ok(port) if is_host && port != 0 => Ok(format!("http://{address}")),
        _ => Err(AddressError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_socket() {
        for (word, url) in [
            ("127.0.0.1:28101", "http://127.0.0.1:28101"),
            ("proxy:15002", "http://proxy:15002"),
            ("http://[::1]:15001/", "http://[::1]:15001"),
            ("unix:/run/out.sock", "unix:/run/out.sock"),
        ] {
            assert_eq!(proxy_url(word).as_deref(), Ok(url));
        }
        for bad in [
            "",
            "localhost",
            "http://localhost",
            "http://h:1,http://h:2",
            "foo://bar",
            "https://h:1",
            "http://h:1/path",
            "h:0",
            "h:65536",
            "unix:relative",
        ] {
            assert_eq!(proxy_url(bad), Err(AddressError), "{bad}");
        }
    }
}
