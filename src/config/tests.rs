use super::features::{Features, LogLevel, Words};
use super::testdb::TestDb;
use super::*;
use crate::exposure::Exposure;

/// What dom0 writes for a firewall VM with a netvm, IPv6 on.
const COMPLETE: &[(&str, &str)] = &[
    ("/name", "sys-firewall"),
    ("/type", "StandaloneVM"),
    ("/qubes-debug-mode", "0"),
    ("/qubes-random-seed", "aGVsbG8gd29ybGQ="),
    ("/qubes-mac", "00:16:3e:5e:6c:00"),
    ("/qubes-ip", "10.137.0.6"),
    ("/qubes-netmask", "255.255.255.255"),
    ("/qubes-gateway", "10.137.0.5"),
    ("/qubes-ip6", "fd09:24ef:4179::a89:6"),
    ("/qubes-gateway6", "fd09:24ef:4179::a89:5"),
    ("/qubes-primary-dns", "10.139.1.1"),
    ("/qubes-secondary-dns", "10.139.1.2"),
    ("/qubes-netvm-network", "10.137.0.6"),
    ("/qubes-netvm-gateway", "10.137.0.6"),
    ("/qubes-netvm-gateway6", "fd09:24ef:4179::a89:6"),
    ("/qubes-netvm-netmask", "255.255.255.255"),
    ("/qubes-netvm-primary-dns", "10.139.1.1"),
    ("/qubes-netvm-secondary-dns", "10.139.1.2"),
    ("/connected-ips", "10.137.0.11 10.137.0.9"),
    ("/connected-ips6", "fd09:24ef:4179::a89:9"),
];

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// [`COMPLETE`] with some values changed; `None` removes the key.
fn changed(changes: &[(&str, Option<&str>)]) -> TestDb {
    let mut entries = COMPLETE.to_vec();
    for (key, value) in changes {
        entries.retain(|(other, _)| other != key);
        entries.extend(value.map(|value| (*key, value)));
    }
    TestDb::with(&entries)
}

/// Runs a reader; gives what it read and its reports as text.
fn read<T>(db: &TestDb, reader: fn(&Store, &mut Report<'_>) -> T) -> (T, Vec<String>) {
    let mut reports = Vec::new();
    let value = reader(db.client.store(), &mut |error| reports.push(error.to_string()));
    (value, reports)
}

#[test]
fn complete_database_is_read_without_reports() {
    let db = TestDb::with(COMPLETE);
    let expected = UplinkConfig {
        ipv4: Some(Uplink4 {
            address: Ipv4Addr::new(10, 137, 0, 6),
            prefix_length: 32,
            gateway: Ipv4Addr::new(10, 137, 0, 5),
        }),
        ipv6: Some(Uplink6 {
            address: "fd09:24ef:4179::a89:6".parse().unwrap(),
            gateway: Some("fd09:24ef:4179::a89:5".parse().unwrap()),
        }),
        dns: addresses(&["10.139.1.1", "10.139.1.2"]),
    };
    assert_eq!(read(&db, uplink), (expected, vec![]));
    let expected = DownlinkConfig {
        gateway: Some(Ipv4Addr::new(10, 137, 0, 6)),
        gateway6: Some("fd09:24ef:4179::a89:6".parse().unwrap()),
        dns: addresses(&["10.139.1.1", "10.139.1.2"]),
    };
    assert_eq!(read(&db, downlink), (expected, vec![]));
    let (ips, reports) = read(&db, connected_ips);
    let expected = addresses(&["10.137.0.9", "10.137.0.11", "fd09:24ef:4179::a89:9"]);
    assert_eq!((ips, reports), (expected, vec![]));
    let (read_name, reports) = read(&db, name);
    assert_eq!((read_name.unwrap().as_str(), reports), ("sys-firewall", vec![]));
    assert_eq!(read(&db, debug_mode), (DebugMode::Off, vec![]));
    let (seed, reports) = read(&db, random_seed);
    assert_eq!((seed.unwrap().as_bytes(), reports), (&b"hello world"[..], vec![]));
}

#[test]
fn groups_make_up_the_network() {
    let db = changed(&[
        ("/qubes-secondary-dns", Some("fd09::53")),
        ("/qubes-netvm-primary-dns", Some("fd09::1:53")),
    ]);
    let (uplink, downlink) = (read(&db, uplink).0, read(&db, downlink).0);
    let config = network(&uplink, &downlink, &addresses(&["10.137.0.9"]), &[]);
    let v4 = FamilyConfig {
        address: Some(Ipv4Addr::new(10, 137, 0, 6)),
        gateway: Some(Ipv4Addr::new(10, 137, 0, 5)),
        client_gateway: Some(Ipv4Addr::new(10, 137, 0, 6)),
        dns: vec![Ipv4Addr::new(10, 139, 1, 1)],
        client_dns: vec![Ipv4Addr::new(10, 139, 1, 2)],
    };
    let v6 = FamilyConfig {
        address: Some("fd09:24ef:4179::a89:6".parse().unwrap()),
        gateway: Some("fd09:24ef:4179::a89:5".parse().unwrap()),
        client_gateway: Some("fd09:24ef:4179::a89:6".parse().unwrap()),
        dns: vec!["fd09::53".parse().unwrap()],
        client_dns: vec!["fd09::1:53".parse().unwrap()],
    };
    let connected = addresses(&["10.137.0.9"]);
    assert_eq!(config, NetworkConfig { v4, v6, connected, mapped: vec![] });
}

#[test]
fn empty_database_names_every_missing_key() {
    let db = TestDb::with(&[]);
    let (config, reports) = read(&db, uplink);
    assert_eq!(config, UplinkConfig::default());
    let missing = |keys: &[&str]| keys.iter().map(|k| format!("{k}: missing")).collect::<Vec<_>>();
    assert_eq!(
        reports,
        missing(&[
            "/qubes-ip",
            "/qubes-netmask",
            "/qubes-gateway",
            "/qubes-primary-dns",
            "/qubes-secondary-dns"
        ])
    );
    let (config, reports) = read(&db, downlink);
    assert_eq!(config, DownlinkConfig::default());
    assert_eq!(
        reports,
        missing(&[
            "/qubes-netvm-gateway",
            "/qubes-netvm-primary-dns",
            "/qubes-netvm-secondary-dns"
        ])
    );
    let (ips, reports) = read(&db, connected_ips);
    assert_eq!((ips, reports), (vec![], missing(&["/connected-ips"])));
    assert_eq!(read(&db, name), (None, missing(&["/name"])));
    assert_eq!(read(&db, debug_mode), (DebugMode::Off, missing(&["/qubes-debug-mode"])));
    assert_eq!(read(&db, random_seed), (None, missing(&["/qubes-random-seed"])));
}

#[test]
fn bad_own_address_takes_only_its_family_away() {
    let (config, reports) = read(&changed(&[("/qubes-ip", Some("10.137.0.256"))]), uplink);
    assert_eq!(config.ipv4, None);
    assert!(config.ipv6.is_some());
    assert_eq!(config.dns.len(), 2);
    assert_eq!(reports, ["/qubes-ip: '10.137.0.256' is not an IPv4 host address"]);

    let (config, reports) = read(&changed(&[("/qubes-ip6", Some("fd09::/64"))]), uplink);
    assert!(config.ipv4.is_some());
    assert_eq!(config.ipv6, None);
    assert_eq!(reports, ["/qubes-ip6: 'fd09::/64' is not an IPv6 host address"]);
}

#[test]
fn missing_gateway_takes_ipv4_away() {
    let (config, reports) = read(&changed(&[("/qubes-gateway", None)]), uplink);
    assert_eq!(config.ipv4, None);
    assert_eq!(reports, ["/qubes-gateway: missing"]);
}

#[test]
fn gateway_that_is_our_own_address_takes_its_family_away() {
    let own = [("/qubes-gateway", Some("10.137.0.6"))];
    let (config, reports) = read(&changed(&own), uplink);
    assert_eq!((config.ipv4, config.ipv6.is_some()), (None, true));
    assert_eq!(reports, ["/qubes-gateway: the gateway is our own address"]);
    let own = [("/qubes-gateway6", Some("fd09:24ef:4179:0::a89:6"))];
    let (config, reports) = read(&changed(&own), uplink);
    assert_eq!((config.ipv4.is_some(), config.ipv6), (true, None));
    assert_eq!(reports, ["/qubes-gateway6: the gateway is our own address"]);
}

#[test]
fn netmask_of_all_forms() {
    for (text, length, is_reported) in [
        (Some("255.255.255.0"), 24, false),
        (Some("24"), 24, false),
        (Some("255.0.255.0"), 32, true),
        (Some(""), 32, true),
        (None, 32, true),
    ] {
        let (config, reports) = read(&changed(&[("/qubes-netmask", text)]), uplink);
        assert_eq!(config.ipv4.unwrap().prefix_length, length, "{text:?}");
        assert_eq!(!reports.is_empty(), is_reported, "{text:?}");
        assert!(reports.iter().all(|report| report.starts_with("/qubes-netmask: ")));
    }
}

#[test]
fn ipv6_may_be_absent_or_without_gateway() {
    let absent = changed(&[("/qubes-ip6", None), ("/qubes-gateway6", None)]);
    let (config, reports) = read(&absent, uplink);
    assert_eq!((config.ipv6, reports), (None, vec![]));
    for gateway in [None, Some("")] {
        let (config, reports) = read(&changed(&[("/qubes-gateway6", gateway)]), uplink);
        assert_eq!((config.ipv6.unwrap().gateway, reports), (None, vec![]));
    }
    let (config, reports) = read(&changed(&[("/qubes-gateway6", Some("::"))]), uplink);
    assert_eq!(config.ipv6.unwrap().gateway, None);
    assert_eq!(reports, ["/qubes-gateway6: '::' is not an IPv6 host address"]);
}

#[test]
fn one_bad_resolver_leaves_the_other() {
    let (config, reports) = read(&changed(&[("/qubes-primary-dns", Some("dns"))]), uplink);
    assert_eq!(config.dns, addresses(&["10.139.1.2"]));
    assert_eq!(reports, ["/qubes-primary-dns: 'dns' is not a host address"]);
    let db = changed(&[("/qubes-netvm-secondary-dns", Some("fd09::53"))]);
    let (config, reports) = read(&db, downlink);
    assert_eq!((config.dns, reports), (addresses(&["10.139.1.1", "fd09::53"]), vec![]));
}

#[test]
fn bad_gateway_of_the_clients_is_named() {
    let db = changed(&[("/qubes-netvm-gateway", Some("127.0.0.1"))]);
    let (config, reports) = read(&db, downlink);
    assert_eq!((config.gateway, config.gateway6.is_some()), (None, true));
    assert_eq!(reports, ["/qubes-netvm-gateway: '127.0.0.1' is not an IPv4 host address"]);
}

#[test]
fn connected_ips_skip_wrong_words_and_name_the_first() {
    let db = changed(&[
        ("/connected-ips", Some("10.137.0.9  10.137.0.300 x 10.137.0.9\n10.137.0.8 ")),
        ("/connected-ips6", Some("10.137.0.7 fd09::1")),
    ]);
    let (ips, reports) = read(&db, connected_ips);
    assert_eq!(ips, addresses(&["10.137.0.8", "10.137.0.9", "fd09::1"]));
    assert_eq!(
        reports,
        [
            "/connected-ips: '10.137.0.300' is not an IPv4 host address",
            "/connected-ips6: '10.137.0.7' is not an IPv6 host address",
        ]
    );
}

#[test]
fn connected_ips_may_be_empty() {
    let db = changed(&[("/connected-ips", Some("")), ("/connected-ips6", None)]);
    let (ips, reports) = read(&db, connected_ips);
    assert_eq!((ips, reports), (vec![], vec![]));
}

#[test]
fn names_that_qubes_does_not_allow() {
    let long = "a".repeat(32);
    for text in ["", "a b", "a\u{fc}", "a/b", long.as_str()] {
        let (found, reports) = read(&changed(&[("/name", Some(text))]), name);
        assert_eq!((found, reports.len()), (None, 1), "{text}");
    }
    let longest = "a".repeat(31);
    let (found, _) = read(&changed(&[("/name", Some(&longest))]), name);
    assert_eq!(found.unwrap().as_str(), longest);
}

#[test]
fn debug_mode_is_0_or_1() {
    let of = |value| read(&changed(&[("/qubes-debug-mode", Some(value))]), debug_mode);
    assert_eq!(of("1"), (DebugMode::On, vec![]));
    let report = "/qubes-debug-mode: 'True' is not 0 or 1".to_owned();
    assert_eq!(of("True"), (DebugMode::Off, vec![report]));
}

#[test]
fn damaged_seed_is_named_but_never_shown() {
    for secret in ["c2VjcmV0", "c2VjcmV0!", ""] {
        let db = changed(&[("/qubes-random-seed", Some(secret))]);
        let (seed, reports) = read(&db, random_seed);
        assert_eq!(seed.is_some(), secret == "c2VjcmV0");
        assert!(seed.is_none_or(|seed| format!("{seed:?}") == "RandomSeed(6 bytes)"));
        let expected = "/qubes-random-seed: the value is not base64";
        assert!(reports.iter().all(|report| report == expected), "{reports:?}");
    }
}

/// Features after reading both origins, and the reports as text.
fn features_of(line: &str, entries: &[(&str, &str)], debug: DebugMode) -> (LogLevel, Vec<String>) {
    let (features, reports) = all_features_of(line, entries, debug);
    (features.log, reports)
}

fn all_features_of(
    line: &str,
    entries: &[(&str, &str)],
    debug: DebugMode,
) -> (Features, Vec<String>) {
    let mut reports = Vec::new();
    let mut report = |problem: features::WordProblem| reports.push(problem.to_string());
    let command_line = Words::of_command_line(line, &mut report);
    let db = TestDb::with(entries);
    let feature_words = Words::of_features(db.client.store(), &mut report);
    (Features::new(&feature_words, &command_line, debug), reports)
}

#[test]
fn log_level_comes_from_feature_then_command_line_then_debug_mode() {
    let feature = [("/vm-config/fw-log", "drops")];
    let linux = "root=/dev/mapper/dmroot ro nomodeset console=hvc0 xfw-log=1 --fw-log=debug";
    for (line, entries, debug, level) in [
        ("", &[][..], DebugMode::Off, LogLevel::Off),
        (linux, &[], DebugMode::Off, LogLevel::Off),
        ("", &[], DebugMode::On, LogLevel::Debug),
        ("fw-log=off", &[], DebugMode::On, LogLevel::Off),
        ("quiet fw-log=debug ro", &[], DebugMode::Off, LogLevel::Debug),
        ("fw-log=debug", &feature, DebugMode::On, LogLevel::Drops),
        ("", &feature, DebugMode::Off, LogLevel::Drops),
    ] {
        assert_eq!(features_of(line, entries, debug), (level, vec![]), "{line}");
    }
}

#[test]
fn words_that_are_not_understood_are_named_and_stay_off() {
    let off = DebugMode::On;
    assert_eq!(
        features_of("fw-log=all fw-allowed=a>b fw-log", &[], off).1,
        [
            "command line 'fw-log=all': 'all' is not off, drops or debug, feature stays off",
            "command line 'fw-allowed=a>b': unknown word, ignored",
            "command line 'fw-log': word appears twice, feature stays off",
        ]
    );
    assert_eq!(features_of("fw-log=debug fw-log=debug", &[], off).0, LogLevel::Off);
    assert_eq!(features_of("fw-log=DEBUG", &[], off).0, LogLevel::Off);
    let entries = [("/vm-config/fw-log", "DROPS"), ("/vm-config/fw-x", "1"), ("/vm-config/y", "")];
    assert_eq!(
        features_of("fw-log=debug", &entries, off),
        (
            LogLevel::Off,
            vec![
                "feature 'fw-log=DROPS': 'DROPS' is not off, drops or debug, feature stays off"
                    .to_owned(),
                "feature 'fw-x=1': unknown word, ignored".to_owned(),
            ]
        )
    );
}

#[test]
fn mss_clamp_is_the_mtu_or_a_number_of_bytes() {
    let off = DebugMode::Off;
    let clamp = |line: &str| all_features_of(line, &[], off).0.mss_clamp.map(|is| is.to_string());
    assert_eq!(clamp("fw-mss-clamp=mtu").as_deref(), Some("mtu"));
    assert_eq!(clamp("fw-mss-clamp=1220").as_deref(), Some("1220"));
    for unusable in ["27", "65536", "MTU", "pmtu", "-1", "01220"] {
        let (features, reports) = all_features_of(&format!("fw-mss-clamp={unusable}"), &[], off);
        assert_eq!(features.mss_clamp, None);
        assert_eq!(
            reports,
            [format!(
                "command line 'fw-mss-clamp={unusable}': '{unusable}' is not mtu or a number of \
                 bytes from 28 to 65535, feature stays off"
            )]
        );
    }
    let feature = [("/vm-config/fw-mss-clamp", "")];
    let (features, reports) = all_features_of("fw-mss-clamp=mtu", &feature, off);
    assert_eq!((features.mss_clamp, reports.len()), (None, 0), "an empty feature is off, and wins");
}

#[test]
fn exposure_comes_from_the_feature_else_from_the_command_line() {
    let line = "fw-allow=10.0.0.1>10.0.0.2 fw-forward=tcp/80>10.0.0.1 fw-flows=5000 \
                fw-filtering-by-address=10.0.0.1 fw-flows-per-client=100 --nat-table-size=7";
    let (of_line, reports) = all_features_of(line, &[], DebugMode::Off);
    assert_eq!(reports, Vec::<String>::new());
    let exposure = &of_line.exposure;
    assert_eq!((exposure.allow.len(), exposure.forward.len()), (1, 1));
    assert_eq!(exposure.filtering_by_address, addresses(&["10.0.0.1"]));
    assert_eq!(of_line.flows.map(u32::from), Some(5000));
    assert_eq!(of_line.flows_per_client.map(u32::from), Some(100));

    let entries = [
        ("/vm-config/fw-allow", ""),
        ("/vm-config/fw-forward", "tcp/80>10.0.0.1,tcp/81"),
        ("/vm-config/fw-filtering-by-address", "10.0.0.3,fd09::1"),
        ("/vm-config/fw-flows", "6000"),
    ];
    let (features, reports) = all_features_of(line, &entries, DebugMode::Off);
    let report = "feature 'fw-forward=tcp/80>10.0.0.1,tcp/81': 'tcp/81' is not \
                  proto/port>CLIENT[/port], feature stays off";
    assert_eq!(reports, [report]);
    let filtering_by_address = addresses(&["10.0.0.3", "fd09::1"]);
    assert_eq!(features.exposure, Exposure { filtering_by_address, ..Exposure::default() });
    assert_eq!(features.flows.map(u32::from), Some(6000));
    assert_eq!(features.flows_per_client.map(u32::from), Some(100));
    assert_eq!(features.mss_clamp, None);
    let of_mirage = all_features_of("--nat-table-size=7", &[], DebugMode::Off).0;
    assert_eq!(of_mirage.flows.map(u32::from), Some(7));
}

#[test]
fn lists_that_are_too_long_stay_off() {
    let many = vec!["10.0.0.1"; 65].join(",");
    let line = format!("fw-filtering-by-address={many}");
    let (features, reports) = all_features_of(&line, &[], DebugMode::Off);
    assert_eq!(features, Features::default());
    assert!(reports[0].ends_with("more than 64 entries, feature stays off"), "{reports:?}");
}

#[test]
fn flood_of_unknown_words_is_cut() {
    let line = "fw-a ".repeat(1000);
    assert_eq!(features_of(&line, &[], DebugMode::Off).1.len(), 16);
}

proptest::proptest! {
    #[test]
    fn no_value_panics(value in "[ -~\n\u{fc}]{0,60}", key in 0..COMPLETE.len()) {
        let db = changed(&[(COMPLETE[key].0, Some(&value))]);
        let store = db.client.store();
        let ignore = &mut |_| {};
        let _ = (uplink(store, ignore), downlink(store, ignore), connected_ips(store, ignore));
        let _ = (name(store, ignore), debug_mode(store, ignore), random_seed(store, ignore));
        let _ = Words::of_command_line(&value, &mut |_| {});
    }

    #[test]
    fn no_word_panics(value in "[0-9a-f.:>/,tcpudim-]{0,40}") {
        let mapped = [("/mapped-ip/10.0.0.1/visible-ip", value.as_str()),
            ("/mapped-ip/10.0.0.1/visible-gateway", "10.0.0.1")];
        let _ = mapped_ips(TestDb::with(&mapped).client.store(), &mut |_| {});
        for name in ["fw-allow", "fw-forward", "fw-filtering-by-address", "fw-flows", "--ipv4"] {
            let line = format!("{name}={value}");
            let (features, reports) = all_features_of(&line, &[], DebugMode::Off);
            if !reports.is_empty() {
                proptest::prop_assert_eq!(features, Features::default());
            }
        }
    }
}
