//! Who listens on the TCP and UDP ports of this machine, and which program it is.
//!
//! Owns: the kernel's socket table and the way from a socket to its program. Must not know: VIPs, services.
//! Driven by: `relay::vips`, before it listens and when it may not; `register`, about targets on this machine.
//!
//! A program that listens on the wildcard address cannot restart while the daemon holds the same port on a VIP
//! (design section 8).

mod diag;

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    /// Its number in `/proc/PID/fd`.
    pub(crate) inode: u64,
}

impl Listener {
    pub(crate) fn is_wildcard(&self) -> bool {
        self.address.ip().is_unspecified()
    }
}

/// The listening TCP sockets of this network namespace at one moment; some thousands may be ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listeners {
    by_address: HashMap<SocketAddr, Listener>,
    /// One by port of those on the wildcard of either family.
    wildcards: HashMap<u16, Listener>,
}

impl FromIterator<Listener> for Listeners {
    fn from_iter<I: IntoIterator<Item = Listener>>(all: I) -> Self {
        let mut listeners = Self::default();
        for listener in all {
            listeners.by_address.entry(listener.address).or_insert(listener);
            if listener.is_wildcard() {
                listeners.wildcards.entry(listener.address.port()).or_insert(listener);
            }
        }
        listeners
    }
}

impl Listeners {
    /// Asks the kernel; where it may not be asked, its tables are read, and what cannot be read is left out.
    pub(crate) fn read_blocking() -> Self {
        diag::listening().unwrap_or_else(|_| read_tables(&TCP_TABLES, LISTEN)).into_iter().collect()
    }

    /// Does the same for UDP sockets that take datagrams of anybody.
    pub(crate) fn read_udp_blocking() -> Self {
        diag::receiving().unwrap_or_else(|_| read_tables(&UDP_TABLES, UNCONNECTED)).into_iter().collect()
    }

    /// Returns who would receive a connection to `vip`, on which this daemon does not listen itself.
    ///
    /// An IPv6 wildcard counts: whether it takes IPv4 too is in no table, and nearly all do.
    pub(crate) fn holder(&self, vip: SocketAddr) -> Option<Listener> {
        self.by_address.get(&vip).or_else(|| self.wildcards.get(&vip.port())).copied()
    }

    /// Returns whether what answers on `target` listens on the wildcard; `None` when nobody answers there.
    pub(crate) fn is_wildcard(&self, target: SocketAddr) -> Option<bool> {
        let listens = |ip: IpAddr| self.by_address.contains_key(&SocketAddr::new(ip, target.port()));
        let ip = target.ip().to_canonical();
        // A specific listener gets the connection before a wildcard one.
        if listens(ip) {
            return Some(false);
        }
        // An IPv6 wildcard takes IPv4 too unless its program said otherwise, which the table does not show.
        let is_wildcard =
            listens(Ipv6Addr::UNSPECIFIED.into()) || (ip.is_ipv4() && listens(Ipv4Addr::UNSPECIFIED.into()));
        is_wildcard.then_some(true)
    }
}

/// Finds the program that holds a socket; `None` when it belongs to somebody whose files we may not see.
pub(crate) fn program_blocking(inode: u64) -> Option<String> {
    let name = fs::read_to_string(process_blocking(inode)?.join("comm")).ok()?;
    Some(name.trim().chars().filter(|char| !char.is_control()).collect())
}

/// Finds the process that holds a socket, as its directory below `/proc`.
pub(crate) fn process_blocking(inode: u64) -> Option<PathBuf> {
    let wanted = format!("socket:[{inode}]");
    let holds = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| link.as_os_str() == wanted.as_str())
    };
    let mut processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    processes.find(|process| is_process(process) && holds(process))
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

fn read_tables(tables: &[&str], state: &str) -> Vec<Listener> {
    let texts = tables.iter().map(|table| fs::read_to_string(table).unwrap_or_default());
    let found = |text: String| text.lines().filter_map(|line| parse_line(line, state)).collect::<Vec<_>>();
    texts.flat_map(found).collect()
}

/// Parses `sl local remote state tx:rx tr:when retrnsmt uid timeout inode ..` when the socket has this state.
fn parse_line(line: &str, wanted: &str) -> Option<Listener> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    if state != wanted {
        return None;
    }
    Some(Listener { address: parse_address(local)?, inode: inode.parse().ok()? })
}

/// Parses `0100007F:1538`: 32-bit words in the byte order of the machine, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(words).ok()?)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// `self` and not `net`: the former is there also when only own processes are visible.
const TCP_TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
const UDP_TABLES: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];

/// How the tables write "listening".
const LISTEN: &str = "0A";
/// How they write a UDP socket without a peer.
const UNCONNECTED: &str = "07";

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_are_read_from_the_kernels_lines() {
        let rest = "00000000:00000000 00:00000000 00000000 104 0 4711 1 0 100 0 0 10 0";
        let read = |local: &str, state: &str| parse_line(&format!(" 0: {local} 0:0 {state} {rest}"), LISTEN);
        let found = |text: &str| Some(Listener { address: address(text), inode: 4711 });
        assert_eq!(read("0100007F:1538", "0A"), found("127.0.0.1:5432"));
        assert_eq!(read("00000000:0050", "0A"), found("0.0.0.0:80"));
        assert_eq!(read("00000000000000000000000000000000:0016", "0A"), found("[::]:22"));
        assert_eq!(read("0000000000000000FFFF00000100007F:0BB8", "0A"), found("127.0.0.1:3000"));
        assert_eq!(read("0100007F:1538", "01"), None, "connected, not listening");
        for nonsense in ["", "0: zz:zz 0 0A", "0100007F:1538"] {
            assert_eq!(parse_line(nonsense, LISTEN), None);
        }
        assert_eq!(read("0100007F", "0A"), None);
        assert_eq!(read("01:0050", "0A"), None);
        assert_eq!(read("0100007F:99999", "0A"), None);
    }

    #[test]
    fn the_listener_on_the_vip_itself_gets_the_connection_before_the_wildcard() {
        let listener = |text, inode| Listener { address: address(text), inode };
        let vip = address("127.240.3.4:80");
        let mut all = vec![listener("0.0.0.0:80", 1), listener("127.0.0.1:80", 2)];
        let listeners: Listeners = all.iter().copied().collect();
        assert_eq!(listeners.holder(vip).map(|found| found.inode), Some(1));
        all.push(listener("127.240.3.4:80", 3));
        let listeners: Listeners = all.into_iter().collect();
        assert_eq!(listeners.holder(vip).map(|found| found.inode), Some(3));
        assert_eq!(listeners.holder(address("127.240.3.4:81")), None);
        let v6 = Listeners::from_iter([listener("[::]:80", 4)]);
        assert_eq!(v6.holder(vip).map(|found| found.inode), Some(4));
    }

    #[test]
    fn wildcard_and_specific_targets_are_told_apart() {
        let listener = |text| Listener { address: address(text), inode: 1 };
        let bound = ["127.0.0.1:5432", "0.0.0.0:80", "[::]:22", "[::1]:631"];
        let listeners: Listeners = bound.map(listener).into_iter().collect();
        for (target, wildcard) in [
            ("127.0.0.1:5432", Some(false)),
            ("127.0.0.2:5432", None),
            ("127.0.0.1:80", Some(true)),
            ("[::1]:80", None),
            ("127.0.0.1:8080", None),
            ("127.0.0.1:22", Some(true)),
            ("[::1]:22", Some(true)),
            ("[::1]:631", Some(false)),
            ("[::ffff:127.0.0.1]:80", Some(true)),
        ] {
            assert_eq!(listeners.is_wildcard(address(target)), wildcard, "{target}");
        }
    }

    #[test]
    fn real_listeners_are_found_with_their_program() {
        let (one, all) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("0.0.0.0:0"));
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        let (one, all) = (one.expect("free"), all.expect("free"));
        let listeners = Listeners::read_blocking();
        let at = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        assert_eq!(listeners.is_wildcard(at(port(&one))), Some(false));
        assert_eq!(listeners.is_wildcard(at(port(&all))), Some(true));
        let holder =
            listeners.holder(SocketAddr::new([127, 250, 0, 9].into(), port(&all))).expect("the wildcard");
        assert!(holder.is_wildcard());
        let own = fs::read_to_string("/proc/self/comm").expect("readable");
        assert_eq!(program_blocking(holder.inode).as_deref(), Some(own.trim()));
        assert_eq!(program_blocking(0), None);
    }

    #[test]
    fn the_tables_show_what_the_kernel_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free");
        let address = listener.local_addr().expect("bound");
        let inode = |found: Vec<Listener>| {
            found.into_iter().find(|one| one.address == address).map(|listener| listener.inode)
        };
        assert!(inode(read_tables(&TCP_TABLES, LISTEN)).is_some());
        assert_eq!(
            inode(read_tables(&TCP_TABLES, LISTEN)),
            inode(Listeners::read_blocking().by_address.into_values().collect())
        );
    }
}
