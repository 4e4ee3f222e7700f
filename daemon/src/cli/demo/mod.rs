//! `demo`: the mesh in half a minute, with real processes on loopback.
//!
//! Owns: the story and the end of everything it started. Must not know: how a daemon works; it types commands,
//! asks DNS over UDP and connects over TCP like any program.
//! Driven by: `cli`. Machine a is in group east; b and c are in group west and run the same service.

mod machine;
mod report;
mod world;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use futures_util::future::join_all;
use gossamer_dns::RecordType;
use tokio::time::{Instant, sleep};

use super::args;
use super::failure::Failure;
use super::{output, run};
use crate::api::messages::{NodeRow, Status};
use crate::supervise::Stage;
use machine::{Machine, Place, TOKEN_PREFIX};
use report::{Form, Report, Step, milliseconds, short};
use world::{Greeter, Tally};

/// The service of the story.
const SERVICE: &str = "hello";
const NAME: &str = "hello.mesh.internal";

/// Clients that connect at the same time during the failover.
const CLIENTS: usize = 4;

/// How long clients connect before and after the kill: well beyond the time in which a failure is noticed.
const BEFORE_KILL: Duration = Duration::from_millis(500);
const AFTER_KILL: Duration = Duration::from_secs(4);

/// How long everything stays as the failover left it, for those who look at the processes behind its result.
const LOOK_AROUND: Duration = Duration::from_millis(300);

/// What the demo has started.
struct Demo {
    place: Place,
    report: Report,
    sabotage: Option<Sabotage>,
    stage: Stage,
    machines: Vec<Machine>,
    greeters: Vec<Greeter>,
    /// The port clients use; free on this machine.
    port: u16,
    /// Where machine a answers DNS.
    dns: Option<SocketAddr>,
    /// The service as machine a sees it.
    service: Option<SocketAddr>,
}

/// A step that can be broken from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sabotage {
    /// The token is spoiled
    Join,
    /// The daemon that should answer is stopped
    Dns,
    /// The program behind the service is stopped
    Relay,
    /// Both instances are killed
    Failover,
}

/// Plays all steps, cleans up, and says whether all went well.
pub(super) async fn run(asked: &args::Demo) -> Result<ExitCode, Failure> {
    let form = if asked.json { Form::Json } else { Form::People };
    let mut demo = Demo::new(form, asked.sabotage).await.map_err(Failure::failed)?;
    let played = tokio::select! {
        played = demo.play() => played,
        () = run::interrupted() => {
            drop(demo);
            return Err(Failure::failed("the demo was interrupted; its daemons are ended and its files removed"));
        }
    };
    if played.is_ok() && asked.keep {
        demo.show_what_to_try();
        run::interrupted().await;
    }
    demo.report.begin("Cleaning up");
    let (report, cleaned) = demo.clean_up().await;
    report.end(Step::Cleanup, &cleaned);
    let failed = |step: Step, why: String| {
        Failure::failed(format_args!("the demo failed at step {}: {why}", step.name()))
    };
    played.map_err(|(step, why)| failed(step, why))?;
    cleaned.map_err(|why| failed(Step::Cleanup, why))?;
    if form == Form::People {
        output::data("\nAll of it worked. Begin with: gossamer init");
    }
    Ok(ExitCode::SUCCESS)
}

impl Demo {
    async fn new(form: Form, sabotage: Option<Sabotage>) -> Result<Self, String> {
        world::check_loopback().await?;
        let place = Place::new()?;
        place.write_config()?;
        Ok(Self {
            place,
            report: Report::new(form),
            sabotage,
            stage: Stage::default(),
            machines: Vec::new(),
            greeters: Vec::new(),
            port: world::free_port().await?,
            dns: None,
            service: None,
        })
    }

    async fn play(&mut self) -> Result<(), (Step, String)> {
        self.report.begin("A mesh begins on machine a");
        let result = self.start().await;
        self.ended(Step::Start, result)?;
        self.report.begin("Two machines of another group join with tokens");
        let result = self.join().await;
        self.ended(Step::Join, result)?;
        self.report.begin("Machine b offers a service to group east");
        let result = self.expose().await;
        self.ended(Step::Expose, result)?;
        self.report.begin("Machine a's DNS answers, over UDP");
        let result = self.dns().await;
        self.ended(Step::Dns, result)?;
        self.report.begin("A program on machine a connects; the service speaks first");
        let result = self.relay().await;
        self.ended(Step::Relay, result)?;
        self.report.begin("A daemon that serves is killed while clients connect");
        let result = self.failover().await;
        self.ended(Step::Failover, result)
    }

    fn ended(&self, step: Step, result: Result<String, String>) -> Result<(), (Step, String)> {
        self.report.end(step, &result);
        result.map(drop).map_err(|why| (step, why))
    }

    async fn start(&mut self) -> Result<String, String> {
        let words = ["init", "demo", "--group", "east", "--node", "a", "--import", "hello@west"];
        let status = self.machine("a", &words).await?;
        self.dns = Some(status.dns);
        Ok(format!("machine a is node {} of group {}", status.node.name, status.node.group))
    }

    /// Starts a machine as a user would and waits for it.
    async fn machine(&mut self, name: &'static str, words: &[&str]) -> Result<Status, String> {
        let shown: Vec<String> = words
            .iter()
            .map(|word| if word.starts_with(TOKEN_PREFIX) { short(word) } else { (*word).to_owned() })
            .collect();
        self.report.command(&shown.iter().map(String::as_str).collect::<Vec<_>>());
        let began = Instant::now();
        let mut machine = self.place.start(name, words)?;
        let ready = machine.wait(|_| true).await;
        let pid = machine.pid();
        self.machines.push(machine);
        let status = ready?;
        self.report.beat(&format!(
            "ready after {}: process {pid}, DNS at {}",
            milliseconds(began.elapsed()),
            status.dns
        ));
        Ok(status)
    }

    async fn token(&self) -> Result<String, String> {
        let words = ["token", "create", "--group", "west"];
        self.report.command(&words);
        let token = self.place.cli("a", &words).await?.ok()?;
        self.report.beat(&short(&token));
        Ok(token)
    }

    async fn join(&mut self) -> Result<String, String> {
        let token = self.token().await?;
        let shown = if self.sabotage == Some(Sabotage::Join) { spoiled(&token) } else { token };
        self.machine("b", &["join", &shown, "--node", "b"]).await?;

        self.report.command(&["join", &short(&shown), "--node", "thief", "   # the same token again"]);
        let again = self
            .place
            .cli("thief", &["join", &shown, "--node", "thief", "--no-start", "--slot", "auto"])
            .await?;
        if again.code != Some(5) {
            return Err(format!("a second use of the token ended with {:?}: {}", again.code, again.stderr));
        }
        self.report.beat(&format!("refused: {}", again.stderr.trim_start_matches("error: ")));

        let token = self.token().await?;
        self.machine("c", &["join", &token, "--node", "c"]).await?;
        for machine in &mut self.machines {
            machine.wait(|status| status.members_alive == 3).await?;
        }
        self.report.command(&["nodes"]);
        let machine = self.machines.first().ok_or("machine a is missing")?;
        let nodes: Vec<NodeRow> =
            machine.client().get("/v1/nodes").await.map_err(|error| error.to_string())?;
        for node in &nodes {
            let (name, group) = (node.name.as_ref(), node.group.as_ref());
            let text = |name: Option<&str>| name.unwrap_or("-").to_owned();
            let (name, group) =
                (text(name.map(|name| name.as_str())), text(group.map(|group| group.as_str())));
            self.report.beat(&format!("{name}  {group}  {}", node.state));
        }
        Ok("three machines see each other; the second use of a token was refused".to_owned())
    }

    async fn expose(&mut self) -> Result<String, String> {
        let dns = self.dns_address()?;
        let began = self.expose_on("b", "hello from b").await?;
        let (answer, seen) = world::first_answer(dns, NAME, RecordType::A, 1, began).await?;
        let address = answer.address().ok_or("the answer holds no address")?;
        self.service = Some(SocketAddr::from((address, self.port)));
        self.report.beat(&format!("{NAME} is in machine a's DNS {} later", milliseconds(seen)));
        self.expose_on("c", "hello from c").await?;
        Ok(format!("visible in the other group's DNS after {}", milliseconds(seen)))
    }

    /// Starts a program and registers it; returns when the command ended.
    async fn expose_on(&mut self, machine: &str, greeting: &'static str) -> Result<Instant, String> {
        let greeter = Greeter::start(&self.stage, greeting).await?;
        let (name, target) = (format!("{SERVICE}:{}", self.port), greeter.address.to_string());
        self.greeters.push(greeter);
        let words = ["expose", &name, &target, "--to", "east"];
        self.report.command(&words);
        let ended = self.place.cli(machine, &words).await?;
        let at = Instant::now();
        ended.stderr.lines().for_each(|line| self.report.beat(line));
        ended.ok()?;
        Ok(at)
    }

    async fn dns(&mut self) -> Result<String, String> {
        let dns = self.dns_address()?;
        if self.sabotage == Some(Sabotage::Dns) {
            self.machines.iter_mut().filter(|machine| machine.name == "a").for_each(Machine::kill);
        }
        let mut records = 0;
        let srv = format!("_{}._tcp.{NAME}", self.port);
        for (name, kind, wanted) in
            [(NAME, RecordType::A, 1), (&srv, RecordType::SRV, 2), ("a.node.mesh.internal", RecordType::A, 1)]
        {
            self.report.beat(&format!("$ dig @{} -p {} {name} {kind}", dns.ip(), dns.port()));
            let began = Instant::now();
            let answer = world::first_answer(dns, name, kind, wanted, began).await?.0;
            answer.lines().iter().for_each(|line| self.report.beat(line));
            records += answer.records();
        }
        Ok(format!("{records} records from {dns}"))
    }

    async fn relay(&mut self) -> Result<String, String> {
        let service = self.service()?;
        if self.sabotage == Some(Sabotage::Relay) {
            self.greeters.iter().for_each(Greeter::stop);
        }
        self.report.beat(&format!("$ nc {NAME} {}", self.port));
        let began = Instant::now();
        let greeting = world::greeting(service)
            .await
            .map_err(|error| format!("no greeting from {NAME} at {service}: {error}"))?;
        let took = milliseconds(began.elapsed());
        self.report.beat(&greeting);
        if !greeting.starts_with("hello from ") {
            return Err(format!("another program answered: {greeting:?}"));
        }
        Ok(format!("greeted after {took}, without a byte from the client"))
    }

    async fn failover(&mut self) -> Result<String, String> {
        let service = self.service()?;
        let until = Instant::now() + BEFORE_KILL + AFTER_KILL;
        self.report.beat(&format!("{CLIENTS} clients connect again and again"));
        let clients = join_all((0..CLIENTS).map(|_| world::keep_connecting(service, until)));
        let kill = async {
            sleep(BEFORE_KILL).await;
            let serving = world::greeting(service).await.unwrap_or_default();
            let name = if serving.ends_with('c') { "c" } else { "b" };
            let everyone = self.sabotage == Some(Sabotage::Failover);
            for machine in &mut self.machines {
                if machine.name == name || (everyone && machine.name != "a") {
                    self.report.beat(&format!(
                        "$ kill -9 {}   # the daemon of machine {}",
                        machine.pid(),
                        machine.name
                    ));
                    machine.kill();
                }
            }
            let killed = Instant::now();
            world::greeting(service).await.map(|greeting| (greeting, killed.elapsed()))
        };
        let (tallies, next) = tokio::join!(clients, kill);
        let mut all = Tally::default();
        tallies.into_iter().for_each(|tally| all.add(tally));
        let Tally { connects, failed, slowest } = all;
        if failed > 0 {
            return Err(format!("{failed} of {connects} connects failed"));
        }
        let (greeting, took) = next.map_err(|error| format!("nobody serves after the kill: {error}"))?;
        self.report.beat(&format!("{greeting:?} {} after the kill", milliseconds(took)));
        self.report
            .beat(&format!("{connects} connects, 0 failed, the slowest took {}", milliseconds(slowest)));
        Ok(format!("{connects} connects, 0 failed, the slowest took {}", milliseconds(slowest)))
    }

    fn dns_address(&self) -> Result<SocketAddr, String> {
        self.dns.ok_or_else(|| "machine a has no DNS".to_owned())
    }

    fn service(&self) -> Result<SocketAddr, String> {
        self.service.ok_or_else(|| format!("{NAME} has no address"))
    }

    /// Prints commands that work while the daemons run; one machine of the three has been killed.
    fn show_what_to_try(&self) {
        let Some(machine) = self.machines.first() else { return };
        let program =
            std::env::current_exe().map_or_else(|_| "gossamer".to_owned(), |path| path.display().to_string());
        let socket = machine.socket.display();
        output::note("\nThe mesh goes on until Ctrl-C. Try in another terminal:");
        output::note(format_args!("  {program} --socket {socket} status"));
        output::note(format_args!("  {program} --socket {socket} resolve {SERVICE}"));
        let service = self.service.map(|service| format!("{} {}", service.ip(), service.port()));
        output::note(format_args!("  nc {}", service.unwrap_or_default()));
    }

    /// Ends what was started, in order, and checks that nothing is left.
    async fn clean_up(mut self) -> (Report, Result<String, String>) {
        sleep(LOOK_AROUND).await;
        let left = join_all(self.machines.iter_mut().map(Machine::leave)).await;
        let sockets: Vec<_> = self.machines.iter().map(|machine| machine.socket.clone()).collect();
        let is_killed = |at: usize| matches!(left.get(at), Some(Ok(None)));
        let stale: Vec<_> =
            sockets.iter().enumerate().filter(|(at, path)| !is_killed(*at) && path.exists()).collect();
        let stale = stale.first().map(|(_, path)| format!("{} was left behind", path.display()));
        let left: Result<Vec<_>, String> = left.into_iter().collect();
        let Self { place, machines, stage, report, .. } = self;
        let count = machines.len();
        drop(machines);
        let tasks = stage.stop(Duration::from_secs(1)).await;
        let removed = place.remove();
        let result = left.and_then(|statuses| {
            if let Some(status) = statuses.into_iter().flatten().find(|status| !status.success()) {
                return Err(format!("a daemon ended with {status} when asked to leave"));
            }
            stale.map_or(Ok(()), Err)?;
            removed?;
            if tasks > 0 { Err(format!("{tasks} tasks are left")) } else { Ok(()) }
        });
        (report, result.map(|()| format!("{count} daemons ended, their files are removed")))
    }
}

/// Changes one character, as a typing error would.
fn spoiled(token: &str) -> String {
    let middle = token.len() / 2;
    let other = |c: char| if c == 'a' { 'b' } else { 'a' };
    token.char_indices().map(|(at, c)| if at == middle { other(c) } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoiled_token_differs_in_one_character() {
        let token = "gsm1_abcdefabcdef";
        let spoiled = spoiled(token);
        let differing = token.chars().zip(spoiled.chars()).filter(|(a, b)| a != b).count();
        assert_eq!((spoiled.len(), differing), (token.len(), 1));
    }
}
