//! The settings for the DNS of clusters, `deploy/coredns`.
//!
//! Owns: that they can be read and say the same. Must not know: clusters. Driven by: `cargo test`.

use std::fs;
use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

/// The zone a daemon has by default, and the DNS address of the pool for nodes of a cluster.
const ZONE: &str = "mesh.internal";
const ADDRESS: &str = "240.80.0.53";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/coredns")
}

fn document(name: &str) -> Yaml {
    let text = fs::read_to_string(folder().join(name)).expect(name);
    let documents = YamlLoader::load_from_str(&text).expect(name);
    assert_eq!(documents.len(), 1, "{name}");
    documents.into_iter().next().expect("one")
}

/// A text value of a ConfigMap.
fn data(name: &str, map: &str, key: &str) -> String {
    let document = document(name);
    assert_eq!(document["kind"].as_str(), Some("ConfigMap"), "{name}");
    assert_eq!(document["metadata"]["name"].as_str(), Some(map), "{name}");
    assert_eq!(document["metadata"]["namespace"].as_str(), Some("kube-system"), "{name}");
    document["data"][key].as_str().expect(key).to_owned()
}

/// The server block as CoreDNS reads it: its words, comments left out.
fn words(block: &str) -> Vec<String> {
    let lines = block.lines().filter_map(|line| line.split('#').next());
    lines.flat_map(str::split_ascii_whitespace).map(str::to_owned).collect()
}

#[test]
fn clusters_with_coredns_get_one_and_the_same_block() {
    let blocks = [
        data("eks.yaml", "coredns", "Corefile"),
        data("aks.yaml", "coredns-custom", "gossamer.server"),
        data("k3s.yaml", "coredns-custom", "gossamer.server"),
    ];
    let first = words(&blocks[0]);
    assert!(blocks.iter().all(|block| words(block) == first), "{blocks:?}");
    assert_eq!(first[..2], [format!("{ZONE}:53"), "{".to_owned()]);
    let opened = |brace: &str| first.iter().filter(|word| *word == brace).count();
    assert_eq!((opened("{"), opened("}")), (3, 3));
    for option in [
        &["forward", ".", ADDRESS, "{"][..],
        &["denial", "9984", "1"],
        &["max_fails", "2"],
        &["health_check", "1s", "domain", ZONE],
    ] {
        assert!(first.windows(option.len()).any(|words| words == option), "{option:?} is not in {first:?}");
    }
}

#[test]
fn kube_dns_gets_json_without_a_port() {
    let stubs: serde_json::Value =
        serde_json::from_str(&data("gke.yaml", "kube-dns", "stubDomains")).expect("JSON");
    assert_eq!(stubs, serde_json::json!({ ZONE: [ADDRESS] }));
}

#[test]
fn openshift_gets_one_server() {
    let operator = document("openshift.yaml");
    assert_eq!(operator["kind"].as_str(), Some("DNS"));
    assert_eq!(operator["metadata"]["name"].as_str(), Some("default"));
    let servers = operator["spec"]["servers"].as_vec().expect("servers");
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0]["zones"].as_vec().expect("zones")[..], [Yaml::String(ZONE.to_owned())]);
    let upstreams = servers[0]["forwardPlugin"]["upstreams"].as_vec().expect("upstreams");
    assert_eq!(upstreams[..], [Yaml::String(ADDRESS.to_owned())]);
}

#[test]
fn the_address_is_the_one_of_the_pool_for_clusters() {
    let pool: gossamer_core::vip::Pool = "240.80.0.0/12".parse().expect("a pool");
    assert_eq!(pool.dns().to_string(), ADDRESS);
    let readme = fs::read_to_string(folder().join("README.md")).expect("README.md");
    for entry in fs::read_dir(folder()).expect("the folder") {
        let name = entry.expect("a file").file_name().into_string().expect("UTF-8");
        assert!(
            name == "README.md" || readme.contains(&format!("`{name}`")),
            "README.md does not name {name}"
        );
    }
}
