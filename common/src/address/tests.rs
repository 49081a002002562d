//! Every spelling that has fooled someone.

use super::*;

fn strict() -> AddressPolicy {
    AddressPolicy { allow_targets: vec![], allow_http: true }
}

fn check(policy: &AddressPolicy, url: &str) -> Result<(), Refused> {
    policy.check_url(&url.to_owned().into()).map(drop)
}

#[test]
fn public_urls_are_allowed() {
    for url in [
        "https://example.com/hook",
        "https://example.com",
        "https://example.com?x=%20@#".trim_end_matches('#'),
        "https://example.com:8443/a@b",
        "http://93.184.216.34:1024/",
        "https://[2606:2800:220:1::1]/",
        "https://bücher.com/",
        "https://example.com./",
        "https://mylocal.com/",
        "https://tests.com/",
    ] {
        assert!(check(&strict(), url).is_ok(), "{url}: {:?}", check(&strict(), url));
    }
}

#[test]
fn text_that_parsers_would_repair_is_refused() {
    for url in [
        "",
        "example.com",
        "ftp://example.com/",
        "HTTPS://example.com/",
        "https:example.com",
        "https:/example.com",
        "https:///example.com",
        "https://",
        " https://example.com",
        "https://example.com/ ",
        "https://exa mple.com",
        "https://example.com/\n",
        "https://exam\tple.com/",
        "\u{feff}https://example.com",
        "https:\\\\example.com",
        "https://example.com\\@evil.com",
        "https://user@example.com/",
        "https://@example.com/",
        "https://a:b@example.com/",
        "https://example.com/#x",
        "https://example.com#",
        "https://%65xample.com/",
        "https://[fe80::1%25eth0]/",
        "https://example.com\u{a0}/",
        "https://example.com/\u{2028}",
        "https://[::1",
        "https://exa<mple.com/",
        "https://example.com:99999/",
        "https://xn--/",
        "javascript:alert(1)",
        "https:// example.com",
    ] {
        assert!(check(&strict(), url).is_err(), "{url:?}");
    }
    let long = format!("https://example.com/{}", "x".repeat(MAX_URL));
    assert_eq!(check(&strict(), &long), Err(Refused::TooLong));
}

#[test]
fn literals_in_any_spelling_are_judged() {
    for host in [
        "127.0.0.1",
        "127.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.9",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "１２７.０.０.１",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:8.8.8.8]",
        "[::ffff:7f00:1]",
        "[::7f00:1]",
        "[64:ff9b::8.8.8.8]",
        "[64:ff9b::10.0.0.1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[2002:808:808::]",
        "[2001::1]",
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
        "[2001:db8::1]",
        "[3ffe::1]",
        "[3fff::1]",
        "[fc00::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[2606:2800::5efe:10.0.0.1]",
        "[2606:2800::200:5efe:8.8.8.8]",
        "[100::1]",
        "[4000::1]",
        "[5f00::1]",
    ] {
        let url = format!("https://{host}/");
        assert!(check(&strict(), &url).is_err(), "{url}: {:?}", check(&strict(), &url));
    }
}

#[test]
fn names_that_lead_home_are_refused() {
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "a.localdomain",
        "printer.local",
        "x.internal",
        "metadata.google.internal",
        "metadata.goog",
        "home.arpa",
        "a.home.arpa",
        "nas.lan",
        "x.onion",
        "x.invalid",
        "x.test",
        "x.example",
        "db.svc",
        "db.ns.svc.cluster.local",
        "intranet",
        "ｌｏｃａｌｈｏｓｔ",
        "rabbitmq",
    ] {
        let url = format!("https://{host}/");
        assert!(
            matches!(check(&strict(), &url), Err(Refused::Host(_))),
            "{url}: {:?}",
            check(&strict(), &url)
        );
    }
}

#[test]
fn ports_of_other_services_are_refused() {
    for (port, allowed) in [
        (80, true),
        (443, true),
        (22, false),
        (25, false),
        (1023, false),
        (1024, true),
        (8080, true),
        (6379, false),
        (5672, false),
        (27017, false),
        (65535, true),
        (0, false),
    ] {
        let url = format!("https://example.com:{port}/");
        assert_eq!(check(&strict(), &url).is_ok(), allowed, "{url}");
    }
}

#[test]
fn plain_http_needs_leave() {
    assert_eq!(check(&AddressPolicy::default(), "http://example.com/"), Err(Refused::PlainHttp));
}

#[test]
fn the_operator_may_allow_ranges_and_their_ports_but_no_names() {
    let policy = AddressPolicy {
        allow_targets: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        allow_http: true,
    };
    for url in [
        "http://127.0.0.1:5672/",
        "http://127.9.9.9/",
        "http://[::1]:22/",
        "http://[::ffff:127.0.0.1]/",
    ] {
        assert!(check(&policy, url).is_ok(), "{url}: {:?}", check(&policy, url));
    }
    for url in ["http://localhost/", "http://10.0.0.1/", "http://user@127.0.0.1/"] {
        assert!(check(&policy, url).is_err(), "{url}");
    }
}

#[test]
fn what_a_name_leads_to_is_judged_again() {
    let policy = strict();
    for (ip, allowed) in [
        ("8.8.8.8", true),
        ("127.0.0.1", false),
        ("169.254.169.254", false),
        ("2606:2800:220:1::1", true),
        ("::ffff:8.8.8.8", true),
        ("::ffff:10.0.0.1", false),
        ("64:ff9b::8.8.8.8", true),
        ("64:ff9b::a00:1", false),
        ("::8.8.8.8", false),
        ("fd00::1", false),
    ] {
        assert_eq!(policy.check_dialled(ip.parse().unwrap()).is_ok(), allowed, "{ip}");
    }
}
