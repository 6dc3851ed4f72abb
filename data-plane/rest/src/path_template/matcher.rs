//! Which of many templates a path fits. The order in which templates were added never counts. A search visits each node
//! of the tree at most once, so its cost is bounded by the size of all templates.

use rustc_hash::FxHashMap;

use super::request_path::{PathFault, RequestPath};
use super::template::{Part, Template};

/// The kind of a binding for every method.
const ANY: &str = "*";

/// All templates, each for one HTTP method (or `*`), with a value of the caller.
#[derive(Clone, Debug)]
pub struct Matcher<T> {
    entries: Vec<Entry<T>>,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    template: Template,
    method: Box<str>,
    value: T,
}

/// The templates with the same parts up to here.
#[derive(Clone, Debug, Default)]
struct Node {
    literals: FxHashMap<Box<[u8]>, usize>,
    star: Option<usize>,
    /// Entries that end here.
    ends: Vec<usize>,
    /// Entries that end here after a `**`.
    double_star: Vec<usize>,
}

/// A variable's field path, and what it holds.
pub type Capture<'m> = (&'m str, String);

/// What a matcher knows of a request.
#[derive(Debug, PartialEq)]
pub enum Find<'m, T> {
    /// The best template that fits and has the method.
    Found {
        value: &'m T,
        captures: Vec<Capture<'m>>,
    },
    /// Templates fit, but none has the method. These are the methods that they have, sorted.
    Method(Vec<&'m str>),
    /// No template fits.
    Nothing,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            nodes: vec![Node::default()],
        }
    }
}

impl<T> Matcher<T> {
    /// Adds a template for a method (`*`: every method).
    ///
    /// # Errors
    /// The value of the one with the same shape and method, which stays.
    pub fn insert(&mut self, template: Template, method: &str, value: T) -> Result<(), &T> {
        let mut node = 0;
        let mut double_star = false;
        for part in template.parts() {
            match part {
                Part::Literal(literal) => node = self.literal_child(node, literal),
                Part::Star => node = self.star_child(node),
                Part::DoubleStar => double_star = true,
            }
        }
        let same =
            |entry: &Entry<T>| entry.template.verb() == template.verb() && *entry.method == *method;
        let index = self.entries.len();
        let Some(node) = self.nodes.get_mut(node) else {
            return Ok(());
        };
        let list = match double_star {
            true => &mut node.double_star,
            false => &mut node.ends,
        };
        let holder = list
            .iter()
            .copied()
            .find(|i| self.entries.get(*i).is_some_and(same));
        if let Some(holder) = holder {
            return self
                .entries
                .get(holder)
                .map_or(Ok(()), |entry| Err(&entry.value));
        }
        list.push(index);
        self.entries.push(Entry {
            template,
            method: method.into(),
            value,
        });
        Ok(())
    }

    fn literal_child(&mut self, node: usize, literal: &[u8]) -> usize {
        let new = self.nodes.len();
        let Some(node) = self.nodes.get_mut(node) else {
            return new;
        };
        let child = *node.literals.entry(literal.into()).or_insert(new);
        if child == new {
            self.nodes.push(Node::default());
        }
        child
    }

    fn star_child(&mut self, node: usize) -> usize {
        let new = self.nodes.len();
        let Some(node) = self.nodes.get_mut(node) else {
            return new;
        };
        let child = *node.star.get_or_insert(new);
        if child == new {
            self.nodes.push(Node::default());
        }
        child
    }

    /// The best template for a request, and what its variables hold.
    ///
    /// Of several that fit, each part from the left decides, literal before `*` before `**`, then one with a verb before
    /// one without, then one for the method before one for every method.
    ///
    /// # Errors
    /// A variable would hold what is not UTF-8.
    pub fn find(&self, method: &str, path: &RequestPath<'_>) -> Result<Find<'_, T>, PathFault> {
        let fits = self.fits(path);
        let with_method = |fit: &&Fit| {
            let entry = self.entries.get(fit.entry);
            entry.is_some_and(|entry| *entry.method == *method || *entry.method == *ANY)
        };
        let best = fits
            .iter()
            .filter(with_method)
            .min_by(|a, b| self.order(a, b));
        let Some((fit, entry)) = best.and_then(|fit| Some((fit, self.entries.get(fit.entry)?)))
        else {
            let mut methods: Vec<&str> = fits
                .iter()
                .filter_map(|fit| Some(&*self.entries.get(fit.entry)?.method))
                .collect();
            methods.sort_unstable();
            methods.dedup();
            return Ok(match methods.is_empty() {
                true => Find::Nothing,
                false => Find::Method(methods),
            });
        };
        let mut segments = path.segments().to_vec();
        if let (true, Some(last)) = (fit.with_verb, segments.last_mut()) {
            *last = split_verb(last).map_or(*last, |(rest, _)| rest);
        }
        Ok(Find::Found {
            value: &entry.value,
            captures: entry.template.captures(&segments)?,
        })
    }

    /// The values of all templates, in the order in which they were added, each with its method.
    pub fn iter(&self) -> impl Iterator<Item = (&Template, &str, &T)> {
        let all = self.entries.iter();
        all.map(|entry| (&entry.template, &*entry.method, &entry.value))
    }

    fn order(&self, a: &Fit, b: &Fit) -> std::cmp::Ordering {
        let rank = |fit: &Fit| {
            let entry = self.entries.get(fit.entry);
            let kinds = entry.map(|entry| entry.template.parts().iter().map(kind));
            let any = entry.is_some_and(|entry| *entry.method == *ANY);
            (kinds, any)
        };
        let ((a_kinds, a_any), (b_kinds, b_any)) = (rank(a), rank(b));
        // A template that ends is before one that goes on with `**`.
        a_kinds
            .into_iter()
            .flatten()
            .cmp(b_kinds.into_iter().flatten())
            .then(b.with_verb.cmp(&a.with_verb))
            .then(a_any.cmp(&b_any))
    }

    fn fits(&self, path: &RequestPath<'_>) -> Vec<Fit> {
        let mut search = Search {
            nodes: &self.nodes,
            verb_of: |entry: usize| self.entries.get(entry).and_then(|e| e.template.verb()),
            fits: Vec::new(),
        };
        if path.has_empty_segment() {
            return search.fits;
        }
        search.descend(path.segments(), None);
        let last = path.segments().last().and_then(|last| split_verb(last));
        if let (Some((rest, verb)), Some((_, before))) = (last, path.segments().split_last()) {
            let mut segments = before.to_vec();
            segments.push(rest);
            search.descend(&segments, Some(verb));
        }
        search.fits
    }
}

fn kind(part: &Part) -> u8 {
    match part {
        Part::Literal(_) => 0,
        Part::Star => 1,
        Part::DoubleStar => 2,
    }
}

/// The segment up to its last `:`, and what comes after it. Both have at least one byte.
fn split_verb(segment: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = segment.iter().rposition(|byte| *byte == b':')?;
    let (rest, verb) = (segment.get(..colon)?, segment.get(colon + 1..)?);
    (!rest.is_empty() && !verb.is_empty()).then_some((rest, verb))
}

/// A template that a path fits.
#[derive(Clone, Copy, Debug)]
struct Fit {
    entry: usize,
    with_verb: bool,
}

struct Search<'m, V> {
    nodes: &'m [Node],
    verb_of: V,
    fits: Vec<Fit>,
}

impl<'m, V: Fn(usize) -> Option<&'m [u8]>> Search<'m, V> {
    /// Adds every entry whose parts fit `segments`, and whose verb is `verb`.
    fn descend(&mut self, segments: &[&[u8]], verb: Option<&[u8]>) {
        let verb = verb.map(|verb| super::escapes::normal(verb).unwrap_or_default());
        // Bounded by the number of nodes: each has one parent.
        let mut open = vec![(0, 0)];
        while let Some((node, depth)) = open.pop() {
            let Some(node) = self.nodes.get(node) else {
                continue;
            };
            self.take(&node.double_star, verb.as_deref());
            let Some(segment) = segments.get(depth) else {
                self.take(&node.ends, verb.as_deref());
                continue;
            };
            open.extend(node.star.map(|child| (child, depth + 1)));
            if !node.literals.is_empty()
                && let Some(literal) = super::escapes::normal(segment)
            {
                let child = node.literals.get(literal.as_slice());
                open.extend(child.map(|child| (*child, depth + 1)));
            }
        }
    }

    fn take(&mut self, entries: &[usize], verb: Option<&[u8]>) {
        let verb_of = &self.verb_of;
        let fits = entries.iter().filter(|entry| verb_of(**entry) == verb);
        self.fits.extend(fits.map(|entry| Fit {
            entry: *entry,
            with_verb: verb.is_some(),
        }));
    }
}
