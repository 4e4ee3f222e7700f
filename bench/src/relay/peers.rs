//! Pairs of other people's proxies: one beside the client, one beside the target, TLS 1.3 with both sides' certificates
//! between them.
//!
//! Owns: certificates, configurations, processes. Must not know: what is measured. Driven by: the suite.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use gossamer_tests::netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::net::{Net, SERVER};
use super::{load, pause, processes, target};
use crate::dns::servers::{configure, installed};

/// How long a pair may take until it carries a connection.
const START: Duration = Duration::from_secs(20);
/// How long a proxy may take to end when told to.
const STOP: Duration = Duration::from_secs(3);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(20);

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Peer {
    Haproxy,
    Nginx,
    Stunnel,
}

impl Peer {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Stunnel => "stunnel",
        }
    }

    /// Whether it can be asked for thousands of connections: stunnel has a thread for each.
    pub(super) const fn carries_thousands(self) -> bool {
        !matches!(self, Self::Stunnel)
    }

    /// Fails when it is not installed, naming its Debian package.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn installed(self) -> Result<()> {
        match self {
            Self::Haproxy => installed("haproxy", "haproxy"),
            Self::Nginx => {
                installed("nginx", "nginx-light")?;
                let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
                ensure!(
                    module.exists(),
                    "nginx has no stream module: install the Debian package libnginx-mod-stream"
                );
                Ok(())
            }
            Self::Stunnel => installed("stunnel", "stunnel4"),
        }
    }

    /// Returns where its client side listens and where its hop arrives.
    const fn ports(self) -> (u16, u16) {
        let number = self as u16;
        (6_001 + number, 7_001 + number)
    }

    /// Returns the configurations of client side and server side.
    const fn templates(self) -> [&'static str; 2] {
        match self {
            Self::Haproxy => [
                include_str!("../../configs/relay/haproxy-client.cfg"),
                include_str!("../../configs/relay/haproxy-server.cfg"),
            ],
            Self::Nginx => [
                include_str!("../../configs/relay/nginx-client.conf"),
                include_str!("../../configs/relay/nginx-server.conf"),
            ],
            Self::Stunnel => [
                include_str!("../../configs/relay/stunnel-client.conf"),
                include_str!("../../configs/relay/stunnel-server.conf"),
            ],
        }
    }

    fn command(self, namespace: &Namespace, file: &Path, dir: &Path) -> Command {
        let mut command = namespace.command(self.name());
        match self {
            Self::Haproxy => command.arg("-db").arg("-f").arg(file),
            Self::Nginx => command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(file),
            Self::Stunnel => command.arg(file),
        };
        command
    }
}

/// Makes a root and a certificate for each side, as files that all peers read.
///
/// # Errors
/// No randomness, or the folder cannot be written.
pub(super) fn certificates(dir: &Path) -> Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(dir.join("ca.crt"), root.self_signed(&root_key)?.pem())?;
    let issuer = Issuer::new(root, root_key);
    for (name, subject, usage) in [
        ("client.pem", "client", ExtendedKeyUsagePurpose::ClientAuth),
        ("server.pem", "peer", ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(vec![subject.to_owned()])?;
        // A subject that is its issuer's would pass for a root.
        leaf.distinguished_name.push(DnType::CommonName, subject);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![usage];
        let leaf = leaf.signed_by(&key, &issuer)?;
        fs::write(dir.join(name), leaf.pem() + &key.serialize_pem())?;
    }
    Ok(())
}

/// Both proxies of a peer while they run.
#[derive(Debug)]
pub(super) struct Pair {
    /// Where clients connect to.
    pub(super) address: SocketAddr,
    proxies: [Process; 2],
}

impl Pair {
    /// Starts both and waits until a connection reaches the target. `dir` has the [`certificates`].
    ///
    /// # Errors
    /// One ends or carries nothing, with what it said.
    pub(super) fn start(peer: Peer, net: &Net, dir: &Path) -> Result<Self> {
        let (listen, hop) = peer.ports();
        let values = [
            ("DIR", dir.display().to_string()),
            ("SERVER", SERVER.to_string()),
            ("LISTEN", listen.to_string()),
            ("HOP", hop.to_string()),
            ("TARGET", target::PORT.to_string()),
        ];
        let [client, server] = peer.templates();
        let start = |side: &str, template: &str, namespace: &Namespace| {
            let file = dir.join(format!("{}-{side}.conf", peer.name()));
            configure(template, &values, &file)?;
            Process::start(
                peer.command(namespace, &file, dir),
                &dir.join(format!("{}-{side}.log", peer.name())),
            )
        };
        let proxies = [start("server", server, &net.server)?, start("client", client, &net.client)?];
        let mut pair = Self { address: ([127, 0, 0, 1], listen).into(), proxies };
        pair.ready(net).with_context(|| peer.name())?;
        Ok(pair)
    }

    fn ready(&mut self, net: &Net) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            for proxy in &mut self.proxies {
                proxy.runs()?;
            }
            match net.client.enter(|| load::stay(self.address))? {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    let said = self.proxies.each_ref().map(Process::tail).join("\n");
                    return Err(error.context(format!("it carries no connection: {said}")));
                }
                Err(_) => pause(LOOK)?,
            }
        }
    }

    /// Returns the ids of both proxies.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(|proxy| proxy.child.id()).collect()
    }
}

/// A program that runs until it is told to end; it ends when dropped, with its children.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose words go to a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        File::create(log)?;
        let out = OpenOptions::new().append(true).open(log)?;
        command.current_dir("/").stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended with {status}: {}", self.tail());
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A master that is killed leaves its workers, so it is asked first; whoever is left then is killed.
        let all = processes::descendants(&[self.child.id()]).unwrap_or_default();
        let signal = |id: u32, signal| i32::try_from(id).map(|id| kill(Pid::from_raw(id), signal));
        let _ = signal(self.child.id(), Signal::SIGTERM);
        let end = Instant::now() + STOP;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in processes::descendants(&all.into_iter().collect::<Vec<_>>()).unwrap_or_default() {
            let _ = signal(id, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_configuration_is_filled_in_and_wants_certificates_of_both_sides() {
        let dir = tempfile::tempdir().expect("scratch");
        let names = ["DIR", "SERVER", "LISTEN", "HOP", "TARGET"].map(|name| (name, "7".to_owned()));
        for peer in Peer::value_variants() {
            for template in peer.templates() {
                let file = dir.path().join("conf");
                configure(template, &names, &file).expect("written");
                let code: Vec<_> =
                    fs::read_to_string(&file).expect("written").lines().map(str::to_owned).collect();
                let code = code
                    .iter()
                    .filter(|line| !line.starts_with(['#', ';']))
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n");
                for name in names.each_ref().map(|(name, _)| format!("{{{name}}}")) {
                    assert!(!code.contains(&name), "{peer:?}: {name} in {code}");
                }
                assert!(code.contains("TLSv1.3") && code.contains("ca.crt"), "{peer:?}: {code}");
            }
        }
    }

    #[test]
    fn certificates_are_files_with_their_key() {
        let dir = tempfile::tempdir().expect("scratch");
        certificates(dir.path()).expect("made");
        for name in ["client.pem", "server.pem"] {
            let text = fs::read_to_string(dir.path().join(name)).expect("there");
            assert!(text.contains("BEGIN CERTIFICATE") && text.contains("BEGIN PRIVATE KEY"), "{text}");
        }
        assert!(!fs::read_to_string(dir.path().join("ca.crt")).expect("there").contains("PRIVATE"));
    }

    #[test]
    fn no_two_peers_share_a_port() {
        let ports = Peer::value_variants().iter().flat_map(|peer| [peer.ports().0, peer.ports().1]);
        assert_eq!(ports.collect::<std::collections::BTreeSet<_>>().len(), 6);
    }
}
