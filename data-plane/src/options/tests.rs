use std::time::Duration;

use clap::Parser as _;

use super::{Options, OptionsError, RawOptions};
use heddle_listen::{ListenAddr, ListenOption};

use crate::xds::demand::Prefetch;

fn resolve(words: &[&str]) -> Result<Options, OptionsError> {
    RawOptions::try_parse_from([&["heddle-proxy"], words].concat())
        .expect("clap takes it")
        .resolve()
}

#[test]
fn defaults_are_the_contract() {
    let options = resolve(&[]).unwrap();
    let tcp = |s: &str| ListenAddr::Tcp(s.parse().unwrap());
    assert_eq!(options.outbound, [tcp("127.0.0.1:15001")]);
    assert_eq!(options.inbound, [tcp("127.0.0.1:15008")]);
    assert_eq!(options.agent, [ListenOption::At(tcp("127.0.0.1:15002"))]);
    assert_eq!(options.admin, [ListenOption::At(tcp("127.0.0.1:15000"))]);
    assert_eq!(options.control, ["http://127.0.0.1:15010"]);
    assert_eq!(options.drain_timeout, Duration::from_secs(60));
    assert_eq!(options.upstream_connections, 16);
    assert_eq!(options.pending_timeout, Duration::from_secs(5));
    assert_eq!(options.prefetch, Prefetch::None);
    assert_eq!(options.service_idle, Duration::from_secs(3600));
    assert!((1..=4).contains(&options.workers));
    assert!(
        heddle_proto::rules::is_dns_label(&options.node),
        "{}",
        options.node
    );
    assert!(options.own_names.contains(&options.node));
}

#[test]
fn every_word_of_the_contract_is_taken() {
    let options = resolve(&[
        "--node",
        "a",
        "--control",
        "h1:15010,http://h2:15010",
        "--state-dir",
        "/tmp/x",
        "--workers",
        "2",
        "--outbound",
        "127.0.0.1:0",
        "--outbound",
        "unix:/tmp/o.sock",
        "--inbound",
        "0.0.0.0:0",
        "--insecure-inbound",
        "--agent",
        "localhost:0",
        "--admin",
        "127.0.0.1:0",
        "--dns",
        "127.0.0.1:0",
        "--gateway",
        "127.0.0.1:8080",
        "--gateway-expose",
        "all",
        "--gateway-origin",
        "https://x",
        "--gateway-trusted-proxy",
        "10.0.0.0/8",
        "--gateway-docs",
        "on",
        "--gateway-errors",
        "full",
        "--gateway-name",
        "edge",
        "--locality",
        "eu/eu-1",
        "--advertise",
        "127.0.0.1:15008",
        "--own-name",
        "proxy.local",
        "--drain-timeout",
        "1500ms",
        "--prefetch",
        "users,tokens.shop",
        "--prefetch",
        "messages.shop.mesh",
        "--service-idle",
        "90s",
        "--services-dir",
        "/tmp/s",
    ])
    .unwrap();
    assert_eq!(options.control, ["http://h1:15010", "http://h2:15010"]);
    assert_eq!(options.outbound.len(), 2);
    assert_eq!(
        (options.region.as_str(), options.zone.as_str()),
        ("eu", "eu-1")
    );
    assert_eq!(options.drain_timeout, Duration::from_millis(1500));
    let prefetch = ["users.default", "tokens.shop", "messages.shop"].map(str::to_owned);
    assert_eq!(options.prefetch, Prefetch::Named(prefetch.into()));
    assert_eq!(options.service_idle, Duration::from_secs(90));
    assert!(options.own_names.contains(&"proxy.local".to_owned()));
}

#[test]
fn all_faults_come_at_once_with_the_word_that_was_typed() {
    let OptionsError(faults) = resolve(&[
        "--node",
        "Bad_Name",
        "--control",
        "ftp://x:1",
        "--outbound",
        "nowhere",
        "--workers",
        "0",
        "--drain-timeout",
        "soon",
        "--locality",
        "/z",
        "--inbound",
        "0.0.0.0:9999",
        "--dns",
        "x",
    ])
    .unwrap_err();
    for (flag, word) in [
        ("--node", "Bad_Name"),
        ("--control", "ftp://x:1"),
        ("--outbound", "nowhere"),
        ("--workers", "0"),
        ("--drain-timeout", "soon"),
        ("--locality", "/z"),
        ("--inbound", "--insecure-inbound"),
        ("--dns", "x"),
    ] {
        assert!(
            faults
                .iter()
                .any(|f| f.starts_with(flag) && f.contains(word)),
            "no fault for {flag} {word} in {faults:?}"
        );
    }
    assert_eq!(faults.len(), 8, "{faults:?}");
}

#[test]
fn inbound_beyond_loopback_needs_its_flag() {
    assert!(resolve(&["--inbound", "0.0.0.0:15009"]).is_err());
    assert!(resolve(&["--inbound", "[::1]:15009"]).is_ok());
    let options = resolve(&["--insecure-inbound"]).unwrap();
    assert_eq!(
        options.inbound,
        [ListenAddr::Tcp("0.0.0.0:15008".parse().unwrap())]
    );
}

/// Issue 10, D3.
#[test]
fn any_listener_beyond_loopback_needs_its_address_named() {
    for option in ["--outbound", "--agent", "--admin", "--dns"] {
        let OptionsError(faults) = resolve(&[option, "0.0.0.0:15999"]).unwrap_err();
        let [fault] = &faults[..] else {
            panic!("{faults:?}")
        };
        for part in [
            option,
            "0.0.0.0:15999",
            "add --insecure-listen 0.0.0.0:15999",
        ] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
        let named = [
            option,
            "0.0.0.0:15999",
            "--insecure-listen",
            "0.0.0.0:15999",
        ];
        let warnings = resolve(&named).unwrap().warnings;
        let warning = warnings.first().expect("a warning");
        assert!(warning.contains(option), "{warning}");
        let other = [
            option,
            "0.0.0.0:15999",
            "--insecure-listen",
            "0.0.0.0:15998",
        ];
        assert_eq!(resolve(&other).unwrap_err().0.len(), 2);
    }
    assert!(resolve(&[]).unwrap().warnings.is_empty());
}

#[test]
fn the_remedy_for_inbound_has_the_port_that_was_given() {
    let OptionsError(faults) = resolve(&["--inbound", "0.0.0.0:15777"]).unwrap_err();
    assert!(faults[0].ends_with("or use 127.0.0.1:15777"), "{faults:?}");
}

#[test]
fn options_that_have_no_effect_yet_are_named_at_start() {
    let cases = [
        ("--dns", "127.0.0.1:15053", "no DNS"),
        ("--gateway", "127.0.0.1:8080", "no gateway"),
        ("--gateway-expose", "all", "no gateway"),
        ("--gateway-origin", "https://x", "no gateway"),
        ("--gateway-trusted-proxy", "10.0.0.0/8", "no gateway"),
        ("--gateway-docs", "on", "no gateway"),
        ("--gateway-errors", "full", "no gateway"),
        ("--gateway-name", "edge", "no gateway"),
    ];
    for (option, word, part) in cases {
        let options = resolve(&[option, word]).unwrap();
        let shown = options.given.iter().any(|(name, _)| option.ends_with(name));
        assert!(!shown, "{option} is in /config");
        let warnings = options.warnings;
        let [warning] = &warnings[..] else {
            panic!("{option}: {warnings:?}")
        };
        let named = warning.starts_with(option) && warning.contains(part);
        assert!(named, "{option}: {warning}");
    }
}

#[test]
fn limits_of_waiting_calls_are_checked() {
    let options = resolve(&["--upstream-connections", "1", "--pending-timeout", "500ms"]).unwrap();
    assert_eq!(options.upstream_connections, 1);
    assert_eq!(options.pending_timeout, Duration::from_millis(500));
    for (words, expect) in [
        (["--upstream-connections", "0"], "use 1 to 1024"),
        (["--upstream-connections", "1025"], "use 1 to 1024"),
        (["--pending-timeout", "soon"], "\"soon\" is not a duration"),
        (["--pending-timeout", "1ms"], "at least 100ms"),
        (["--pending-timeout", "9999999999999h"], "at most 1h"),
    ] {
        let faults = resolve(&words).unwrap_err().0;
        assert!(
            faults.len() == 1 && faults[0].contains(expect),
            "{faults:?}"
        );
    }
}

#[test]
fn a_proxy_can_run_without_a_control_plane() {
    assert!(resolve(&["--control", "none"]).unwrap().control.is_empty());
}

#[test]
fn secrets_are_not_dumped() {
    let options = resolve(&["--control", "http://me:secret@h:15010"]).unwrap();
    let dump = format!("{:?}", options.given);
    assert!(!dump.contains("secret"), "{dump}");
    assert!(dump.contains("***@h:15010"), "{dump}");
}
