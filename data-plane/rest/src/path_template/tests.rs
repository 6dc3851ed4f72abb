//! Rules of path templates, one table each.

use proptest::prelude::*;

use super::*;

fn template(text: &str) -> Template {
    Template::parse(text).unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

/// A matcher in which each value is the template's own text, with the method in front.
fn matcher(all: &[&str]) -> Matcher<String> {
    let mut matcher = Matcher::default();
    for text in all {
        let (method, path) = text.split_once(' ').unwrap_or(("GET", text));
        matcher
            .insert(template(path), method, (*text).to_owned())
            .unwrap_or_else(|other| panic!("{text} has the shape of {other}"));
    }
    matcher
}

/// `template x=1 y=2`, `405 GET POST`, `404` or `400`.
fn find(matcher: &Matcher<String>, request: &str) -> String {
    let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
    let found = RequestPath::parse(path.as_bytes()).and_then(|path| {
        Ok(match matcher.find(method, &path)? {
            Find::Found { value, captures } => {
                captures.iter().fold(value.clone(), |text, (field, held)| {
                    format!("{text} {field}={held}")
                })
            }
            Find::Method(methods) => format!("405 {}", methods.join(" ")),
            Find::Nothing => "404".to_owned(),
        })
    });
    found.unwrap_or_else(|_| "400".to_owned())
}

fn check(templates: &[&str], expect: &[(&str, &str)]) {
    let one_way = matcher(templates);
    let reversed: Vec<&str> = templates.iter().rev().copied().collect();
    let other_way = matcher(&reversed);
    for (request, expect) in expect {
        assert_eq!(find(&one_way, request), *expect, "{request}");
        assert_eq!(find(&other_way, request), *expect, "{request}, reversed");
    }
}

#[test]
fn templates_have_the_grammar_of_http_proto() {
    for (text, shape, variables) in [
        ("/v1/users", "/v1/users", ""),
        ("/v1/users/{id}", "/v1/users/*", "id"),
        (
            "/v1/{name=shelves/*/books/*}",
            "/v1/shelves/*/books/*",
            "name",
        ),
        ("/v1/{name=**}", "/v1/**", "name"),
        ("/v1/{a.b_2}/{c}:go", "/v1/*/*:go", "a.b_2,c"),
        ("/v1/*/x/**", "/v1/*/x/**", ""),
        ("/v1/a:b/c:go", "/v1/a:b/c:go", ""),
        ("/v1/a:b:go", "/v1/a:b:go", ""),
        ("/v1/%41%2f%c3é", "/v1/A%2F%C3%C3%A9", ""),
        ("/{x=a}", "/a", "x"),
        ("/v1/**:go", "/v1/**:go", ""),
        ("/.well-known/a", "/.well-known/a", ""),
    ] {
        let parsed = template(text);
        assert_eq!(parsed.shape(), shape, "{text}");
        assert_eq!(
            parsed.variables().collect::<Vec<_>>().join(","),
            variables,
            "{text}"
        );
        assert_eq!(parsed.to_string(), text);
    }
}

#[test]
fn a_fault_in_a_template_is_named_with_its_place() {
    for (text, at, why) in [
        ("", 0, "does not start"),
        ("v1", 0, "does not start"),
        ("/", 1, "empty segment"),
        ("/v1/", 4, "empty segment"),
        ("/v1//a", 4, "empty segment"),
        ("/v1/**/a", 7, "must be the last"),
        ("/v1/{x=**}/a", 11, "must be the last"),
        ("/v1/{x={y}}", 7, "inside a variable"),
        ("/v1/{x}/{x}", 8, "appears twice"),
        ("/v1/{x", 4, "no closing brace"),
        ("/v1/{}", 5, "no path of a field"),
        ("/v1/{a..b}", 5, "no path of a field"),
        ("/v1/{1a}", 5, "no path of a field"),
        ("/v1/{x}y", 7, "whole segment"),
        ("/v1/*y", 5, "whole segment"),
        ("/v1/***", 6, "whole segment"),
        ("/v1/a*", 5, "unexpected"),
        ("/v1/a{x}", 5, "unexpected"),
        ("/v1/a?b", 5, "unexpected"),
        ("/v1/a b", 5, "unexpected"),
        ("/v1/a:", 6, "empty segment"),
        ("/v1/a:b:", 8, "empty segment"),
        ("/v1/%4", 4, "two hexadecimal digits"),
        ("/v1/%00", 4, "%00"),
        ("/v1/%2e%2E", 4, "\"..\""),
        ("/v1/.", 4, "\".\""),
    ] {
        let fault = Template::parse(text).expect_err(text);
        assert_eq!(fault.at, at, "{text}: {fault}");
        assert!(fault.why.contains(why), "{text}: {fault}");
    }
    let long = "/a".repeat(1025);
    assert!(Template::parse(&long).is_err());
}

#[test]
fn a_path_is_split_before_it_is_decoded() {
    check(
        &["/v1/{x}", "/v1/{x}/{y}", "/n/{x=a/*}", "/m/{x=**}"],
        &[
            ("/v1/a%2Fb", "/v1/{x} x=a/b"),
            ("/v1/a/b", "/v1/{x}/{y} x=a y=b"),
            ("/v1/%c3%A9+%20", "/v1/{x} x=é+ "),
            ("/n/a/b%2fc%25%41", "/n/{x=a/*} x=a/b%2fc%A"),
            ("/m/a%2Fb/%41", "/m/{x=**} x=a%2Fb/A"),
            ("/m/a%2Fb", "/m/{x=**} x=a%2Fb"),
            ("/m", "/m/{x=**} x="),
            ("/v1/%zz", "400"),
            ("/v1/%", "400"),
            ("/v1/%4", "400"),
            ("/v1/%00", "400"),
            ("/v1/%ff", "400"),
            ("/v1/.", "400"),
            ("/v1/..", "400"),
            ("/v1/%2e%2E", "400"),
            ("/v1/.%2e", "400"),
            ("/nothing/%2e", "400"),
            ("/v1/...", "/v1/{x} x=..."),
            ("/v1/%252e", "/v1/{x} x=%2e"),
            ("/v1/", "404"),
            ("/v1//", "404"),
            ("//v1/a", "404"),
            ("/v1/a/", "404"),
            ("/m/", "404"),
            ("/m/a//b", "404"),
            ("/", "404"),
        ],
    );
}

#[test]
fn literals_are_compared_after_unreserved_escapes() {
    check(
        &["/v1/~a%24b/{x}", "/v1/é"],
        &[
            ("/v1/%7ea%24b/1", "/v1/~a%24b/{x} x=1"),
            ("/%761/~%61%24b/1", "/v1/~a%24b/{x} x=1"),
            ("/v1/~a$b/1", "404"),
            ("/V1/~a%24b/1", "404"),
            ("/v1/%c3%a9", "/v1/é"),
            ("/v1/%C3%A9", "/v1/é"),
        ],
    );
}

#[test]
fn a_verb_is_cut_only_where_a_template_has_it() {
    check(
        &["/v1/{x}", "/v1/{x}:go", "/v1/{x=**}:all", "/w/{x}/lit"],
        &[
            ("/v1/a:go", "/v1/{x}:go x=a"),
            ("/v1/a:b:go", "/v1/{x}:go x=a:b"),
            ("/v1/a:stop", "/v1/{x} x=a:stop"),
            ("/v1/a%3Ago", "/v1/{x} x=a:go"),
            ("/v1/a:g%6F", "/v1/{x}:go x=a"),
            ("/v1/:go", "/v1/{x} x=:go"),
            ("/v1/a:", "/v1/{x} x=a:"),
            // The parts come first: `*` before `**`.
            ("/v1/a:all", "/v1/{x} x=a:all"),
            ("/v1/a/b:all", "/v1/{x=**}:all x=a/b"),
            ("/v1:all", "/v1/{x=**}:all x="),
            ("/v1/a:go/b", "404"),
            ("/w/a:go/lit", "/w/{x}/lit x=a:go"),
            (
                &format!("/v1/{}go", "a:".repeat(1000)),
                &format!("/v1/{{x}}:go x={}a", "a:".repeat(999)),
            ),
        ],
    );
}

#[test]
fn the_more_literal_template_wins_part_by_part() {
    check(
        &[
            "/a/b/c",
            "/a/b/{x}",
            "/a/{x}/c",
            "/a/{x}/{y}",
            "/a/{x=**}",
            "/{x}/b/c",
            "/a/b",
            "/a/{x}:v",
            "* /z/{x}",
            "PUT /z/{x}",
            "GET /z/{x}:v",
            "* /z/q",
        ],
        &[
            ("/a/b/c", "/a/b/c"),
            ("/a/b/d", "/a/b/{x} x=d"),
            ("/a/d/c", "/a/{x}/c x=d"),
            ("/a/d/e", "/a/{x}/{y} x=d y=e"),
            ("/a/d/e/f", "/a/{x=**} x=d/e/f"),
            ("/b/b/c", "/{x}/b/c x=b"),
            ("/a/b", "/a/b"),
            ("/a", "/a/{x=**} x="),
            // A literal before a template with a verb, because the parts come first.
            ("/a/b:v", "/a/{x}:v x=b"),
            ("PUT /z/1", "PUT /z/{x} x=1"),
            ("POST /z/1", "* /z/{x} x=1"),
            ("GET /z/1:v", "GET /z/{x}:v x=1"),
            ("POST /z/1:v", "* /z/{x} x=1:v"),
            ("PUT /z/q", "* /z/q"),
        ],
    );
}

#[test]
fn all_templates_that_fit_are_tried_before_405() {
    check(
        &["GET /a/b", "POST /a/{x}", "DELETE /a/{x=**}"],
        &[
            ("POST /a/b", "POST /a/{x} x=b"),
            ("DELETE /a/b", "DELETE /a/{x=**} x=b"),
            ("PUT /a/b", "405 DELETE GET POST"),
            ("PUT /a/c", "405 DELETE POST"),
            ("PUT /b", "404"),
            ("get /a/b", "405 DELETE GET POST"),
        ],
    );
}

#[test]
fn of_one_shape_the_first_stays() {
    let mut all = matcher(&["/a/{x}", "/a/{x}:go", "POST /a/{x}"]);
    for (text, method, holder) in [
        ("/a/{y}", "GET", "/a/{x}"),
        ("/a/*", "GET", "/a/{x}"),
        ("/%61/{y}:go", "GET", "/a/{x}:go"),
        ("/a/{y}", "POST", "POST /a/{x}"),
    ] {
        let held = all.insert(template(text), method, "later".to_owned());
        assert_eq!(held.map_err(|value| &**value), Err(holder), "{text}");
    }
    assert_eq!(find(&all, "/a/1"), "/a/{x} x=1");
    assert_eq!(all.iter().count(), 3);
}

#[test]
fn many_overlapping_templates_cost_no_more_than_their_size() {
    // Every level has a literal and a `*`: 2^12 templates fit one path.
    let mut all = Matcher::default();
    for bits in 0..1 << 12 {
        let text: String = (0..12)
            .map(|bit| if bits >> bit & 1 == 0 { "/a" } else { "/*" })
            .collect();
        all.insert(template(&text), "GET", text).unwrap();
    }
    assert_eq!(find(&all, &"/a".repeat(12)), "/a".repeat(12));
    assert_eq!(find(&all, &format!("POST {}", "/a".repeat(12))), "405 GET");
    assert_eq!(find(&all, &"/a".repeat(4000)), "404");
}

/// A matcher without a tree: tries every template, part by part, on its own.
fn slow_find(templates: &[&str], path: &[&str]) -> Option<String> {
    fn fits(parts: &[&str], segments: &[&str]) -> bool {
        match (parts, segments) {
            (["**"], _) => true,
            ([], []) => true,
            ([part, parts @ ..], [segment, segments @ ..]) => {
                (*part == "*" || part == segment) && fits(parts, segments)
            }
            _ => false,
        }
    }
    let rank = |part: &&str| match *part {
        "**" => 2,
        "*" => 1,
        _ => 0,
    };
    templates
        .iter()
        .map(|text| text.trim_start_matches('/').split('/').collect::<Vec<_>>())
        .filter(|parts| fits(parts, path))
        .min_by_key(|parts| parts.iter().map(rank).collect::<Vec<_>>())
        .map(|parts| format!("/{}", parts.join("/")))
}

fn a_template() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["/a", "/b", "/*"]);
    let end = prop::sample::select(vec!["", "", "/**"]);
    (prop::collection::vec(part, 1..5), end).prop_map(|(parts, end)| parts.concat() + end)
}

proptest! {
    #[test]
    fn a_tree_finds_what_a_list_finds(
        templates in prop::collection::btree_set(a_template(), 1..12),
        path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..6),
    ) {
        let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
        let expect = slow_find(&templates, &path).unwrap_or("404".to_owned());
        let request = format!("/{}", path.join("/"));
        prop_assert_eq!(find(&matcher(&templates), &request), expect);
    }

    #[test]
    fn nothing_in_a_template_or_path_panics(text in "[/a{}=*:%.2Fé?]{0,24}", path in "/[/a:%.2F0é]{0,24}") {
        if let Ok(template) = Template::parse(&text) {
            let mut all = Matcher::default();
            prop_assert!(all.insert(template.clone(), "GET", text.clone()).is_ok());
            find(&all, &path);
            // The shape is a template again, of the same shape.
            prop_assert_eq!(Template::parse(&template.shape()).unwrap().shape(), template.shape());
        }
    }
}
