//! Rules of settings: faults, precedence, defaults.

use super::*;

fn user() -> Host {
    let variables = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
    Host {
        is_root: false,
        has_ipv6: true,
        name: "vm-a".to_owned(),
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

fn with_file(text: &str, flags: Flags, host: Host) -> Result<Config, ConfigError> {
    let (_dir, host) = write_file(text, host);
    Config::load(&flags, &host)
}

fn write_file(text: &str, mut host: Host) -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("gossamer.toml");
    std::fs::write(&path, text).expect("writes");
    host.variables.insert("GOSSAMER_CONFIG".to_owned(), path.display().to_string());
    (dir, host)
}

fn flag(key: &'static str, value: &str) -> Flags {
    Flags { config: None, keys: vec![(key, value.to_owned())] }
}

fn faults(text: &str) -> Vec<String> {
    let error = with_file(text, Flags::default(), user()).expect_err(text);
    error.faults.iter().map(ToString::to_string).collect()
}

#[test]
fn an_ordinary_user_gets_their_own_directories() {
    let config = Config::load(&Flags::default(), &user()).expect("no file is fine");
    let settings = config.settings(Slot::FIRST);
    assert_eq!(settings.state_dir, Path::new("/home/u/.local/state/gossamer"));
    assert_eq!(settings.socket, Path::new("/run/user/1000/gossamer.sock"));
    assert_eq!(config.file(), Path::new("/home/u/.config/gossamer/gossamer.toml"));
    assert_eq!(settings.listen.to_string(), "[::]:4677");
    assert_eq!(settings.dns_zone, "mesh.internal");
    assert_eq!(settings.vip_pool.to_string(), "127.240.0.0/16");
    assert_eq!(
        settings.dns_candidates().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["127.240.0.53:53", "127.240.0.53:4653"]
    );
}

#[test]
fn root_gets_the_directories_of_the_system() {
    let root = Host { is_root: true, ..Host::default() };
    let config = Config::load(&Flags::default(), &root).expect("loads");
    let settings = config.settings(Slot::FIRST);
    assert_eq!(settings.state_dir, Path::new("/var/lib/gossamer"));
    assert_eq!(settings.socket, Path::new("/run/gossamer/gossamer.sock"));
    assert_eq!(settings.listen.to_string(), "0.0.0.0:4677");
}

#[test]
fn a_slot_carries_its_number_everywhere() {
    let config = Config::load(&flag("slot", "3"), &user()).expect("loads");
    let SlotChoice::Fixed(slot) = config.slot() else { panic!("chosen") };
    let settings = config.settings(slot);
    assert_eq!(settings.state_dir, Path::new("/home/u/.local/state/gossamer-3"));
    assert_eq!(settings.socket, Path::new("/run/user/1000/gossamer-3.sock"));
    assert_eq!(settings.listen.port(), 4707);
    assert_eq!(settings.vip_pool.to_string(), "127.243.0.0/16");
    assert_eq!(settings.dns_candidates()[0].to_string(), "127.243.0.53:53");
}

#[test]
fn without_a_runtime_directory_the_socket_is_in_the_state_directory() {
    let mut host = user();
    host.variables.remove("XDG_RUNTIME_DIR");
    let config = Config::load(&flag("state_dir", "/tmp/a"), &host).expect("loads");
    assert_eq!(config.settings(Slot::FIRST).socket, Path::new("/tmp/a/gossamer.sock"));
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let text = "listen = \"192.0.2.1:1\"\n[dns]\nzone = \"file.example\"\n[log]\nlevel = \"debug\"\n";
    let mut host = user();
    host.variables.insert("GOSSAMER_LISTEN".to_owned(), "192.0.2.1:2".to_owned());
    host.variables.insert("GOSSAMER_DNS_ZONE".to_owned(), "Env.Example.".to_owned());
    let config = with_file(text, flag("listen", "192.0.2.1:3"), host).expect("loads");
    let settings = config.settings(Slot::FIRST);
    assert_eq!(settings.listen.port(), 3);
    assert_eq!(settings.dns_zone, "env.example");
    assert_eq!(settings.log_level, tracing::Level::DEBUG);
    assert_eq!(config.source("listen", Slot::FIRST), "--listen");
    assert_eq!(config.source("dns.zone", Slot::FIRST), "GOSSAMER_DNS_ZONE");
    assert!(config.source("log.level", Slot::FIRST).ends_with("gossamer.toml: log.level"));
    assert_eq!(config.source("vip.pool", Slot::FIRST), "default");
}

#[test]
fn flags_of_an_earlier_start_come_after_every_other_source() {
    let dir = tempfile::tempdir().expect("scratch");
    let kept = r#"{"listen":"192.0.2.1:1","import":"orders@west","advertise":"192.0.2.9","slot":"3"}"#;
    std::fs::write(dir.path().join(REMEMBERED_FILE), kept).expect("writes");
    let mut host = user();
    host.variables.insert("GOSSAMER_STATE_DIR".to_owned(), dir.path().display().to_string());
    let config = with_file("import = []", flag("listen", "192.0.2.1:2"), host).expect("loads");
    let settings = config.settings(Slot::FIRST);
    assert_eq!(settings.listen.port(), 2);
    assert_eq!(settings.import.0, []);
    assert_eq!(settings.advertise, ["192.0.2.9:2".parse().expect("address")]);
    assert_eq!(settings.slot, Slot::FIRST);
    assert!(config.source("advertise", Slot::FIRST).ends_with("flags.json: advertise"));
}

#[test]
fn each_slot_remembers_for_itself() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut host = user();
    host.variables.insert("XDG_STATE_HOME".to_owned(), dir.path().display().to_string());
    std::fs::create_dir(dir.path().join("gossamer-2")).expect("makes");
    let kept = r#"{"dns.address":"192.0.2.1"}"#;
    std::fs::write(dir.path().join("gossamer-2").join(REMEMBERED_FILE), kept).expect("writes");
    let config = Config::load(&flag("slot", "auto"), &host).expect("loads");
    let told: Vec<_> = Slot::all().filter(|slot| config.settings(*slot).dns_address.is_some()).collect();
    assert_eq!(told.iter().map(|slot| slot.number()).collect::<Vec<_>>(), [2]);
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = "lisen = \"0.0.0.0:1\"\nimport = [\"orders\"]\n[dns]\nzone = \"local\"\nadress = \"x\"\n[vip]\npool = 7\n";
    let mut host = user();
    host.variables.insert("GOSSAMER_LOG_LEVEL".to_owned(), "inof".to_owned());
    let error = with_file(text, flag("slot", "12"), host).expect_err("seven faults");
    assert_eq!(error.faults.len(), 7, "{error}");
    let text = error.to_string();
    for words in ["; write listen", "orders@west", "mDNS", "; write dns.address", "vip.pool", "; write info"]
    {
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
    assert!(text.ends_with("--slot: \"12\" is no slot: write 0 to 9 or auto; correct the value"), "{text}");
}

#[test]
fn a_fault_names_the_file_and_the_key() {
    let [fault] = &faults("[node]\nzone = \"Not A Label\"")[..] else { panic!("one fault") };
    assert!(fault.contains("gossamer.toml: node.zone: "), "{fault}");
}

#[test]
fn a_key_outside_its_section_is_found() {
    assert!(faults("level = \"info\"")[0].ends_with("; write log.level"));
    assert!(faults("[logs]\nlevel = \"info\"")[0].contains("there is no such key"));
}

#[test]
fn values_of_the_wrong_shape_are_refused() {
    for (text, words) in [
        ("listen = true", "boolean"),
        ("listen = [\"a\"]", "one value"),
        ("listen = \"localhost:1\"", "no IP address"),
        ("listen = \"0.0.0.0:0\"", "no IP address"),
        ("advertise = [\"0.0.0.0\"]", "nobody can dial"),
        (
            "advertise = [\"169.254.169.254\"]",
            "nobody can dial 169.254.169.254: it is a cloud's metadata service",
        ),
        ("advertise = [\"fe80::1\"]", "it is a link-local address"),
        ("advertise = [\"127.240.0.9:1\"]", "it is a virtual address of the mesh"),
        ("advertise = [1]", "quote each item"),
        ("advertise = [\"tls://a.example:0\"]", "\"0\" is no port"),
        ("advertise = [\"tls://a_b.example\"]", "neither an IP address nor a host name"),
        ("advertise = [\"tls://169.254.169.254\"]", "it is a cloud's metadata service"),
        ("advertise = [\"tls://a.b\", \"tls://c.d\", \"tls://e.f\"]", "more than the 2 a node may publish"),
        ("[log]\nformat = \"xml\"", "text, json"),
        ("state_dir = \"\"", "empty"),
        ("import = [\"Or ders@west\"]", "not a service pattern"),
        ("import = [\"orders@West\"]", "a-z"),
        ("listen = ", "not TOML"),
        ("[dns]\nupstream = [\"127.0.0.53\"]", "systemd-resolved"),
        ("[dns]\nupstream = [\"127.0.0.54:53\"]", "resolvectl dns"),
        ("[dns]\nupstream = [\"0.0.0.0\"]", "no address of a server"),
        ("[dns]\nupstream = [\"dns.example\"]", "no IP address"),
        (
            "[dns]\nupstream = [\"9.9.9.1\", \"9.9.9.2\", \"9.9.9.3\", \"9.9.9.4\", \"9.9.9.5\"]",
            "more than 4",
        ),
        ("[dns]\nrebind_protection = \"maybe\"", "true, false"),
        ("[vip]\nclients = [\"0.0.0.0/0\"]", "wider than /8: whoever has a route"),
        ("[vip]\nclients = [\"10.244.7.1/16\"]", "; write 10.244.0.0/16"),
        ("[vip]\nclients = [\"pods\"]", "is no network"),
        ("[vip]\nmode = \"dnt\"", "; write dnat"),
        ("[vip]\nmode = true", "; write text in quotes"),
        ("[vip]\nclient = [\"10.244.0.0/16\"]", "; write vip.clients"),
        ("[dns]\nrebind_allow = [\"corp example\"]", "corp.example"),
    ] {
        let all = faults(text);
        assert!(all.len() == 1 && all[0].contains(words), "{text}: {all:?}");
    }
}

#[test]
fn broken_toml_is_named_by_line() {
    let [fault] = &faults("slot = 1\nlisten == 2\n")[..] else { panic!("one fault") };
    assert!(fault.contains("gossamer.toml:2: this is not TOML"), "{fault}");
}

#[test]
fn a_chosen_file_must_exist() {
    let flags = Flags { config: Some("/nonexistent/x.toml".into()), keys: Vec::new() };
    let error = Config::load(&flags, &user()).expect_err("missing").to_string();
    assert!(error.contains("/nonexistent/x.toml") && error.contains("--config"), "{error}");
}

#[test]
fn a_socket_path_must_fit_the_kernel() {
    let long = format!("/tmp/{}", "x".repeat(103));
    let error = Config::load(&flag("socket", &long), &user()).expect_err("too long").to_string();
    assert!(error.starts_with("--socket: ") && error.contains("108 bytes"), "{error}");
    assert!(Config::load(&flag("socket", &long[..107]), &user()).is_ok());
}

#[test]
fn without_a_home_a_state_directory_must_be_named() {
    let error = Config::load(&Flags::default(), &Host::default()).expect_err("no home").to_string();
    assert!(error.contains("--state-dir"), "{error}");
}

#[test]
fn addresses_take_the_mesh_port_when_they_name_none() {
    let flags = Flags {
        config: None,
        keys: vec![
            ("listen", "0.0.0.0:5000".to_owned()),
            ("advertise", "203.0.113.7, [2001:db8::7]:9, ::1, tls://Gate.example".to_owned()),
            ("dns.address", "127.0.0.1".to_owned()),
        ],
    };
    let settings = Config::load(&flags, &user()).expect("loads").settings(Slot::FIRST);
    let advertised: Vec<_> = settings.advertise.iter().map(ToString::to_string).collect();
    assert_eq!(advertised, ["203.0.113.7:5000", "[2001:db8::7]:9", "[::1]:5000", "tls://gate.example:443"]);
    assert_eq!(settings.dns_candidates(), ["127.0.0.1:53".parse().expect("an address")]);
}

#[test]
fn upstream_servers_take_the_port_of_dns_and_are_asked_once() {
    let text = "[dns]\nupstream = [\"192.0.2.53\", \"[2001:db8::53]:5353\", \"192.0.2.53:53\"]\n\
                rebind_protection = true\nrebind_allow = [\"Corp.Example.\"]";
    let settings = with_file(text, Flags::default(), user()).expect("loads").settings(Slot::FIRST);
    let upstreams: Vec<_> = settings.upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(upstreams, ["192.0.2.53:53", "[2001:db8::53]:5353"]);
    assert_eq!((settings.rebind_protection, settings.rebind_allow), (true, vec!["corp.example".to_owned()]));
}

#[test]
fn networks_of_clients_are_listed_and_shown() {
    assert_eq!(
        Config::load(&Flags::default(), &user()).expect("loads").settings(Slot::FIRST).vip_clients,
        []
    );
    let mut host = user();
    let networks = "10.244.0.0/16, 172.17.0.2,fd00:10:244::/56";
    host.variables.insert("GOSSAMER_VIP_CLIENTS".to_owned(), networks.to_owned());
    let settings = Config::load(&Flags::default(), &host).expect("loads").settings(Slot::FIRST);
    let shown = ("vip.clients", r#"["10.244.0.0/16", "172.17.0.2/32", "fd00:10:244::/56"]"#.to_owned());
    assert!(settings.entries().contains(&shown), "{:?}", settings.entries());
    let many = vec![r#""10.0.0.1""#; 65].join(", ");
    assert!(faults(&format!("[vip]\nclients = [{many}]"))[0].contains("65 networks are more than 64"));
}

#[test]
fn every_key_is_shown() {
    let settings = Config::load(&Flags::default(), &user()).expect("loads").settings(Slot::FIRST);
    let keys: Vec<_> = settings.entries().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, KEYS);
}

#[test]
fn what_is_shown_can_be_written_to_the_file() {
    let first = Config::load(&flag("import", "orders@west"), &user()).expect("loads").settings(Slot::FIRST);
    let mut text = String::new();
    for (key, value) in first.entries() {
        if value != "\"\"" && key != "dns.address" {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let again = with_file(&text, Flags::default(), user()).expect(&text).settings(Slot::FIRST);
    assert_eq!(again, first);
}

#[test]
fn names_beside_the_zone_come_from_the_file_or_the_environment() {
    let text = "[dns]\nzones = [\"Mesh.example.\"]\nfqdn_suffixes = [\"corp.example\", \"test\"]\nclusterset = true\n\
                [alias]\n\"pg.corp.example\" = \"orders-db\"\n\"x.y\" = \"vm-b.orders-db.west\"\n";
    let settings = with_file(text, Flags::default(), user()).expect("valid").settings(Slot::FIRST);
    assert_eq!(settings.dns_zones, ["mesh.example"]);
    assert!(settings.clusterset);
    let zones = settings.zones().expect("they stand beside each other");
    let all = [
        "mesh.internal",
        "mesh.example",
        "clusterset.local",
        "corp.example",
        "test",
        "pg.corp.example",
        "x.y",
    ];
    assert_eq!(zones.answered(), all);

    // What is shown can be written back.
    let shown: String = settings
        .entries()
        .iter()
        .filter(|(key, _)| *key == "alias" || key.starts_with("dns."))
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    let again = with_file(&shown, Flags::default(), user()).expect("valid").settings(Slot::FIRST);
    assert_eq!((again.aliases, again.fqdn_suffixes), (settings.aliases, settings.fqdn_suffixes));

    let mut host = user();
    for (name, value) in [("DNS_CLUSTERSET", "true"), ("ALIAS", "pg.corp.example=orders-db, a.b=c")] {
        host.variables.insert(format!("GOSSAMER_{name}"), value.to_owned());
    }
    let settings = Config::load(&Flags::default(), &host).expect("valid").settings(Slot::FIRST);
    assert_eq!((settings.clusterset, settings.aliases.len()), (true, 2));
}

#[test]
fn names_of_others_and_names_that_meet_are_refused_with_the_reason() {
    for (text, words) in [
        (
            "[dns]\nzone = \"local\"",
            "dns.zone: \"local\" cannot be a mesh zone: it belongs to mDNS, multicast DNS",
        ),
        ("[dns]\nzone = \"internal\"", "shared by every private network"),
        ("[dns]\nzone = \"cluster.local\"", "it belongs to Kubernetes"),
        (
            "[dns]\nzones = [\"10.in-addr.arpa\"]",
            "dns.zones: \"10.in-addr.arpa\" cannot be a mesh zone: it holds the reverse",
        ),
        (
            "[dns]\nzones = [\"a.mesh.internal\"]",
            "dns.zones: \"a.mesh.internal\" lies in the zone \"mesh.internal\"",
        ),
        (
            "[dns]\nfqdn_suffixes = [\"local\"]",
            "dns.fqdn_suffixes: \"local\" cannot be one of dns.fqdn_suffixes",
        ),
        ("[dns]\nfqdn_suffixes = [\"*.corp\"]", "dns.fqdn_suffixes: "),
        ("[dns]\nclusterset = \"maybe\"", "none of true, false"),
        ("[dns]\nclusterset = true\nzones = [\"x.clusterset.local\"]", "dns.clusterset: "),
        (
            "[alias]\n\"pg.mesh.internal\" = \"db\"",
            "alias: \"pg.mesh.internal\" cannot be an alias: it lies in the zone",
        ),
        ("[alias]\n\"pg.corp.example\" = \"a.b.c.d\"", "SERVICE.GROUP"),
        ("[alias]\npg.corp.example = \"db\"", "quote both sides"),
        ("[alias]\n\"*.corp.example\" = \"db\"", "a-z"),
    ] {
        let [fault] = &faults(text)[..] else { panic!("{text}: one fault") };
        assert!(fault.contains(words) && fault.contains("; "), "{text}: {fault}");
    }
}

#[test]
fn routes_are_tables_of_wishes() {
    let text = "[route.\"orders\"]\norder = [\"zone\", \"any\"]\nspill_below = 70\n[route.\"orders.west\"]\nonly = \"region\"\n[drain]\ndeadline = \"5s\"\n";
    let settings = with_file(text, Flags::default(), user()).expect("loads").settings(Slot::FIRST);
    assert_eq!(settings.routes.0.len(), 2);
    assert_eq!(settings.drain_deadline, Duration::from_secs(5));
    let entry =
        |key: &str| settings.entries().into_iter().find(|(name, _)| *name == key).map(|(_, text)| text);
    let expected = "{ \"orders\" = { order = [\"zone\", \"any\"], spill_below = 70 }, \"orders.west\" = { only = \"region\" } }";
    assert_eq!(entry("route").as_deref(), Some(expected));
    assert_eq!(entry("drain.deadline").as_deref(), Some("\"5s\""));
    // What is shown is what may be written.
    let again = with_file(&format!("route = {expected}\n"), Flags::default(), user()).expect("loads");
    assert_eq!(again.settings(Slot::FIRST).routes, settings.routes);
    let host = Host {
        variables: [
            ("HOME".to_owned(), "/home/u".to_owned()),
            ("GOSSAMER_ROUTE".to_owned(), "web.only=zone".to_owned()),
        ]
        .into(),
        ..user()
    };
    let settings = Config::load(&Flags::default(), &host).expect("loads").settings(Slot::FIRST);
    assert_eq!((settings.routes.0.len(), settings.drain_deadline), (1, Duration::from_secs(20)));
}

#[test]
fn faults_of_routes_name_the_wish_and_the_nearest_word() {
    for (text, words) in [
        (
            "[route.\"orders\"]\nonli = \"region\"\n",
            &["route: \"orders\": a route has no \"onli\"", "write only"][..],
        ),
        ("[route.\"orders\"]\nonly = \"regoin\"\n", &["is none of node, group, zone", "write region"]),
        ("[route.\"orders\"]\nspill_below = 101\n", &["no percentage", "0 to 100"]),
        ("[route]\norders = 7\n", &["a route is no table", "[route.\"orders\"]"]),
        ("[rout.\"orders\"]\nonly = \"region\"\n", &["there is no such key", "write route"]),
        ("[drain]\ndeadline = \"2h\"\n", &["drain.deadline", "0s to 1h"]),
    ] {
        let faults = faults(text);
        assert!(words.iter().all(|word| faults[0].contains(word)), "{faults:?}");
    }
}
