//! Which names are nearest to a mistyped one: for the sentence of NO_ROUTE. Strings in, strings out.

/// At most `limit` of `names`, nearest first, none of them far off: half of the name may differ at most.
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

/// How many letters must be changed, added, dropped or swapped (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_LETTERS).collect();
    let b: Vec<char> = b.chars().take(MAX_LETTERS).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let at = |row: &[usize], i: usize| row.get(i).copied().unwrap_or(usize::MAX / 2);
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let change = at(&last, j) + usize::from(x != y);
            let mut best = change.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    at(&last, b.len())
}

/// Names are DNS labels: more than two of them long is no name.
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
