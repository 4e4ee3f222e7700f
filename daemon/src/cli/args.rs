//! The grammar of the command line.
//!
//! Owns: commands, flags and their help. Must not know: what commands do. Driven by: `cli::main`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gossamer_wire::{
    Address, Carrier, Fqdn, FqdnSuffix, GroupName, InstanceName, Label, MeshName, NodeName, Order, Rule,
    ServiceName, Tier, parse_order,
};

use super::name_port::{ForwardSpec, LocalAddress, NamePort, OwnName, PortSpec, TargetSpec, TraceName};
use super::name_port::{audience, caller, certified, pair};
use super::{demo::Sabotage, drain, host::HostCommand, ping};
use crate::api::messages::Audience;
use crate::config::Flags;
use crate::duration;

/// Connects services across machines, networks and clusters. One daemon per machine, no server.
#[derive(Debug, Parser)]
#[command(name = "gossamer", version, disable_help_subcommand = true, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon unreachable, 4 not found, 5 denied or hidden, 124 timed out."
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which daemon of the machine is meant.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Global {
    /// Directory of keys and state
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Socket of the local API
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which of ten daemons of this machine: 0 to 9, or auto for the first free
    #[arg(long, global = true, value_name = "N|auto")]
    slot: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Three daemons on loopback show join, names, relay and failover, then clean up
    Demo(Demo),
    /// Make a mesh, start, and print the line that joins another machine
    Init(Init),
    /// Join a mesh with a token, and start
    Join(Join),
    /// Run the daemon in the foreground
    Run(Run),
    /// Make, list, renew or revoke join tokens
    #[command(subcommand)]
    Token(Token),
    /// Add, list or remove issuers: the nodes that admit others and renew certificates
    #[command(subcommand)]
    Issuer(Issuer),
    /// Replace the root of the mesh, or take its key off this machine
    #[command(subcommand)]
    Root(Root),
    /// Put a node out of the mesh
    #[command(subcommand)]
    Node(Node),
    /// Offer a service of this machine to the mesh
    Expose(Expose),
    /// Take a service of this machine back
    Withdraw(Withdraw),
    /// Let services of this machine take no new connections, and wait for those that live
    Drain(drain::Asked),
    /// List the nodes of the mesh
    Nodes(Shape),
    /// Try each way to a node: the connection to it, and each of its addresses
    Ping(ping::Asked),
    /// Say what is wrong here, and what mends it
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List services and their instances
    Services(Services),
    /// Show what DNS answers for a name
    Resolve(Resolve),
    /// Show this daemon and what is wrong with it
    Status(StatusArgs),
    /// Explain the way of a name: DNS, access, address, instances, the other node, the program; and where it ends
    Trace(Trace),
    /// Listen on a local port and carry each connection to a service
    Forward(Forward),
    /// Show changes of state, from the event log
    Events(Events),
    /// Show each change of a node or an instance as it becomes visible here
    Watch(Watch),
    /// Leave the mesh and stop the daemon; the identity stays
    Leave,
    /// Let the resolver of this machine send questions for mesh names to the daemon; needs root
    #[command(subcommand)]
    Host(HostCommand),
    /// Show who may call what this node exports, and why
    #[command(subcommand)]
    Policy(Policy),
    /// Read the configuration again; what needs a restart is named, a faulty file changes nothing
    Reload {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct Shape {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print names only
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
}

/// Settings of a daemon that is started.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Start {
    /// Small failure domain of this node
    #[arg(long)]
    zone: Option<String>,
    /// Large failure domain of this node
    #[arg(long)]
    region: Option<String>,
    /// Where mesh traffic arrives, UDP
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Addresses others can dial, separated by commas; tls://HOST:PORT for an ingress
    #[arg(long, value_name = "ADDRESS,..")]
    advertise: Option<String>,
    /// Where DNS is answered
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<String>,
    /// Services of other groups behind their short name, for example orders@west
    #[arg(long, value_name = "SERVICE@GROUP,..")]
    import: Option<String>,
    /// Run in the background and return when ready
    #[arg(short, long)]
    pub(super) detach: bool,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Name of the mesh, for display
    #[arg(default_value = "mesh")]
    pub(super) mesh: MeshName,
    /// Group of this node
    #[arg(long, default_value = "default")]
    pub(super) group: GroupName,
    /// Name of this node; the host name unless given
    #[arg(long)]
    pub(super) node: Option<NodeName>,
    /// Address for the join line
    #[arg(long, value_name = "IP:PORT|tls://HOST:PORT")]
    pub(super) address: Vec<Address>,
    #[command(flatten)]
    pub(super) start: Start,
    /// Only write the identity
    #[arg(long, conflicts_with = "detach")]
    pub(super) no_start: bool,
}

/// A token as it was typed, or `-`. `Debug` does not show it.
#[derive(Clone)]
pub(super) struct TokenText(pub(super) String);

impl TokenText {
    /// Returns whether it is read from standard input.
    pub(super) fn is_dash(&self) -> bool {
        self.0 == "-"
    }
}

impl FromStr for TokenText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText")
    }
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// The token, or - for standard input; else GOSSAMER_TOKEN
    #[arg(conflicts_with = "token_file")]
    pub(super) token: Option<TokenText>,
    /// File that holds the token
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Name of this node; the host name unless given
    #[arg(long)]
    pub(super) node: Option<NodeName>,
    #[command(flatten)]
    pub(super) start: Start,
    /// Only write the identity
    #[arg(long, conflicts_with = "detach")]
    pub(super) no_start: bool,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Listen on LOCAL and carry each connection to a service
    #[arg(long, value_name = "LOCAL=NAME:PORT")]
    pub(super) forward: Vec<ForwardSpec>,
    #[command(flatten)]
    pub(super) start: Start,
    /// Run this command, leave when it ends, and exit with its code
    #[arg(last = true, value_name = "CMD", conflicts_with = "detach")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token and print it
    Create(TokenCreate),
    /// List tokens
    List(Shape),
    /// Make another token that grants the same, for as long again
    Renew {
        /// Id of the token
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a token useless; who joined with it stays
    Revoke {
        /// Id of the token
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct TokenCreate {
    /// How long it may be used
    #[arg(long, value_parser = duration::parse, default_value = "1h")]
    pub(super) ttl: Duration,
    /// How many nodes may join; 0 is no limit
    #[arg(long, default_value_t = 1)]
    pub(super) uses: u32,
    /// Group of the node; that of this node unless given
    #[arg(long)]
    pub(super) group: Option<GroupName>,
    /// Names the node may have, * matches any run
    #[arg(long, value_name = "PATTERN")]
    pub(super) name: Option<String>,
    /// Services the node may export; all unless given
    #[arg(long, value_name = "PATTERN")]
    pub(super) allow_service: Vec<String>,
    /// Suffixes below which the node may export fully qualified names of its own; none unless given
    #[arg(long, value_name = "SUFFIX")]
    pub(super) allow_fqdn: Vec<FqdnSuffix>,
    /// Labels the certificate vouches for
    #[arg(long, value_name = "KEY=VALUE", value_parser = certified)]
    pub(super) label: Vec<(Label, Label)>,
    /// What the node may do for others
    #[arg(long)]
    pub(super) role: Vec<Role>,
    /// Forget the node when it was silent for so long
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(super) ephemeral: Option<Duration>,
    /// Address the joiner dials; those of this machine, or of the relays that lead to it, unless given
    #[arg(long, value_name = "IP:PORT|tls://HOST:PORT")]
    pub(super) address: Vec<Address>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What a node may do for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Carry circuits between nodes that cannot reach each other, and lead joiners to issuers
    Relay,
}

#[derive(Debug, Subcommand)]
pub(super) enum Issuer {
    /// Make a node an issuer; runs where the root key is
    Add {
        /// Name or id of the node
        node: String,
        /// Groups it may admit to; all unless given
        #[arg(long, value_name = "GROUP")]
        group: Vec<GroupName>,
    },
    /// List issuers
    List(Shape),
    /// Take a node's power to admit; runs where the root key is
    Remove {
        /// Name or id of the node
        node: String,
        /// Its key is in other hands: nothing that it signed counts any more
        #[arg(long)]
        stolen: bool,
    },
    /// Let an issuer make more statements; runs where the root key is
    Grant {
        /// Name or id of the node
        node: String,
        /// How many in all
        numbers: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Root {
    /// Add a root that is to replace the present one; runs where the root key is
    Add,
    /// List roots
    List(Shape),
    /// Retire a root, unless a live node would be cut off; runs where the key of a later root is
    Retire {
        /// Its id
        root: String,
        /// Also if live nodes are cut off: they must join again
        #[arg(long)]
        force: bool,
    },
    /// Write the root key of this machine to a file, under a passphrase
    Export {
        /// The file; it must not be there yet
        file: PathBuf,
        /// File with the passphrase; asked for unless given
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Put an exported root key onto this machine
    Import {
        /// The file
        file: PathBuf,
        /// File with the passphrase; asked for unless given
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take the root key off this machine
    Remove {
        /// Also if it was never exported: then nobody has it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Put a node out for ever: its key is refused everywhere
    Evict {
        /// Name or id of the node
        node: String,
        /// Wait until all live nodes have said that they know
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Expose {
    /// The service and its port
    #[arg(value_name = "NAME[:PORT[/udp]]")]
    pub(super) name: OwnName,
    /// Where its program listens: IP, PORT, IP:PORT or unix:PATH; 127.0.0.1 and the same port unless given
    pub(super) target: Option<TargetSpec>,
    /// More ports
    #[arg(long, value_name = "[NAME:]PORT[:TARGETPORT][/udp]")]
    pub(super) port: Vec<PortSpec>,
    /// Name of the instance; the node's name unless given
    #[arg(long)]
    pub(super) instance: Option<InstanceName>,
    /// Groups that may see it beside the own one, or all
    #[arg(long, value_name = "GROUP,..|all", value_parser = audience)]
    pub(super) to: Option<Audience>,
    /// Who may call it as well, by what is certified: group:NAME, node:PATTERN, id:NODEID or label:KEY=VALUE
    #[arg(long, value_name = "RULE")]
    pub(super) allow: Vec<Rule>,
    /// Name outside the mesh zones that it is called by as well, or *.SUFFIX; must lie below an --allow-fqdn of this node
    #[arg(long, value_name = "FQDN")]
    pub(super) fqdn: Vec<Fqdn>,
    /// Pairs shown in TXT
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) meta: Vec<(String, String)>,
    /// Share of traffic among equal instances; 0 takes none
    #[arg(long, default_value_t = 100)]
    pub(super) weight: u16,
    /// In which order callers use instances: of node, group, zone, region, any
    #[arg(long, value_name = "TIER,..", value_parser = parse_order)]
    pub(super) order: Option<Order>,
    /// How near to a caller this instance has to be to be used: node, group, zone, region or any
    #[arg(long, value_name = "TIER")]
    pub(super) only: Option<Tier>,
    /// When less than so many percent of a tier is healthy, let a part of the flows go to the next one
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(super) spill_below: Option<u8>,
    /// What carries its flows: tls, also where QUIC works; QUIC where that works unless given
    #[arg(long, value_name = "tls")]
    pub(super) transport: Option<Carrier>,
    /// Tell TCP targets who calls, by a PROXY protocol header (version 2) before the client's bytes
    #[arg(long)]
    pub(super) proxy_protocol: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Withdraw {
    /// The service
    pub(super) name: ServiceName,
    /// One instance of it; all of this node unless given
    #[arg(long)]
    pub(super) instance: Option<InstanceName>,
}

#[derive(Debug, Args)]
pub(super) struct Services {
    /// One service
    pub(super) name: Option<ServiceName>,
    /// Also instances this node's group may not see
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// A name, with or without the mesh zone, or an address
    pub(super) name: String,
    /// Record type; A unless given, SRV for names that start with _, PTR for addresses
    #[arg(value_name = "TYPE")]
    pub(super) record_type: Option<String>,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// List the living flows instead, oldest first
    #[arg(long)]
    pub(super) flows: bool,
    /// Most flows that are listed
    #[arg(long, value_name = "N", default_value_t = 1_000, requires = "flows")]
    pub(super) limit: usize,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Trace {
    /// A service, a group or an instance of it, by any name DNS knows, and a port's number or name; the only port, else
    /// the first, unless given
    #[arg(value_name = "NAME[:PORT[/udp]]")]
    pub(super) name: TraceName,
    /// Open no flow and touch no other node
    #[arg(long)]
    pub(super) no_dial: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Forward {
    /// Where to listen: PORT or IP:PORT
    pub(super) local: LocalAddress,
    /// Where connections go
    #[arg(value_name = "NAME:PORT")]
    pub(super) to: NamePort,
    /// Run this command, end when it ends, and exit with its code
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// How far back
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1h")]
    pub(super) since: Duration,
    /// Go on until interrupted
    #[arg(short, long)]
    pub(super) follow: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// One service or node
    pub(super) name: Option<ServiceName>,
    /// First what there is, then what changes
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// What this node exports, and who may call it
    Show(Shape),
    /// Say whether somebody may call a service of this node, and what decides; exit 5 when denied
    Test {
        /// A node by name or id, or group:NAME for a node of which nothing else is known
        #[arg(value_name = "WHO", value_parser = caller)]
        who: String,
        /// The service
        service: ServiceName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check file, environment and flags
    Check,
    /// Show every key, its value and where it comes from
    Show(Shape),
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Leave the daemons running
    #[arg(long)]
    pub(super) keep: bool,
    /// Print one JSON object per step
    #[arg(long)]
    pub(super) json: bool,
    /// Break a step from outside; the demo must then fail
    #[arg(long, value_name = "STEP")]
    pub(super) sabotage: Option<Sabotage>,
}

impl Global {
    /// Returns the flags as the configuration takes them.
    pub(super) fn flags(&self) -> Flags {
        let keys = [("slot", &self.slot), ("socket", &self.socket), ("state_dir", &self.state_dir)];
        Flags { config: self.config.clone(), keys: given(&keys) }
    }
}

impl Start {
    /// Adds the settings to the flags of [`Global::flags`].
    pub(super) fn add_to(&self, mut flags: Flags) -> Flags {
        let keys = [
            ("advertise", &self.advertise),
            ("dns.address", &self.dns),
            ("import", &self.import),
            ("listen", &self.listen),
            ("node.region", &self.region),
            ("node.zone", &self.zone),
        ];
        flags.keys.extend(given(&keys));
        flags
    }

    /// Returns whether nothing but the defaults is asked for, as a system's unit would run it.
    pub(super) fn is_plain(&self) -> bool {
        !self.detach && self.add_to(Flags::default()).keys.is_empty()
    }
}

fn given(keys: &[(&'static str, &Option<String>)]) -> Vec<(&'static str, String)> {
    keys.iter().filter_map(|(key, value)| Some((*key, (*value).clone()?))).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_anywhere() {
        for line in ["gossamer --slot 2 nodes", "gossamer nodes --slot 2"] {
            let cli = parse(line).expect(line);
            assert_eq!(cli.global.flags().keys, [("slot", "2".to_owned())]);
        }
    }

    #[test]
    fn what_follows_two_hyphens_is_the_command_to_run() {
        let cli = parse("gossamer run --forward 1=db:2 -- psql -h x").expect("parses");
        let Command::Run(run) = cli.command else { panic!("run") };
        assert_eq!(run.command, ["psql", "-h", "x"]);
        assert_eq!(run.forward.len(), 1);
    }

    #[test]
    fn commands_that_do_not_exist_are_a_usage_error() {
        for line in ["gossamer", "gossamer top", "gossamer nodes --json -q", "gossamer expose Orders:1"] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn settings_of_a_start_become_keys() {
        let cli = parse("gossamer init m --zone a --listen 0.0.0.0:1 --slot 1").expect("parses");
        let Command::Init(init) = cli.command else { panic!("init") };
        let flags = init.start.add_to(cli.global.flags());
        let keys: Vec<_> = flags.keys.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["slot", "listen", "node.zone"]);
        assert!(!init.start.is_plain());
    }
}
