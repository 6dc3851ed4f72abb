//! Listeners that other hosts can reach are opened only if the operator has named them, because callers have no
//! identity yet. Input: addresses. Output: warnings, or what is wrong. Each program decides which of its listeners are
//! checked.

use crate::address::ListenOption;

/// The option that names an address.
pub const OPTION: &str = "--insecure-listen";

/// The addresses beyond loopback that the operator has agreed to.
#[derive(Clone, Debug, Default)]
pub struct InsecureListeners {
    named: Vec<(ListenOption, bool)>,
}

impl InsecureListeners {
    /// The addresses that `--insecure-listen` names.
    #[must_use]
    pub fn new(named: impl IntoIterator<Item = ListenOption>) -> Self {
        Self {
            named: named.into_iter().map(|address| (address, false)).collect(),
        }
    }

    /// Whether `address` of `option` may be opened. `risk` says what anyone who reaches it can do.
    ///
    /// # Errors
    /// One sentence with the option, the address, the risk and the remedy.
    pub fn check(
        &mut self,
        option: &str,
        address: &ListenOption,
        risk: &str,
    ) -> Result<(), String> {
        if !address.is_beyond_loopback() {
            return Ok(());
        }
        let named = self.named.iter_mut().find(|(named, _)| named == address);
        match named {
            Some((_, used)) => {
                *used = true;
                Ok(())
            }
            None => {
                let loopback = match address.port() {
                    Some(port) => format!("127.0.0.1:{port}"),
                    None => "127.0.0.1".to_owned(),
                };
                Err(format!(
                    "{option} \"{address}\" is not a loopback address, and anyone who can reach \
                     it {risk}: use {loopback}, or add {OPTION} {address} if only trusted clients \
                     can reach it"
                ))
            }
        }
    }

    /// The warning for an open address beyond loopback.
    #[must_use]
    pub fn warning(option: &str, address: &ListenOption, risk: &str) -> Option<String> {
        address.is_beyond_loopback().then(|| {
            format!(
                "{option} {address} is not a loopback address, and callers are not authenticated: \
                 anyone who can reach it {risk}"
            )
        })
    }

    /// Checks that every named address is that of a listener; others are most likely mistyped.
    ///
    /// # Errors
    /// One sentence for the first of them.
    pub fn unused(&self) -> Result<(), String> {
        match self.named.iter().find(|(_, used)| !used) {
            None => Ok(()),
            Some((address, _)) => Err(format!(
                "{OPTION} \"{address}\" matches no listener beyond loopback: write it exactly as \
                 in the listener's own option, or remove it"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> ListenOption {
        word.parse().unwrap()
    }

    #[test]
    fn an_address_beyond_loopback_must_be_named() {
        let mut consent = InsecureListeners::new([read("10.0.0.5:1")]);
        let mut check = |word| consent.check("--outbound", &read(word), "may call everything");
        assert_eq!(check("127.0.0.1:1"), Ok(()));
        assert_eq!(check("10.0.0.5:1"), Ok(()));
        let refused = check("0.0.0.0:15001").unwrap_err();
        for part in [
            "--outbound \"0.0.0.0:15001\"",
            "may call everything",
            "--insecure-listen 0.0.0.0:15001",
            "127.0.0.1:15001",
        ] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert_eq!(consent.unused(), Ok(()));
    }

    #[test]
    fn what_names_no_listener_is_reported() {
        let mut consent = InsecureListeners::new([read("10.0.0.5:1"), read("10.0.0.5:2")]);
        consent.check("--agent", &read("10.0.0.5:1"), "x").unwrap();
        let fault = consent.unused().unwrap_err();
        assert!(fault.contains("\"10.0.0.5:2\""), "{fault}");
    }
}
