//! Numbers with their noun, for people: "1 instance", "2 instances". One place, so that every message of both planes and
//! of the command line agrees in number.

/// The number with the noun in singular or plural; for nouns that take an "s".
#[must_use]
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    match number.try_into() {
        Ok(1) => format!("1 {noun}"),
        Ok(number) => format!("{number} {noun}s"),
        Err(_) => format!("many {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn one_is_singular_and_every_other_number_plural() {
        assert_eq!(count(1_usize, "instance"), "1 instance");
        assert_eq!(count(0_u32, "instance"), "0 instances");
        assert_eq!(count(2_u64, "xDS client"), "2 xDS clients");
    }
}
