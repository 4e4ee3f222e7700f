//! The shape of the workspace: who may depend on whom, and which calls belong to one module only.
//!
//! Owns: the rules of the layout. Must not know: what the crates do. Driven by: `cargo test`.
//!
//! Dependencies are read from `cargo metadata`, calls from the sources with comments, strings and inline tests
//! taken out. Clippy forbids most of these calls too; these rules also see what an `expect` would let through.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

#[test]
fn dependencies_point_one_way() {
    let allowed = BTreeMap::from([
        ("gossamer-wire", vec![]),
        ("gossamer-core", vec!["gossamer-wire"]),
        ("gossamer-dns", vec!["gossamer-wire"]),
        ("gossamer", vec!["gossamer-core", "gossamer-dns", "gossamer-wire"]),
    ]);
    let metadata = metadata();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    for (name, allowed) in allowed {
        let package = metadata.workspace_packages().into_iter().find(|package| package.name == name);
        let package = package.unwrap_or_else(|| panic!("{name} is not in the workspace"));
        for dependency in &package.dependencies {
            let other = dependency.name.as_str();
            assert!(
                !members.contains(other) || allowed.contains(&other),
                "{name} must not depend on {other} ({:?})",
                dependency.kind
            );
        }
    }
}

#[test]
fn words_and_decisions_are_built_without_a_runtime() {
    let metadata = metadata();
    for name in ["gossamer-wire", "gossamer-core"] {
        assert_without(&metadata, name, &["tokio", "quinn", "hickory-server", "dashmap"]);
    }
}

#[test]
fn names_are_answered_without_knowing_gossip_or_quic() {
    assert_without(&metadata(), "gossamer-dns", &["foca", "quinn", "rustls"]);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for package in metadata().workspace_packages() {
        let manifest = fs::read_to_string(&package.manifest_path).expect("the manifest is readable");
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{}", package.manifest_path);
    }
}

#[test]
fn each_forbidden_call_stays_in_its_module() {
    let sources = sources(&["proto-wire/src", "dns/src", "daemon/core/src", "daemon/src"]);
    assert!(sources.len() > 5, "the sources were not found");
    let breaches: Vec<String> = RULES.iter().flat_map(|rule| rule.breaches(&sources)).collect();
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// What stands before the routes is a type: TCP gets `Guarded` ones only, and there is one way to make those.
#[test]
fn routes_over_tcp_lie_behind_the_guard() {
    let sources = sources(&["daemon/src"]);
    let code = &sources["daemon/src/api/connection.rs"];
    let served: Vec<_> =
        code.lines().filter(|line| line.contains("converse(") && !line.contains("fn ")).collect();
    assert_eq!(served.len(), 2, "over_unix and over_tcp, and nothing else: {served:?}");
    assert!(code.contains("fn over_tcp(Guarded(routes): Guarded, "), "over_tcp takes guarded routes only");
    let made = code.matches("Self(").count() + code.matches("Guarded(").count();
    assert_eq!(made, 3, "the type, Guarded::new, which makes them, and over_tcp, which takes them apart");
}

#[test]
fn every_check_that_a_threat_names_is_there() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the document is readable");
    let (threats, rows) = (read("docs/threats.md"), read("docs/evidence.md"));
    let folders = ["proto-wire", "dns", "daemon", "tests/src", "tests/tests"];
    let sources: String = folders.iter().flat_map(|folder| raw(&root().join(folder))).collect();
    let table = threats.lines().filter(|line| line.starts_with("| ") && line.ends_with('|'));
    let mut named = 0;
    for line in table {
        let checks = line.rsplit('|').nth(1).unwrap_or_default();
        for check in checks.split('`').skip(1).step_by(2).filter(|check| *check != ".ci/run") {
            let is_row = rows.contains(&format!("| {check} |"));
            assert!(is_row || sources.contains(&format!("fn {check}(")), "nothing is called {check}: {line}");
            named += 1;
        }
    }
    assert!(named > 30, "the table was not found");
}

#[test]
fn nothing_is_unsafe() {
    let sources = sources(&["proto-wire", "dns", "daemon", "bench", "tests/src", "tests/tests"]);
    let is_unsafe = |code: &str| has_word(code, "unsafe ") || has_word(code, "unsafe(");
    let found: Vec<_> = sources.iter().filter(|(_, code)| is_unsafe(code)).map(|(path, _)| path).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_rule_sees_a_breach_but_no_comment_text_test_or_home() {
    let rule = Rule { what: "spawn", calls: &["tokio::spawn"], homes: &["daemon/src/supervise"] };
    let seen = |path: &str, source: &str| {
        let sources = BTreeMap::from([(path.to_owned(), production(source))]);
        !rule.breaches(&sources).is_empty()
    };
    assert!(seen("daemon/src/app.rs", "fn f() { let s = \"\\\"//\"; tokio::spawn(g()); }"));
    assert!(seen("daemon/src/app.rs", "fn f<'a>(x: &'a str) { x.find('\"'); tokio::spawn(g()); }"));
    assert!(seen("daemon/src/supervised.rs", "fn f() { tokio::spawn(g()); }"));
    assert!(!seen("daemon/src/supervise.rs", "fn f() { tokio::spawn(g()); }"));
    assert!(!seen("daemon/src/supervise/stage.rs", "fn f() { tokio::spawn(g()); }"));
    assert!(!seen("daemon/src/app.rs", "// tokio::spawn\n/* tokio::spawn */ fn f() {}"));
    assert!(!seen("daemon/src/app.rs", "const S: &str = r#\"\"tokio::spawn\"#;"));
    assert!(!seen("daemon/src/app.rs", "#[cfg(test)]\nmod tests { fn f() { tokio::spawn(g()); } }"));
}

/// A call and the only modules that may make it. Another module on a list is a decision for `docs/adr/`.
struct Rule {
    what: &'static str,
    calls: &'static [&'static str],
    /// Modules, as paths without `.rs`; what lies below one belongs to it.
    homes: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        what: "only the supervisor starts tasks and threads",
        calls: &["tokio::spawn", "task::spawn", "thread::spawn", "thread::Builder"],
        homes: &["daemon/src/supervise"],
    },
    Rule {
        what: "only the index, the open virtual addresses and the kept answers hold a concurrent map",
        calls: &["dashmap::", "DashMap", "DashSet"],
        homes: &["daemon/src/index", "daemon/src/relay/vips", "dns/src/kept"],
    },
    Rule {
        what: "only the codec knows the serializer (ADR 1)",
        calls: &["bincode::", "bincode1::"],
        homes: &["proto-wire/src/codec"],
    },
    Rule {
        what: "only the transport owns a QUIC endpoint",
        calls: &["quinn::Endpoint", "EndpointConfig", "Endpoint::server", "Endpoint::client"],
        homes: &["daemon/src/transport"],
    },
    Rule {
        what: "stream listeners: lanes, VIPs, the local API, and those of `forward` and the demo",
        calls: &["TcpListener::bind", "UnixListener::bind", "TcpSocket::new_", "Socket::new"],
        homes: &[
            "daemon/src/transport",
            "daemon/src/app",
            "daemon/src/relay/listener",
            "daemon/src/segments",       // sets the size of segments before it connects
            "daemon/src/listeners/diag", // netlink
            "daemon/src/api",
            "daemon/src/cli",
        ],
    },
    Rule {
        what: "datagram sockets: QUIC, DNS, what asks DNS (ADR 21), and UDP flows (ADR 27)",
        calls: &["UdpSocket::bind", "UnixDatagram::bind"],
        homes: &[
            "daemon/src/transport",
            "daemon/src/app",
            "daemon/src/clients", // asks whose an address is, and sends nothing
            "daemon/src/cli",
            "daemon/src/demo",
            "dns/src/forward/exchange",
            "daemon/src/relay/udp/sockets",
        ],
    },
    Rule {
        what: "HTTP is served by one module, which lets nothing over TCP past the guard (ADR 14)",
        calls: &["axum::serve", "serve_connection", "http1::Builder", "http2::Builder", "auto::Builder"],
        homes: &["daemon/src/api/connection"],
    },
    Rule { what: "channels have a capacity", calls: &["unbounded_channel", "mpsc::channel()"], homes: &[] },
];

impl Rule {
    fn breaches(&self, sources: &BTreeMap<String, String>) -> Vec<String> {
        let abroad = sources.iter().filter(|(path, _)| !self.homes.iter().any(|home| is_part(path, home)));
        abroad
            .flat_map(|(path, code)| {
                let found = self.calls.iter().filter(|call| has_word(code, call));
                found.map(move |call| format!("{path} has {call}: {}", self.what))
            })
            .collect()
    }
}

/// Returns whether `path` is the module `home` or lies below it.
fn is_part(path: &str, home: &str) -> bool {
    path.strip_prefix(home).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Returns whether `word` is in `code` and does not merely end a longer identifier.
fn has_word(code: &str, word: &str) -> bool {
    let is_ident = |char: char| char.is_alphanumeric() || char == '_';
    code.match_indices(word).any(|(at, _)| !code[..at].ends_with(is_ident))
}

fn assert_without(metadata: &Metadata, name: &str, banned: &[&str]) {
    let closure = normal_closure(metadata, name);
    for banned in banned {
        assert!(!closure.contains(*banned), "{name} must be built without {banned}");
    }
}

/// Returns the names of all crates that `name` is linked with.
fn normal_closure(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let nodes: BTreeMap<&PackageId, _> =
        metadata.resolve.iter().flat_map(|resolve| &resolve.nodes).map(|node| (&node.id, node)).collect();
    let start = metadata.workspace_packages().into_iter().find(|package| package.name == name);
    let mut open = vec![&start.expect("the crate is in the workspace").id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let linked = nodes[id].deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            open.extend(linked.map(|dependency| &dependency.pkg));
        }
    }
    assert!(seen.len() > 10, "the dependencies of {name} were not resolved");
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

/// Reads the workspace without a network, for this kind of machine only: nothing else needs to be downloaded.
fn metadata() -> Metadata {
    let platform = format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH);
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--offline".to_owned(), "--locked".to_owned(), platform])
        .exec()
        .expect("cargo metadata answers")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns every source below a folder as it stands.
fn raw(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the folder is readable").path();
        if path.is_dir() {
            texts.extend(raw(&path));
        } else if path.extension() == Some("rs".as_ref()) {
            texts.push(fs::read_to_string(&path).expect("the file is readable"));
        }
    }
    texts
}

/// Returns the production code below some folders of the root, by path from the root.
fn sources(folders: &[&str]) -> BTreeMap<String, String> {
    let root = root();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut sources = BTreeMap::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("the folder is readable");
            open.extend(entries.map(|entry| entry.expect("the folder is readable").path()));
        } else if path.extension() == Some("rs".as_ref()) && path.file_name() != Some("tests.rs".as_ref()) {
            let source = fs::read_to_string(&path).expect("the file is readable");
            let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            sources.insert(path, production(&source));
        }
    }
    sources
}

/// Returns the code up to the inline tests, with comments and literals left out.
fn production(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(char) = rest.chars().next() {
        let skipped = literal_or_comment(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(char);
        }
        rest = &rest[skipped.max(char.len_utf8())..];
    }
    let end = code.find("#[cfg(test)]\nmod ").unwrap_or(code.len());
    code.truncate(end);
    code
}

/// Returns the length of the comment or literal that `rest` starts with; 0 when it starts with code.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let up_to = |start: usize, end: &str| match rest[start..].find(end) {
        Some(at) => start + at + end.len(),
        None => rest.len(),
    };
    let in_word = before.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let hashes = rest.strip_prefix('r').map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    match rest.as_bytes() {
        [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => up_to(2, "*/"),
        [b'r', ..] if (!in_word || before == Some('b')) && rest[1 + hashes..].starts_with('"') => {
            up_to(hashes + 2, &format!("\"{}", "#".repeat(hashes)))
        }
        [b'"', ..] => {
            let mut escaped = false;
            let end = rest[1..].find(|char| {
                let ends = char == '"' && !escaped;
                escaped = char == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |at| at + 2)
        }
        [b'\'', b'\\', ..] => up_to(3, "'"),
        [b'\'', ..] => match rest[1..].chars().next() {
            Some(char) if rest[1 + char.len_utf8()..].starts_with('\'') => char.len_utf8() + 2,
            _ => 0, // a lifetime
        },
        _ => 0,
    }
}
