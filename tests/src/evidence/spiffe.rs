//! Our certificates, read and believed by somebody else's program.
//!
//! Owns: how OpenSSL is asked. Must not know: how certificates are made. Driven by: `evidence`.
//!
//! What an X.509-SVID must be: <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>, sections 2 to 5.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;

use super::{Ci, Needs, Row, Run};
use crate::process::{COMMAND, Finished, Lab, Node};
use crate::promise;
use crate::quic::identity_of;

pub(super) const ROW: Row = Row {
    name: "4.7-spiffe",
    promise: "OpenSSL accepts the certificates of nodes as clients and as servers, checking strictly, and reads in them what an X.509-SVID must have",
    sabotage: "the root of another mesh is trusted",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: spiffe,
};

/// What OpenSSL shows of the extensions.
const EXTENSIONS: &str = "subjectAltName,keyUsage,basicConstraints,extendedKeyUsage";

fn spiffe(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut first = lab.node("first")?;
        first.init("default")?;
        let mesh = first.status()?["mesh"]["id"].as_str().context("a mesh id")?.to_owned();
        let mut second = lab.node("second")?;
        second.join(&first.token(&[])?)?;
        let worker = lab.node("worker")?;
        let token = first.token(&["--group", "jobs", "--allow-service", "job-*"])?;
        worker.ok(&["join", &token, "--node", "worker", "--no-start"])?;
        first.sees("second", "alive", COMMAND)?;
        first.ok(&["issuer", "add", "second"])?;
        let late = lab.node("late")?;
        late.ok(&["join", &second.token(&[])?, "--node", "late", "--no-start"])?;
        let other = lab.node("other")?;
        other.ok(&["init", "--node", "other", "--no-start"])?;

        let nodes = [
            (&first, "default", "first"),
            (&second, "default", "second"),
            (&worker, "jobs", "worker"),
            (&late, "default", "late"),
        ];
        for (node, group, name) in nodes {
            let root = if run.sabotaged { &other } else { node };
            let files = Files::of(node, root)?;
            for purpose in ["sslclient", "sslserver"] {
                let done = files.verify(lab, purpose)?;
                promise!(
                    done.code == Some(0),
                    "{name} as {purpose}: {} {}",
                    done.stdout.trim(),
                    done.stderr.trim()
                );
            }
            let shown = extensions(lab, &files.leaf)?;
            let uri = format!("URI:spiffe://{mesh}/group/{group}/node/{name}");
            for (extension, wanted) in [
                ("Subject Alternative Name: critical", uri.as_str()),
                ("Key Usage: critical", "Digital Signature"),
                ("Basic Constraints: critical", "CA:FALSE"),
                ("Extended Key Usage", "TLS Web Server Authentication, TLS Web Client Authentication"),
            ] {
                let value = value_of(&shown, extension);
                promise!(value.as_deref() == Some(wanted), "{name}: {extension} is {value:?} in {shown}");
            }
            for (file, path) in [(&files.issuer, "CA:TRUE, pathlen:0"), (&files.root, "CA:TRUE, pathlen:1")] {
                let shown = extensions(lab, file)?;
                let (usage, constraints) = (
                    value_of(&shown, "Key Usage: critical"),
                    value_of(&shown, "Basic Constraints: critical"),
                );
                promise!(usage.as_deref() == Some("Certificate Sign"), "{}: {shown}", file.display());
                promise!(constraints.as_deref() == Some(path), "{}: {shown}", file.display());
                // A signing certificate names a trust domain and no path, or nothing.
                promise!(!shown.contains("spiffe://"), "{}: {shown}", file.display());
            }
        }
        Ok(format!(
            "{} leaves of 2 issuers accepted twice each; 1 URI each, no CA; issuers with path length 0",
            nodes.len()
        ))
    })
}

/// A chain as files that OpenSSL reads.
struct Files {
    leaf: PathBuf,
    issuer: PathBuf,
    root: PathBuf,
}

impl Files {
    /// Writes the chain of a node, and the root that another one trusts.
    fn of(node: &Node, trusting: &Node) -> Result<Self> {
        let (identity, trusting) = (identity_of(&node.state_dir())?, identity_of(&trusting.state_dir())?);
        let issuer = identity.issuers.first().context("an issuer")?;
        let root = trusting.trust.roots().first().context("a root")?;
        let write = |name: &str, der: &[u8]| -> Result<PathBuf> {
            let path = node.dir().join(name);
            let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines(der));
            fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            leaf: write("leaf.pem", &identity.leaf_der)?,
            issuer: write("issuer.pem", issuer)?,
            root: write("root.pem", root)?,
        })
    }

    fn verify(&self, lab: &Lab, purpose: &str) -> Result<Finished> {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose, "-CAfile"]);
        command.arg(&self.root).arg("-untrusted").arg(&self.issuer).arg(&self.leaf);
        lab.finish(command, COMMAND).context("openssl, of the package of that name")
    }
}

fn lines(der: &[u8]) -> String {
    let lines: Vec<String> = der.chunks(48).map(|chunk| BASE64.encode(chunk)).collect();
    lines.join("\n")
}

fn extensions(lab: &Lab, certificate: &Path) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-ext", EXTENSIONS, "-in"]).arg(certificate);
    let done = lab.finish(command, COMMAND)?;
    ensure!(done.code == Some(0), "openssl x509: {}", done.stderr.trim());
    Ok(done.stdout)
}

/// Returns the lines below an extension, joined.
fn value_of(shown: &str, extension: &str) -> Option<String> {
    let mut lines =
        shown.lines().skip_while(|line| !line.trim_start_matches("X509v3 ").starts_with(extension));
    lines.next()?;
    let value: Vec<&str> = lines.take_while(|line| line.starts_with(' ')).map(str::trim).collect();
    Some(value.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_what_openssl_shows() {
        let shown = "X509v3 Subject Alternative Name: critical\n    URI:spiffe://a/b, URI:spiffe://c\nX509v3 Key Usage: critical\n    Digital Signature\n";
        let value = value_of(shown, "Subject Alternative Name: critical");
        assert_eq!(value.as_deref(), Some("URI:spiffe://a/b, URI:spiffe://c"));
        assert_eq!(value_of(shown, "Key Usage: critical").as_deref(), Some("Digital Signature"));
        assert_eq!(value_of(shown, "Key Usage").as_deref(), Some("Digital Signature"));
        assert_eq!(value_of(shown, "Basic Constraints"), None);
        assert_eq!(lines(&[0; 49]).lines().count(), 2);
    }
}
