//! Many machines around one router: a namespace each, point-to-point links, no bridge.
//!
//! Owns: the links, the addresses, and what the router drops. Must not know: what runs on the machines.
//! Driven by: the benchmark of gossip, scenario files played with real daemons.
//!
//! All namespaces of a system share one neighbour table, and a bridge of N machines fills it with N x N entries.
//! Here each link has two, which are permanent: nothing is resolved, so nothing but IP packets is received.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::Namespace;

/// Links of one third byte of the address: 127 pairs, so that no address ends in 255.
const PER_BLOCK: usize = 127;

/// Most machines: three blocks of addresses, far below the 1,024 neighbours of a system's table.
const MAX: usize = 3 * PER_BLOCK;

/// Bytes of Ethernet in front of each packet, which a real network has and a count of IP bytes has not.
pub const LINK_HEADER: u64 = 14;

/// Machines with a link to one router each.
#[derive(Debug)]
pub struct Star {
    machines: Vec<Namespace>,
    router: Namespace,
}

/// Which counter of the router is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// QUIC packets of type Initial (RFC 9000 section 17.2.2): at least one from either end of each handshake.
    Initials,
    /// All that was forwarded.
    Forwarded,
}

impl Star {
    /// Makes `count` machines with the addresses [`Star::address`] names. At most 381.
    ///
    /// # Errors
    /// Not root, or `ip` or `nft` is missing.
    pub fn new(count: usize) -> Result<Self> {
        if count > MAX {
            bail!("a star has at most {MAX} machines");
        }
        let router = Namespace::new("router")?;
        // The router's ends would send neighbour discovery of their own.
        router.parameter("ipv6/conf/default/disable_ipv6", "1")?;
        router.parameter("ipv4/ip_forward", "1")?;
        let machines =
            (0..count).map(|index| Namespace::new(&format!("m{index}"))).collect::<Result<Vec<_>>>()?;
        let star = Self { machines, router };
        star.link()?;
        star.router.nft(RULES)?;
        Ok(star)
    }

    /// Returns the address of a machine.
    pub const fn address(index: usize) -> Ipv4Addr {
        let [block, pair] = place(index);
        Ipv4Addr::new(10, 78, block, 2 * pair + 1)
    }

    /// Returns the machines, in order.
    pub fn machines(&self) -> &[Namespace] {
        &self.machines
    }

    /// Lets a machine send from each address of a prefix. Answers to them find it when `answered`, and end at the router
    /// when the addresses are not its own.
    ///
    /// # Errors
    /// With the words of `ip` when it fails.
    pub fn lend(&self, index: usize, prefix: &str, answered: bool) -> Result<()> {
        let (machine, port) = (&self.machines[index], format!("p{index}"));
        machine.ip(&["route", "add", "local", prefix, "dev", "lo"])?;
        for interface in ["all", &port] {
            self.router.parameter(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        let own = Self::address(index).to_string();
        let way = if answered { vec![prefix, "via", &own, "dev", &port] } else { vec!["blackhole", prefix] };
        self.router.ip(&[&["route", "add"], &way[..]].concat())
    }

    /// Drops what one machine sends to another from here on. The other direction stays.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.cut_all(&[(from, to)])
    }

    /// As [`Star::cut`] for many pairs at once.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn cut_all(&self, pairs: &[(usize, usize)]) -> Result<()> {
        // One command has a limited length.
        for pairs in pairs.chunks(500) {
            let pairs =
                pairs.iter().map(|(from, to)| format!("{} . {}", Self::address(*from), Self::address(*to)));
            let pairs = pairs.collect::<Vec<_>>().join(", ");
            self.router.nft(&format!("add element ip star cut {{ {pairs} }}"))?;
        }
        Ok(())
    }

    /// Ends all cuts.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn heal(&self) -> Result<()> {
        self.router.nft("flush set ip star cut")
    }

    /// Lets the router lose this share of what it forwards, each packet on its own; for what single machines send and
    /// receive, another share. Replaces what was said before.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn lose(&self, share: f64, machines: &BTreeMap<usize, f64>) -> Result<()> {
        self.router.nft(&losing(share, machines))
    }

    /// Returns packets and bytes of a counter of the router since the star was made.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn count(&self, counter: Counter) -> Result<(u64, u64)> {
        let name = match counter {
            Counter::Initials => "initials",
            Counter::Forwarded => "forwarded",
        };
        let said = self.router.nft_says(&format!("list counter ip star {name}"))?;
        counted(&said).with_context(|| format!("no counter in {said:?}"))
    }

    /// Joins each machine with the router.
    fn link(&self) -> Result<()> {
        let mut orders = String::new();
        for (index, machine) in self.machines.iter().enumerate() {
            let ([here, there], [block, pair]) = (stations(index), place(index));
            let (gate, own) = (Ipv4Addr::new(10, 78, block, 2 * pair), Self::address(index));
            let name = machine.name();
            let _ = write!(
                orders,
                "link add p{index} address {here} type veth peer name eth0 address {there} netns {name}\n\
                 addr add {gate}/31 dev p{index}\n\
                 link set p{index} up\n\
                 neigh add {own} lladdr {there} dev p{index} nud permanent\n"
            );
        }
        self.router.ip_batch(&orders)?;
        for (index, machine) in self.machines.iter().enumerate() {
            let ([here, _], [block, pair]) = (stations(index), place(index));
            let (gate, own) = (Ipv4Addr::new(10, 78, block, 2 * pair), Self::address(index));
            machine.ip_batch(&format!(
                "addr add {own}/31 dev eth0\n\
                 link set eth0 up\n\
                 neigh add {gate} lladdr {here} dev eth0 nud permanent\n\
                 route add default via {gate}\n"
            ))?;
        }
        Ok(())
    }
}

/// What the router does with what it forwards: counts, cuts, loses.
const RULES: &str = "table ip star { \
    counter initials { }; \
    counter forwarded { }; \
    set cut { type ipv4_addr . ipv4_addr; }; \
    chain loss { }; \
    chain forward { type filter hook forward priority 0; \
        counter name forwarded; \
        udp dport 4677 @th,64,4 0xc counter name initials; \
        ip saddr . ip daddr @cut drop; \
        jump loss; }; }";

/// Returns the rules that lose packets.
fn losing(share: f64, machines: &BTreeMap<usize, f64>) -> String {
    // Ten-thousandths: finer than any scenario, and a number nft takes.
    let lost =
        |share: f64| format!("numgen random mod 10000 < {} drop", (share.clamp(0.0, 1.0) * 1e4).round());
    let mut rules = "flush chain ip star loss".to_owned();
    for (machine, share) in machines {
        let address = Star::address(*machine);
        for end in ["saddr", "daddr"] {
            let _ = write!(rules, "; add rule ip star loss ip {end} {address} {}", lost(*share));
            let _ = write!(rules, "; add rule ip star loss ip {end} {address} accept");
        }
    }
    if share > 0.0 {
        let _ = write!(rules, "; add rule ip star loss {}", lost(share));
    }
    rules
}

/// Returns third byte and number of the pair of addresses of a link.
#[expect(clippy::cast_possible_truncation, reason = "both are below 127 for the 381 machines there can be")]
const fn place(index: usize) -> [u8; 2] {
    [(index / PER_BLOCK) as u8, (index % PER_BLOCK) as u8]
}

/// Returns the link addresses of the router's end and the machine's.
fn stations(index: usize) -> [String; 2] {
    let [block, pair] = place(index);
    [1, 2].map(|end| format!("02:00:00:{end:02x}:{block:02x}:{pair:02x}"))
}

/// Reads `counter NAME { packets P bytes B }`.
fn counted(text: &str) -> Option<(u64, u64)> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let packets = words.next()?.parse().ok()?;
    Some((packets, words.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_link_has_two_addresses_of_its_own() {
        let own: BTreeSet<_> = (0..MAX).map(Star::address).collect();
        assert_eq!(own.len(), MAX);
        assert!(own.iter().all(|address| address.octets()[3] % 2 == 1), "the even one is the router's");
        let stations: BTreeSet<_> = (0..MAX).flat_map(stations).collect();
        assert_eq!(stations.len(), 2 * MAX);
    }

    #[test]
    fn a_counter_is_read_from_what_nft_prints() {
        let text = "table ip star {\n\tcounter initials {\n\t\tpackets 12 bytes 3456\n\t}\n}\n";
        assert_eq!(counted(text), Some((12, 3_456)));
        assert_eq!(counted("table ip star {}"), None);
    }

    #[test]
    fn a_machine_of_its_own_share_does_not_lose_the_networks() {
        assert_eq!(losing(0.0, &BTreeMap::new()), "flush chain ip star loss");
        let rules = losing(0.05, &BTreeMap::from([(1, 0.2)]));
        let lost = rules.find("daddr 10.78.0.3 numgen random mod 10000 < 2000 drop").expect("loses");
        let kept = rules.find("daddr 10.78.0.3 accept").expect("ends");
        let all = rules.find("loss numgen random mod 10000 < 500 drop").expect("the others");
        assert!(lost < kept && kept < all, "{rules}");
    }

    #[test]
    fn more_machines_than_neighbours_are_refused() {
        assert!(Star::new(MAX + 1).expect_err("too many").to_string().contains("381"));
    }
}
