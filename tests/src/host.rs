//! A machine with a resolver of its own, apart from this one's.
//!
//! Owns: its `/etc`, `/run` and `/var/lib` (mount and process namespaces), its network with one server outside, the
//! services that answer its programs. Must not know: what is set up there. Driven by: `evidence::resolvers`.
//!
//! There is no systemd: services are scripts of `/etc/init.d`, as on other hosts without it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::Namespace;
use crate::process::{Finished, Lab, Node};
use crate::wait::wait_for;

/// Who answers programs of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    /// systemd-resolved, unpacked by `tests/resolved`.
    SystemdResolved,
    /// dnsmasq.
    Dnsmasq,
    /// unbound, which validates.
    Unbound,
    /// The server outside, named in `/etc/resolv.conf`, which is a link.
    Outside,
}

/// A machine. All of its processes end with it.
#[derive(Debug)]
pub struct Machine {
    lab: Lab,
    holder: Child,
    /// The first process inside.
    inside: String,
    outside: Child,
    network: Namespace,
    _outside_network: Namespace,
}

/// How long a resolver may take to start.
const START: Duration = Duration::from_secs(15);
/// How long a command inside may take: libc gives a dead server up after 10 s.
const COMMAND: Duration = Duration::from_secs(60);

impl Machine {
    /// Starts a machine. `resolved` is where systemd-resolved was unpacked.
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn start(lab: &Lab, answering: Answering, resolved: &Path) -> Result<Self> {
        let (network, outside_network) = (Namespace::new("host")?, Namespace::new("outside")?);
        let ends = ["type", "veth", "peer", "name", "eth0", "netns", outside_network.name()];
        network.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
        for (namespace, address) in [(&network, "10.9.0.1/24"), (&outside_network, "10.9.0.2/24")] {
            namespace.ip(&["addr", "add", address, "dev", "eth0"])?;
            namespace.ip(&["link", "set", "eth0", "up"])?;
        }
        // systemd-resolved asks nobody without a default route.
        network.ip(&["route", "add", "default", "via", "10.9.0.2"])?;
        let outside = outside_network.command("dnsmasq").args(OUTSIDE).stderr(Stdio::null()).spawn()?;

        let etc = lab.dir().join("etc");
        for folder in ["init.d", "dnsmasq.d", "unbound/unbound.conf.d", "systemd"] {
            fs::create_dir_all(etc.join(folder))?;
        }
        let script = lab.dir().join("machine.sh");
        let parts = [BEGIN, own(answering), "touch \"$LAB/ready\"\nexec sleep 3600\n"];
        fs::write(&script, parts.concat())?;
        let holder = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", network.name()))
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .arg(&script)
            .env("LAB", lab.dir())
            .env("RESOLVED", resolved)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(lab.dir().join("machine.log"))?)
            .spawn()
            .context("running nsenter and unshare")?;
        let mut machine = Self {
            lab: lab.clone(),
            holder,
            inside: String::new(),
            outside,
            network,
            _outside_network: outside_network,
        };
        let log = || fs::read_to_string(lab.dir().join("machine.log")).unwrap_or_default();
        let ready = wait_for("the start of the machine", START, || {
            Ok(lab.dir().join("ready").exists().then_some(()))
        });
        ready.with_context(log)?;
        machine.inside = machine.first_process()?;
        Ok(machine)
    }

    /// Returns its network.
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// Runs a line of a shell inside, with the environment of a node's commands; `gossamer` is the shipped program.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn run(&self, node: &Node, line: &str) -> Result<Finished> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside, "--mount", "--net", "--pid", "sh", "-c"]);
        let program = self.lab.program().display();
        command.arg(format!("gossamer() {{ {program} \"$@\"; }}\n{line}"));
        command.env_clear().envs(node.environment()).env("LAB", self.lab.dir());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.lab.dir().join("bin").display()));
        self.lab.finish(command, COMMAND)
    }

    /// The process whose namespaces are the machine's: the child of the one that made them.
    fn first_process(&self) -> Result<String> {
        let children = format!("/proc/{0}/task/{0}/children", self.holder.id());
        let inside = fs::read_to_string(children)?;
        Ok(inside.split_whitespace().next().context("the machine has no process")?.to_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in [&mut self.holder, &mut self.outside] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The server outside: one name, whose address is none that resolvers take for private.
const OUTSIDE: [&str; 9] = [
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--pid-file=",
    "--no-hosts",
    "--no-resolv",
    "--listen-address=10.9.0.2",
    "--bind-interfaces",
    "--host-record=www.example.org,93.184.216.34",
    "--local=/example.org/",
];

/// Private folders, users, and a link to systemd-resolved's tools.
const BEGIN: &str = r#"set -eu
mkdir -p "$LAB/bin"
cat > "$LAB/etc/passwd" <<END
root:x:0:0::/root:/bin/sh
nobody:x:65534:65534::/:/bin/false
systemd-resolve:x:990:990::/:/bin/false
END
cat > "$LAB/etc/group" <<END
root:x:0:
nogroup:x:65534:
systemd-resolve:x:990:
END
echo '127.0.0.1 localhost' > "$LAB/etc/hosts"
echo 'hosts: files dns' > "$LAB/etc/nsswitch.conf"
mount --bind "$LAB/etc" /etc
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=0755 lib /var/lib
"#;

const fn own(answering: Answering) -> &'static str {
    match answering {
        Answering::SystemdResolved => RESOLVED,
        Answering::Dnsmasq => DNSMASQ,
        Answering::Unbound => UNBOUND,
        Answering::Outside => PLAIN,
    }
}

/// With a bus of its own, whose users may do anything, and the server outside on its link.
const RESOLVED: &str = r#"
ln -s "$RESOLVED/usr/bin/resolvectl" "$LAB/bin/"
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
echo '[Resolve]' > /etc/systemd/resolved.conf
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
mkdir -p /run/dbus /run/systemd/resolve
chown 990:990 /run/systemd/resolve
cat > /run/dbus/system.conf <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow receive_sender="*" eavesdrop="true"/></policy></busconfig>
END
dbus-daemon --config-file=/run/dbus/system.conf --fork --nopidfile
cat > /etc/init.d/systemd-resolved <<END
#!/bin/sh
if [ -f /run/resolved.pid ]; then kill \$(cat /run/resolved.pid); while [ -e /proc/\$(cat /run/resolved.pid)/exe ]; do :; done; fi
LD_LIBRARY_PATH=/usr/lib/$(uname -m)-linux-gnu/systemd "$RESOLVED/lib/systemd/systemd-resolved" </dev/null >/dev/null 2>&1 &
echo \$! > /run/resolved.pid
END
chmod 0755 /etc/init.d/systemd-resolved
/etc/init.d/systemd-resolved restart
until "$LAB/bin/resolvectl" dns eth0 10.9.0.2; do sleep 0.05; done
"$LAB/bin/resolvectl" domain eth0 '~.'
"#;

/// With the options that Debian's service has, and with protection against addresses of this host.
const DNSMASQ: &str = r#"
printf 'user=root\nno-hosts\nno-resolv\nserver=10.9.0.2\nlisten-address=127.0.0.1\nbind-interfaces\nstop-dns-rebind\n' > /etc/dnsmasq.conf
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
cat > /etc/init.d/dnsmasq <<END
#!/bin/sh
if [ -f /run/dnsmasq.pid ]; then kill \$(cat /run/dnsmasq.pid); while kill -0 \$(cat /run/dnsmasq.pid); do :; done; fi 2>/dev/null
exec dnsmasq --pid-file=/run/dnsmasq.pid -7 /etc/dnsmasq.d,.dpkg-dist,.dpkg-old,.dpkg-new
END
chmod 0755 /etc/init.d/dnsmasq
/etc/init.d/dnsmasq restart
"#;

/// It proves names from the root, and takes addresses of 127.0.0.0/8 out of answers.
const UNBOUND: &str = r#"
echo 'include-toplevel: "/etc/unbound/unbound.conf.d/*.conf"' > /etc/unbound/unbound.conf
cat > /etc/unbound/unbound.conf.d/site.conf <<END
server:
    chroot: ""
    username: ""
    pidfile: "/run/unbound.pid"
    use-syslog: no
    trust-anchor: ". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D"
    domain-insecure: "example.org"
    private-address: 127.0.0.0/8
forward-zone:
    name: "."
    forward-addr: 10.9.0.2
END
printf 'nameserver 127.0.0.1\noptions edns0\n' > /etc/resolv.conf
unbound -c /etc/unbound/unbound.conf
"#;

const PLAIN: &str = r#"
printf 'search example.org\nnameserver 10.9.0.2\noptions timeout:2\n' > /etc/site.conf
chmod 0640 /etc/site.conf
ln -s site.conf /etc/resolv.conf
"#;
