//! Many hosts, and what is planned for each.

use super::decide::{self, Setup, Undo};
use super::facts::*;
use super::files::Entry;
use super::journal::Record;
use super::plan::*;

fn wanted() -> Wanted {
    Wanted {
        domains: vec!["mesh.internal".to_owned(), "240.127.in-addr.arpa".to_owned()],
        dns: "127.240.0.53:4653".parse().expect("an address"),
        yes: false,
        forwards: Some(false),
    }
}

fn stub(name: &str, arguments: &[&str]) -> Option<Program> {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Some(Program { pid: 77, name: name.to_owned(), arguments, unit: Some(format!("{name}.service")) })
}

/// A host with systemd whose `/etc/resolv.conf` names one server.
fn host(server: &str) -> Facts {
    let text = format!("search corp.example\nnameserver {server}\noptions timeout:1\n");
    let resolv_conf = ResolvConf { text, is_mount: false };
    Facts { resolv_conf, services: Services::Systemd, ..Facts::default() }
}

fn resolved_host() -> Facts {
    let resolved = resolved_servers("Global:\nLink 2 (eth0): 192.0.2.1 192.0.2.2\nLink 3 (wlan0):\n");
    Facts { stub: stub("systemd-resolve", &[]), resolved: Some(resolved), ..host("127.0.0.53") }
}

fn dnsmasq_host() -> Facts {
    let includes = dnsmasq_includes("", Some("/etc/dnsmasq.d,.dpkg-dist,.dpkg-old,.dpkg-new"));
    Facts { stub: stub("dnsmasq", &["/usr/sbin/dnsmasq"]), includes, ..host("127.0.0.1") }
}

fn unbound_host() -> Facts {
    let includes = unbound_includes("include-toplevel: \"/etc/unbound/unbound.conf.d/*.conf\"\n");
    Facts { stub: stub("unbound", &["/usr/sbin/unbound", "-d", "-p"]), includes, ..host("127.0.0.1") }
}

fn change(facts: &Facts, wanted: &Wanted) -> Plan {
    match plan(facts, wanted).expect("a plan") {
        Planned::Change(plan) => plan,
        Planned::Snippet(snippet) => panic!("{snippet:?}"),
    }
}

fn refused(facts: &Facts, wanted: &Wanted) -> String {
    plan(facts, wanted).expect_err("refused").to_string()
}

fn command(reload: Option<&Reload>) -> String {
    reload.map(ToString::to_string).unwrap_or_default()
}

#[test]
fn each_resolver_is_told_where_questions_of_the_mesh_go() {
    let mut unbound = unbound_host();
    unbound.stub = stub("unbound", &["unbound", "-c", "/etc/unbound/other.conf"]);
    for (facts, resolver, path, line, reload) in [
        (
            resolved_host(),
            Resolver::SystemdResolved,
            "/etc/systemd/resolved.conf.d/gossamer.conf",
            "DNS=127.240.0.53:4653\nDomains=~mesh.internal ~240.127.in-addr.arpa\n",
            "systemctl restart systemd-resolved",
        ),
        (
            dnsmasq_host(),
            Resolver::Dnsmasq,
            "/etc/dnsmasq.d/gossamer.conf",
            "server=/240.127.in-addr.arpa/127.240.0.53#4653\n",
            "systemctl restart dnsmasq.service",
        ),
        (
            unbound,
            Resolver::Unbound,
            "/etc/unbound/unbound.conf.d/gossamer.conf",
            "forward-zone:\n    name: \"mesh.internal\"\n    forward-addr: 127.240.0.53@4653\n",
            "kill -HUP 77",
        ),
    ] {
        let plan = change(&facts, &wanted());
        assert_eq!((plan.resolver, plan.path.to_str()), (resolver, Some(path)));
        assert!(plan.text.contains(line), "{}", plan.text);
        assert!(plan.text.starts_with("# Written by `gossamer host setup`; `sudo gossamer host undo`"));
        assert_eq!(command(plan.reload.as_ref()), reload);
        let domains = wanted().domains;
        assert!(domains.iter().all(|domain| plan.text.contains(domain.as_str())), "the same list everywhere");
    }
}

#[test]
fn settings_are_checked_before_they_are_taken_over() {
    let validate = |facts: &Facts| change(facts, &wanted()).validate.expect("a check").join(" ");
    assert_eq!(validate(&dnsmasq_host()), "dnsmasq --test");
    let debian =
        ["dnsmasq", "-x", "/run/dnsmasq.pid", "-7", "/etc/dnsmasq.d,.dpkg-dist", "--conf-file=/etc/d.conf"];
    let facts = Facts { stub: stub("dnsmasq", &debian), ..dnsmasq_host() };
    let whole = "dnsmasq --test --conf-file=/etc/d.conf --conf-dir=/etc/dnsmasq.d,.dpkg-dist";
    assert_eq!(validate(&facts), whole);
    assert_eq!(validate(&unbound_host()), "unbound-checkconf");
    let facts = Facts { stub: stub("unbound", &["unbound", "-c/etc/u.conf"]), ..unbound_host() };
    assert_eq!(validate(&facts), "unbound-checkconf /etc/u.conf");
}

#[test]
fn unbound_neither_proves_the_mesh_from_the_root_nor_hides_addresses_of_this_host() {
    let text = change(&unbound_host(), &wanted()).text;
    for line in [
        "do-not-query-localhost: no",
        "domain-insecure: \"mesh.internal\"",
        "private-domain: \"mesh.internal\"",
        "local-zone: \"240.127.in-addr.arpa.\" transparent",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let elsewhere = Wanted { dns: "240.80.0.53:53".parse().expect("an address"), ..wanted() };
    assert!(!change(&unbound_host(), &elsewhere).text.contains("do-not-query-localhost"));
}

#[test]
fn the_resolver_is_the_one_programs_ask_and_not_one_that_runs_as_well() {
    // libc asks systemd-resolved over its own socket, whatever resolv.conf says.
    let facts = Facts {
        asks_resolved: asks_resolved("hosts: files mymachines resolve [!UNAVAIL=return] dns myhostname\n"),
        resolved: resolved_host().resolved,
        ..host("192.0.2.1")
    };
    assert_eq!(change(&facts, &wanted()).resolver, Resolver::SystemdResolved);
    assert!(!asks_resolved("hosts: files dns resolve\n") && !asks_resolved("passwd: files\n"));
    // nss-resolve is configured and its service does not run: then libc goes on to DNS.
    let facts = Facts { asks_resolved: true, ..dnsmasq_host() };
    assert_eq!(change(&facts, &wanted()).resolver, Resolver::Dnsmasq);
}

#[test]
fn without_a_name_server_the_one_of_this_host_is_meant() {
    let mut facts = dnsmasq_host();
    facts.resolv_conf.text = "# empty\n".to_owned();
    assert!(facts.resolv_conf.first().is_loopback());
    assert_eq!(change(&facts, &wanted()).resolver, Resolver::Dnsmasq);
}

#[test]
fn a_resolver_that_is_unknown_or_away_is_left_alone() {
    let named = Facts { stub: stub("named", &[]), ..host("127.0.0.1") };
    let why = refused(&named, &wanted());
    assert!(why.contains("named") && why.contains("mesh.internal") && why.contains("port 4653"), "{why}");
    let why = refused(&host("127.0.0.1"), &wanted());
    assert!(why.contains("127.0.0.1") && why.contains("as root"), "{why}");
}

#[test]
fn global_servers_beside_ours_are_refused() {
    let with = |listing: &str| Facts { resolved: Some(resolved_servers(listing)), ..resolved_host() };
    let why = refused(&with("Global: 192.0.2.9\nLink 2 (eth0): 192.0.2.1\n"), &wanted());
    assert!(why.contains("192.0.2.9") && why.contains("dns-delegate.d"), "{why}");
    // A second setup sees the first one's server.
    change(&with("Global: 127.240.0.53:4653\nLink 2 (eth0): 192.0.2.1\n"), &wanted());
    let alone = with("Global:\nLink 2 (eth0):\n");
    assert!(refused(&alone, &wanted()).contains("dns.upstream"));
    change(&alone, &Wanted { forwards: Some(true), ..wanted() });
    let silent = Facts { resolved: None, ..resolved_host() };
    assert!(change(&silent, &wanted()).notes[0].contains("resolvectl dns"));
}

#[test]
fn a_directory_counts_when_files_of_ours_are_read_from_it() {
    let place = |patterns: Vec<String>| included(&patterns).map(|path| path.display().to_string());
    let ours = || Some("/etc/dnsmasq.d/gossamer.conf".to_owned());
    assert_eq!(place(dnsmasq_includes("# conf-dir=/no\nconf-dir=/etc/dnsmasq.d/,*.conf\n", None)), ours());
    assert_eq!(place(dnsmasq_includes("conf-dir = /etc/dnsmasq.d\n", None)), ours());
    assert_eq!(place(dnsmasq_includes("conf-dir=/etc/dnsmasq.d,.conf\n", None)), None, "excluded");
    assert_eq!(place(dnsmasq_includes("conf-dir=/etc/dnsmasq.d,*.dns\n", None)), None, "others only");
    assert_eq!(
        place(unbound_includes("server:\n  include: \"/etc/unbound/local.d/*.conf\"\n")),
        None,
        "in a clause"
    );
    assert_eq!(
        place(unbound_includes("include: /etc/unbound/conf.d/*.conf # all\n")).as_deref(),
        Some("/etc/unbound/conf.d/gossamer.conf")
    );
    for facts in [dnsmasq_host(), unbound_host()] {
        let why = refused(&Facts { includes: vec![], ..facts }, &wanted());
        assert!(why.contains("add `"), "{why}");
    }
}

#[test]
fn plain_resolv_conf_is_changed_only_when_that_is_meant_and_harmless() {
    let good = Wanted {
        dns: "127.240.0.53:53".parse().expect("an address"),
        yes: true,
        forwards: Some(true),
        ..wanted()
    };
    let facts = host("192.0.2.1");
    let plan = change(&facts, &good);
    let lines: Vec<_> = plan.text.lines().skip(1).collect();
    let kept =
        ["search corp.example", "nameserver 127.240.0.53", "nameserver 192.0.2.1", "options timeout:1"];
    assert_eq!(lines, kept);

    let mut rotating = facts.clone();
    rotating.resolv_conf.text.push_str("options edns0 rotate\n");
    let mut mounted = facts.clone();
    mounted.resolv_conf.is_mount = true;
    for (facts, wanted, cause) in [
        (&facts, Wanted { dns: wanted().dns, ..good.clone() }, "port 53 only"),
        (&facts, Wanted { forwards: Some(false), ..good.clone() }, "set dns.upstream"),
        (&facts, Wanted { forwards: None, ..good.clone() }, "nothing answers at 127.240.0.53:53"),
        (&facts, Wanted { yes: false, ..good.clone() }, "--yes"),
        (&rotating, good.clone(), "rotate"),
        (&mounted, good, "mounted"),
    ] {
        let why = refused(facts, &wanted);
        assert!(why.contains(cause), "{why}");
    }
}

#[test]
fn a_changed_resolv_conf_gives_what_its_original_gave() {
    let good = |dns: &str| Wanted {
        dns: dns.parse().expect("an address"),
        yes: true,
        forwards: Some(true),
        ..wanted()
    };
    for original in
        ["nameserver 192.0.2.1\n", "search a\n", "", "; c\nnameserver 192.0.2.1\nnameserver 192.0.2.2"]
    {
        let text = |text: &str, dns: &str| {
            let mut facts = host("192.0.2.1");
            facts.resolv_conf.text = text.to_owned();
            // What libc takes without a server is of no matter here.
            facts.resolv_conf.text.push_str(if text.contains("nameserver") {
                ""
            } else {
                "nameserver 192.0.2.1\n"
            });
            change(&facts, &good(dns)).text
        };
        let once = text(original, "127.240.0.53:53");
        assert_eq!(text(&once, "127.240.0.53:53"), once);
        assert_eq!(text(&once, "127.241.0.53:53"), text(original, "127.241.0.53:53"), "another slot");
    }
}

#[test]
fn what_others_write_again_and_again_is_theirs() {
    let managed = |comment: &str| {
        let mut facts = host("192.0.2.1");
        facts.resolv_conf.text.insert_str(0, comment);
        facts
    };
    for comment in
        ["# Generated by NetworkManager\n", "# generated by /usr/sbin/dhclient-script via NetworkManager\n"]
    {
        let planned = plan(&managed(comment), &wanted()).expect("a snippet");
        let Planned::Snippet(snippet) = planned else { panic!("{planned:?}") };
        assert!(snippet.text.contains("server=/mesh.internal/127.240.0.53#4653"), "{snippet:?}");
    }
    let arguments = ["dnsmasq", "--conf-dir=/etc/NetworkManager/dnsmasq.d"];
    let facts = Facts { stub: stub("dnsmasq", &arguments), ..host("127.0.0.1") };
    assert!(matches!(plan(&facts, &wanted()), Ok(Planned::Snippet(_))));
    for (comment, name) in [
        ("# Dynamic resolv.conf(5) file for glibc resolver(3) generated by resolvconf(8)\n", "resolvconf"),
        (
            "# This is /run/systemd/resolve/resolv.conf managed by man:systemd-resolved(8).\n",
            "stub-resolv.conf",
        ),
        ("# Generated by Connection Manager\n", "connman"),
        ("# Generated by dhcpcd from eth0.dhcp\n", "dhcpcd"),
        ("# Generated by Docker Engine.\n", "docker run --dns"),
    ] {
        let why = refused(&managed(comment), &wanted());
        assert!(why.contains(name), "{why}");
    }
}

#[test]
fn a_comment_that_merely_names_a_program_is_no_claim() {
    for comment in ["# before docker and NetworkManager came\n", "; no dhclient here\n"] {
        let conf = ResolvConf { text: format!("{comment}nameserver 192.0.2.1\n"), is_mount: false };
        assert_eq!(conf.manager(), None, "{comment}");
    }
}

#[test]
fn containers_are_told_that_this_address_is_not_theirs() {
    let facts = Facts { docker: true, ..dnsmasq_host() };
    assert!(change(&facts, &wanted()).notes[0].contains("127.0.0.0/8 of their own"));
    assert!(change(&facts, &wanted()).notes[0].contains("vip.clients"));
    let routed = Wanted { dns: "240.80.0.53:53".parse().expect("an address"), ..wanted() };
    assert!(change(&facts, &routed).notes.is_empty());
}

#[test]
fn a_resolver_is_restarted_by_what_starts_services_here() {
    let scripts = |names: &[&str]| Services::Scripts(names.iter().map(|name| (*name).to_owned()).collect());
    let facts = Facts { services: scripts(&["dnsmasq"]), ..dnsmasq_host() };
    assert_eq!(command(change(&facts, &wanted()).reload.as_ref()), "/etc/init.d/dnsmasq restart");
    for services in [scripts(&["cron"]), Services::Unknown] {
        assert!(refused(&Facts { services, ..dnsmasq_host() }, &wanted()).contains("is not known"));
    }
}

#[test]
fn only_the_resolver_itself_is_told_and_never_who_answers_in_its_place() {
    for (name, facts) in [
        ("dnsmasq", unbound_host()),
        ("unbound", dnsmasq_host()),
        ("systemd-resolve", unbound_host()),
        ("gone", host("192.0.2.1")),
    ] {
        let is_other = |resolver: &Resolver| match name {
            "gone" => true,
            "systemd-resolve" => *resolver == Resolver::SystemdResolved,
            name => resolver.name() == name,
        };
        for resolver in
            [Resolver::SystemdResolved, Resolver::Dnsmasq, Resolver::Unbound].iter().filter(|of| is_other(of))
        {
            let why = reload(*resolver, &facts).expect_err("another answers").to_string();
            assert!(why.contains("restart it yourself") && why.contains(resolver.name()), "{why}");
        }
    }
    // The one that NetworkManager starts is its own.
    let arguments = ["dnsmasq", "--conf-dir=/etc/NetworkManager/dnsmasq.d"];
    let facts = Facts { stub: stub("dnsmasq", &arguments), ..dnsmasq_host() };
    assert!(reload(Resolver::Dnsmasq, &facts).is_err());
    assert_eq!(reload(Resolver::ResolvConf, &facts), Ok(None));
}

#[test]
fn a_resolver_that_is_down_is_started_again_by_its_name() {
    let down = Facts { stub: None, ..dnsmasq_host() };
    let told = |resolver| reload(resolver, &down).map(|told| command(told.as_ref()));
    assert_eq!(told(Resolver::Dnsmasq).expect("told"), "systemctl restart dnsmasq");
    assert_eq!(told(Resolver::SystemdResolved).expect("told"), "systemctl restart systemd-resolved");
    let why = told(Resolver::Unbound).expect_err("there is no process").to_string();
    assert!(why.contains("nobody who can be seen") && why.contains("unbound"), "{why}");
}

#[test]
fn no_record_is_made_that_an_undo_would_not_believe() {
    for directory in ["/opt/unbound/conf.d", "/etc/../opt/conf.d", "/etc/unbound/../conf.d"] {
        let include = |pattern: &str| unbound_includes(&format!("include-toplevel: {pattern}\n"));
        let mut facts = Facts { includes: include(&format!("{directory}/*.conf")), ..unbound_host() };
        let why = refused(&facts, &wanted());
        assert!(
            why.contains("only below /etc") && why.contains(directory) && why.contains("let it include"),
            "{why}"
        );
        facts.includes.extend(include("/etc/unbound/unbound.conf.d/*.conf"));
        assert!(super::journal::is_plausible(&change(&facts, &wanted()).path));
    }
    assert_eq!(included(&["/etc/unbound/*/*.conf".to_owned()]), None, "no one directory");
}

#[test]
fn a_resolver_at_the_daemons_address_and_another_port_is_a_resolver() {
    let beside = Wanted { dns: "127.0.0.1:4653".parse().expect("an address"), ..wanted() };
    assert_eq!(change(&dnsmasq_host(), &beside).resolver, Resolver::Dnsmasq);
    let itself = Wanted { dns: "127.0.0.1:53".parse().expect("an address"), ..wanted() };
    assert_eq!(resolver(&dnsmasq_host(), &itself), Ok(Resolver::ResolvConf));
}

fn decided(record: Option<&Record>, now: &Entry, plan: &Plan) -> Result<Setup, Refusal> {
    decide::setup(
        record.cloned(),
        now,
        plan,
        vec!["/etc/dnsmasq.d".into()],
        "/var/lib/gossamer-host/record.json",
    )
}

fn written(now: &Entry, plan: &Plan) -> Record {
    match decided(None, now, plan).expect("decides") {
        Setup::Write(record) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_setup_does_nothing_and_one_that_was_cut_short_goes_on() {
    let plan = change(&dnsmasq_host(), &wanted());
    let record = written(&Entry::Missing, &plan);
    assert_eq!((&record.before, record.taken), (&Entry::Missing, false));
    assert_eq!(record.directories, [std::path::PathBuf::from("/etc/dnsmasq.d")]);
    // Killed after the record, after the file, and not at all.
    assert!(
        matches!(decided(Some(&record), &Entry::Missing, &plan), Ok(Setup::Write(again)) if again.before == Entry::Missing)
    );
    assert_eq!(decided(Some(&record), &record.after, &plan), Ok(Setup::Tell(record.clone())));
    let done = Record { taken: true, ..record };
    assert_eq!(decided(Some(&done), &done.after, &plan), Ok(Setup::Nothing));
}

#[test]
fn another_address_keeps_what_was_there_before_the_first_setup() {
    let before = Entry::ours("# the user's own\n");
    let record = Record { taken: true, ..written(&before, &change(&dnsmasq_host(), &wanted())) };
    let moved = Wanted { dns: "127.240.0.53:53".parse().expect("an address"), ..wanted() };
    let again = decided(Some(&record), &record.after, &change(&dnsmasq_host(), &moved));
    let Ok(Setup::Write(again)) = again else { panic!("{again:?}") };
    assert_eq!(again.before, before);
    assert_ne!(again.after, record.after);
}

#[test]
fn a_file_that_somebody_changed_is_left_as_it_is() {
    let plan = change(&dnsmasq_host(), &wanted());
    let record = written(&Entry::Missing, &plan);
    let changed = Entry::ours("server=/mesh.internal/192.0.2.9\n");
    let file = "/var/lib/gossamer-host/record.json";
    let errors = [
        decided(Some(&record), &changed, &plan).expect_err("changed").to_string(),
        decide::undo(&record, &changed, file).expect_err("changed").to_string(),
    ];
    for why in errors {
        assert!(why.contains("left as it is") && why.contains(file), "{why}");
    }
    assert_eq!(decide::undo(&record, &record.after, file), Ok(Undo::Restore));
    assert_eq!(decide::undo(&record, &record.before, file), Ok(Undo::Tell));
}

#[test]
fn another_resolver_wants_the_first_setup_undone() {
    let record = written(&Entry::Missing, &change(&dnsmasq_host(), &wanted()));
    let why =
        decided(Some(&record), &Entry::Missing, &change(&unbound_host(), &wanted())).expect_err("other");
    assert!(why.to_string().contains("gossamer host undo"), "{why}");
}

#[test]
fn a_file_of_ours_without_its_record_had_nothing_before_it() {
    let plan = change(&dnsmasq_host(), &wanted());
    assert_eq!(written(&Entry::ours(&plan.text), &plan).before, Entry::Missing);
    let own = Entry::ours("# mine\n");
    assert_eq!(written(&own, &plan).before, own);
    let good = Wanted {
        dns: "127.240.0.53:53".parse().expect("an address"),
        yes: true,
        forwards: Some(true),
        ..wanted()
    };
    let plain = change(&host("192.0.2.1"), &good);
    let why = decided(None, &Entry::ours(&plain.text), &plain).expect_err("the original is gone");
    assert!(why.to_string().contains("by hand"), "{why}");
}
