//! Finds the names that are most similar to a mistyped one, for the message of NO_ROUTE. Pure functions on strings.

/// At most `limit` of `names`, most similar first. Names with more edits than half of the letters plus one are left
/// out.
pub fn nearest<'n>(
    wanted: &str,
    names: impl Iterator<Item = &'n str>,
    limit: usize,
) -> Vec<&'n str> {
    let far = wanted.chars().count() / 2 + 1;
    let mut found: Vec<(usize, &str)> = names
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= far)
        .collect();
    found.sort_unstable();
    found.truncate(limit);
    found.into_iter().map(|(_, name)| name).collect()
}

/// Edit distance in letters, up to the longest possible name.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_LETTERS).collect();
    let b: Vec<char> = b.chars().take(MAX_LETTERS).collect();
    heddle_options::edit_distance(&a, &b)
}

/// Names consist of DNS labels: anything longer than two of them is not a name.
const MAX_LETTERS: usize = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_finger_does_wrong() {
        for (a, b, expect) in [
            ("users", "users", 0),
            ("users", "user", 1),
            ("users", "usesr", 1),
            ("users", "uzers", 1),
            ("users", "sers", 1),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expect, "{a} {b}");
        }
    }

    #[test]
    fn names_that_are_far_off_are_not_offered() {
        let names = ["users", "usher", "tokens", "messages"];
        assert_eq!(nearest("usres", names.into_iter(), 3), ["users", "usher"]);
        assert_eq!(nearest("zzzzzz", names.into_iter(), 3), [""; 0]);
    }
}
