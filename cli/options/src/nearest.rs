//! "Did you mean": the known names that are nearest to a mistyped one.

/// Only this many characters are compared: the cost is quadratic, and the name may come from outside.
const COMPARED_CHARS: usize = 128;

/// At most `max` of `known` whose edit distance is within a third of the word's length (at least 2), nearest first,
/// ties by name. Swapped neighbours count as one edit.
#[must_use]
pub fn nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    max: usize,
) -> Vec<&'a str> {
    let word: Vec<char> = word
        .chars()
        .take(COMPARED_CHARS)
        .flat_map(char::to_lowercase)
        .collect();
    let allowed = (word.len() / 3).max(2);
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| {
            let chars: Vec<char> = name
                .chars()
                .take(COMPARED_CHARS)
                .flat_map(char::to_lowercase)
                .collect();
            (edit_distance(&word, &chars), name)
        })
        .filter(|&(edits, name)| edits <= allowed && edits < name.chars().count())
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(max).map(|(_, name)| name).collect()
}

/// The number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string
/// alignment). The cost is the product of the lengths: bound them.
#[must_use]
pub fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (row, &ca) in a.iter().enumerate() {
        let mut current = Vec::with_capacity(b.len() + 1);
        current.push(row + 1);
        let mut left = row + 1;
        let mut previous_b = None;
        for (column, &cb) in b.iter().enumerate() {
            let at = |line: &[usize], i: usize| line.get(i).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&last, column) + usize::from(ca != cb))
                .min(at(&last, column + 1) + 1)
                .min(left + 1);
            if previous_a == Some(cb) && previous_b == Some(ca) && column > 0 {
                best = best.min(at(&before_last, column - 1) + 1);
            }
            current.push(best);
            left = best;
            previous_b = Some(cb);
        }
        before_last = std::mem::replace(&mut last, current);
        previous_a = Some(ca);
    }
    last.last().copied().unwrap_or(0)
}
