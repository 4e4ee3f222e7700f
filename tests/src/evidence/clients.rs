//! Programs that were not made for this mesh resolve a service by its name and follow a change.
//!
//! Owns: how each is set up in a network namespace, with files of its own. Must not know: how names are answered.
//! Driven by: `evidence`.
//!
//! Nothing of the machine's own resolver is touched: `/etc/resolv.conf` is a file of the namespace (`ip netns exec`
//! mounts it), and what wants other places of the system gets a mount namespace of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{COMMAND, Lab, Node};
use crate::promise;
use crate::wait::wait_for;

macro_rules! service {
    () => {
        "a service by name, one that came after it was asked for in vain, "
    };
}
macro_rules! instances {
    () => {
        "the instances of a service by name, "
    };
}
macro_rules! row {
    ($name:literal, $who:literal, $what:expr, $check:expr) => {
        Row {
            name: $name,
            promise: concat!(
                $who,
                ": finds ",
                $what,
                "and follows an instance that goes and comes within 5 s"
            ),
            sabotage: "the daemon that answers is stopped with SIGSTOP",
            needs: Needs::Root,
            ci: Ci::Runs,
            check: $check,
        }
    };
}

pub(super) const ROWS: &[Row] = &[
    row!("5.2-glibc", "getent of glibc", service!(), |run| play(run, glibc)),
    row!("5.2-musl", "A program of musl", service!(), |run| play(run, musl)),
    row!("5.2-haproxy", "HAProxy with server-template and only SRV", instances!(), |run| play(run, haproxy)),
    row!("5.2-nginx", "nginx with its own resolver", instances!(), |run| play(run, nginx)),
    row!("5.2-resolved", "systemd-resolved", service!(), |run| play(run, resolved)),
    row!("5.2-dnsmasq", "dnsmasq", service!(), |run| play(run, dnsmasq)),
    row!("5.2-unbound", "unbound", service!(), |run| play(run, unbound)),
];

/// Where the program of the service listens, and the service.
const PORT: u16 = 7_000;
/// How long a client may take to follow: the time to live of 2 s, and what it adds.
const FOLLOWS: Duration = Duration::from_secs(5);
/// How long a client may take until it works at all.
const STARTS: Duration = Duration::from_secs(15);
/// A name that lists the instances' own addresses.
const DIRECT: &str = "web.direct.mesh.internal";

/// What a client does with a name: whom it reaches, or which addresses it finds. An error: not yet.
type Look<'a> = Box<dyn Fn(&str) -> Result<BTreeSet<String>> + 'a>;

/// A client that runs, and what it sees.
struct Client<'a> {
    look: Look<'a>,
    /// The name of the service as this client asks for it.
    name: String,
    /// What it sees of instance a, and of instance b.
    seen: [String; 2],
    /// Whether it can be asked for any name, so also for one that does not exist yet.
    any: bool,
    _programs: Vec<Program>,
}

/// The machine a client runs on, beside the daemon that it asks.
struct Place<'a> {
    run: &'a Run,
    lab: &'a Lab,
    machine: &'a Namespace,
    server: String,
}

fn play(run: &Run, client: for<'a> fn(&'a Place<'a>) -> Result<Client<'a>>) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    run.scenario(|lab| {
        let _served = [serve(lab, a, "a", 0)?, serve(lab, b, "b", 1)?];
        let (mut first, mut second) = (lab.node_in("a", a)?, lab.node_in("b", b)?);
        first.init("default")?;
        second.join(&first.token(&[])?)?;
        first.sees("b", "alive", STARTS)?;
        expose(&first, "web", 0)?;
        expose(&second, "web", 1)?;
        let server = first.dns_address()?.ip().to_string();
        first
            .resolver()?
            .wait(DIRECT, crate::dnsq::RecordType::A, STARTS, |answer| answer.addresses().len() == 2)?;
        let place = Place { run, lab, machine: a, server };
        let client = client(&place)?;
        if run.sabotaged {
            first.signal(Signal::SIGSTOP)?;
        }
        let both: BTreeSet<_> = client.seen.iter().cloned().collect();
        let one: BTreeSet<_> = client.seen.iter().take(1).cloned().collect();
        client.sees("both instances", &both, STARTS)?;
        let late = if client.any { Some(late(&client, &first)?) } else { None };
        second.ok(&["withdraw", "web"])?;
        let went = client.sees("one instance", &one, FOLLOWS)?;
        expose(&second, "web", 1)?;
        let came = client.sees("both again", &both, FOLLOWS)?;
        let late =
            late.map_or(String::new(), |took| format!("a new name after {:.1} s, ", took.as_secs_f64()));
        let (went, came) = (went.as_secs_f64(), came.as_secs_f64());
        Ok(format!("{late}an instance that went after {went:.1} s, that came after {came:.1} s"))
    })
}

/// Asks for a service in vain, then offers it.
fn late(client: &Client<'_>, node: &Node) -> Result<Duration> {
    let name = "late.mesh.internal";
    promise!((client.look)(name).is_err(), "{name} is found before it exists");
    expose(node, "late", 0)?;
    let ((), took) = wait_for(&format!("the address of {name}"), FOLLOWS, || {
        Ok((client.look)(name).is_ok().then_some(()))
    })?;
    Ok(took)
}

impl Client<'_> {
    /// Waits until it sees exactly these.
    fn sees(&self, what: &str, wanted: &BTreeSet<String>, limit: Duration) -> Result<Duration> {
        let mut last = String::from("nothing");
        let found = wait_for(&format!("seeing {what}"), limit, || {
            let seen = (self.look)(&self.name);
            last = seen.as_ref().map_or_else(|error| error.to_string(), |seen| format!("{seen:?}"));
            Ok(seen.is_ok_and(|seen| seen == *wanted).then_some(()))
        });
        Ok(found.with_context(|| format!("in the end {last}"))?.1)
    }
}

/// Serves a page with the name of the machine at its own address.
fn serve(lab: &Lab, machine: &Namespace, page: &str, index: u8) -> Result<Program> {
    let folder = lab.dir().join(format!("page-{page}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.html"), page)?;
    let mut command = machine.command("python3");
    command.args(["-m", "http.server", &PORT.to_string(), "--bind", &Segment::address(index).to_string()]);
    command.arg("--directory").arg(folder);
    Program::start(lab, command, &format!("page-{page}"))
}

fn expose(node: &Node, service: &str, index: u8) -> Result<String> {
    node.ok(&["expose", &format!("{service}:{PORT}"), &format!("{}:{PORT}", Segment::address(index))])
}

/// A program that runs until it is dropped.
struct Program(Child);

impl Program {
    fn start(lab: &Lab, mut command: Command, name: &str) -> Result<Self> {
        let log = fs::File::create(lab.dir().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().with_context(|| format!("starting {name}"))?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SIGTERM first: nginx and HAProxy end their workers then.
        let _ = i32::try_from(self.0.id())
            .map(|pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM));
        let ended = wait_for("its end", Duration::from_secs(3), || Ok(self.0.try_wait()?));
        if ended.is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl<'a> Place<'a> {
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.lab.dir().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn start(&self, program: &str, arguments: &[&str]) -> Result<Program> {
        let mut command = self.machine.command(program);
        command.args(arguments);
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Program::start(self.lab, command, &name)
    }

    /// Looks a name up with a program that prints an address at the start of each line.
    fn printed(&self, program: &str, arguments: &[&str], name: &str) -> Result<BTreeSet<String>> {
        let mut command = self.machine.command(program);
        command.args(arguments).arg(name);
        let done = self.lab.finish(command, COMMAND)?;
        ensure!(done.code == Some(0), "{program} {name}: {:?} {}", done.code, done.stderr.trim());
        let words = done.stdout.lines().filter_map(|line| line.split_whitespace().next());
        Ok(words.map(str::to_owned).collect())
    }

    /// A client that asks the resolver of `/etc/resolv.conf`, which is at `nameserver`, with getent.
    fn getent(&'a self, nameserver: &str, programs: Vec<Program>) -> Result<Client<'a>> {
        self.machine.resolv_conf(&format!("nameserver {nameserver}\n"))?;
        let look = |name: &str| self.printed("getent", &["ahostsv4"], name);
        Ok(self.addresses(Box::new(look), programs))
    }

    fn addresses(&self, look: Look<'a>, programs: Vec<Program>) -> Client<'a> {
        let seen = [0, 1].map(|index| Segment::address(index).to_string());
        Client { look, name: DIRECT.to_owned(), seen, any: true, _programs: programs }
    }

    /// A client whose requests through a proxy on this machine reach pages.
    fn pages(&'a self, programs: Vec<Program>) -> Client<'a> {
        let look = |url: &str| {
            let mut reached = BTreeSet::new();
            for _ in 0..12 {
                let mut command = self.machine.command("curl");
                command.args(["--silent", "--fail", "--max-time", "2", url]);
                let done = self.lab.finish(command, COMMAND)?;
                ensure!(done.code == Some(0), "curl ended with {:?}", done.code);
                reached.insert(done.stdout.trim().to_owned());
            }
            Ok(reached)
        };
        let seen = ["a", "b"].map(str::to_owned);
        let name = "http://127.0.0.1:8080/".to_owned();
        Client { look: Box::new(look), name, seen, any: false, _programs: programs }
    }
}

fn glibc<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    place.getent(&place.server, Vec::new())
}

fn musl<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let program = place.lab.dir().join("resolve");
    let mut build = Command::new("musl-gcc");
    build.arg("-o").arg(&program).arg(place.run.root.join("tests/dns/resolve.c"));
    let built = place.lab.finish(build, COMMAND).context("musl-gcc, of the Debian package musl-tools")?;
    ensure!(built.code == Some(0), "musl-gcc: {}", built.stderr.trim());
    place.machine.resolv_conf(&format!("nameserver {}\n", place.server))?;
    let program = program.to_string_lossy().into_owned();
    Ok(place.addresses(Box::new(move |name| place.printed(&program, &[], name)), Vec::new()))
}

fn haproxy<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let file = place.file(
        "haproxy.cfg",
        &format!(
            "resolvers mesh\n  nameserver local {}:53\n  accepted_payload_size 1232\n  timeout resolve 1s\n  \
             hold valid 1s\n  hold obsolete 0s\n\
             defaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 5s\n\
             frontend in\n  bind 127.0.0.1:8080\n  default_backend web\n\
             backend web\n  server-template web 5 _{PORT}._tcp.web.mesh.internal resolvers mesh resolve-prefer ipv4 \
             init-addr none\n",
            place.server
        ),
    )?;
    let program = place.start("/usr/sbin/haproxy", &["-db", "-f", &file.to_string_lossy()])?;
    Ok(place.pages(vec![program]))
}

fn nginx<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let folder = place.lab.dir().join("nginx");
    fs::create_dir_all(&folder)?;
    let at = folder.to_string_lossy().into_owned();
    let file = place.file(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
             uwsgi_temp_path {at}; scgi_temp_path {at};\n\
             server {{ listen 127.0.0.1:8080; resolver {} valid=1s ipv6=off;\n\
             location / {{ set $upstream {DIRECT}; proxy_pass http://$upstream:{PORT}; }} }} }}\n",
            place.server
        ),
    )?;
    let program = place.start("/usr/sbin/nginx", &["-c", &file.to_string_lossy(), "-p", &at])?;
    Ok(place.pages(vec![program]))
}

fn dnsmasq<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let server = format!("--server=/mesh.internal/{}", place.server);
    let program = place.start(
        "/usr/sbin/dnsmasq",
        &[
            "-k",
            "-C",
            "/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--user=root",
            "--pid-file",
            "--bind-interfaces",
            "--listen-address=127.0.0.2",
            "--log-facility=-",
            &server,
        ],
    )?;
    place.getent("127.0.0.2", vec![program])
}

fn unbound<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let file = place.file(
        "unbound.conf",
        &format!(
            "server:\n  interface: 127.0.0.3\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  directory: \"/tmp\"\n  \
             use-syslog: no\n  do-not-query-localhost: no\n  domain-insecure: \"mesh.internal\"\n\
             stub-zone:\n  name: \"mesh.internal\"\n  stub-addr: {}\n",
            place.server
        ),
    )?;
    let program = place.start("/usr/sbin/unbound", &["-d", "-c", &file.to_string_lossy()])?;
    place.getent("127.0.0.3", vec![program])
}

/// systemd-resolved wants places of the system that it must not get here: it runs in a mount namespace where they
/// are its own, from an unpacked package, for installing it would take over the machine's resolver.
fn resolved<'a>(place: &'a Place<'a>) -> Result<Client<'a>> {
    let program = unpacked(place)?;
    // Without a route by default it takes itself for offline.
    place.machine.ip(&["route", "add", "default", "via", &Segment::address(1).to_string()])?;
    let passwd = fs::read_to_string("/etc/passwd")?;
    let group = fs::read_to_string("/etc/group")?;
    let passwd =
        place.file("passwd", &format!("{passwd}systemd-resolve:x:65530:65530::/:/usr/sbin/nologin\n"))?;
    let group = place.file("group", &format!("{group}systemd-resolve:x:65530:\n"))?;
    let conf = place.file(
        "resolved.conf",
        &format!(
            "[Resolve]\nDNS={}\nDomains=~mesh.internal\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n",
            place.server
        ),
    )?;
    let script = format!(
        "set -e\nmount --bind {} /etc/passwd\nmount --bind {} /etc/group\nmkdir -p /etc/systemd /run/systemd\n\
         mount -t tmpfs tmpfs /etc/systemd\ncp {} /etc/systemd/resolved.conf\nmount -t tmpfs tmpfs /run/systemd\n\
         mkdir -p /run/systemd/resolve\nchown 65530:65530 /run/systemd/resolve\nexec {}\n",
        passwd.display(),
        group.display(),
        conf.display(),
        program.display()
    );
    let script = place.file("resolved.sh", &script)?;
    let daemon = place.start("unshare", &["--mount", "sh", &script.to_string_lossy()])?;
    place.getent("127.0.0.53", vec![daemon])
}

/// Unpacks the package of systemd-resolved and returns the program in it.
fn unpacked(place: &Place<'_>) -> Result<PathBuf> {
    let folder = place.lab.dir().join("resolved");
    fs::create_dir_all(&folder)?;
    let installed = Path::new("/lib/systemd/systemd-resolved");
    if installed.exists() {
        return Ok(installed.to_owned());
    }
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", "-q", "systemd-resolved"]).current_dir(&folder);
    let fetched = place.lab.finish(fetch, Duration::from_secs(60))?;
    ensure!(fetched.code == Some(0), "apt-get download: {}", fetched.stderr.trim());
    let Some(package) =
        fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).find(|path| path.is_file())
    else {
        bail!("apt-get download left no package");
    };
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(package).arg(&folder);
    let unpacked = place.lab.finish(unpack, COMMAND)?;
    ensure!(unpacked.code == Some(0), "dpkg-deb: {}", unpacked.stderr.trim());
    Ok(folder.join("lib/systemd/systemd-resolved"))
}
