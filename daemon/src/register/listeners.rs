//! Which TCP ports of this machine are listened on, and whether on the wildcard address.
//!
//! Owns: the format of the kernel's socket table. Must not know: services.
//! Driven by: `checks`; `book` asks it about targets on this machine.
//!
//! The VIP listeners need it: a program that listens on the wildcard cannot restart while the daemon holds
//! the same port on a VIP (design section 8).

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Listening TCP sockets of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listeners(BTreeSet<SocketAddr>);

/// The table of this process's network namespace; unlike `/proc/net` it is there under `ProcSubset=pid`.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// How the table writes "listening".
const LISTEN: &str = "0A";

impl Listeners {
    /// Reads the kernel's table. What cannot be read is left out: the answer is a best effort.
    pub(super) fn read_blocking() -> Self {
        let mut found = Self::default();
        for table in TABLES {
            found.add(&fs::read_to_string(table).unwrap_or_default());
        }
        found
    }

    /// Returns whether what answers on `target`, an address of this machine, is a wildcard listener; `None`
    /// when nobody listens there.
    pub(super) fn is_wildcard(&self, target: SocketAddr) -> Option<bool> {
        let listens = |ip: IpAddr| self.0.contains(&SocketAddr::new(ip, target.port()));
        // A specific listener gets the connection before a wildcard one.
        if listens(target.ip().to_canonical()) {
            return Some(false);
        }
        // An IPv6 wildcard takes IPv4 too unless its program said otherwise, which the table does not show.
        let wildcard = listens(Ipv6Addr::UNSPECIFIED.into())
            || (target.ip().to_canonical().is_ipv4() && listens(Ipv4Addr::UNSPECIFIED.into()));
        wildcard.then_some(true)
    }

    /// Adds the listening sockets of one table; lines that do not parse are left out.
    fn add(&mut self, table: &str) {
        let listening = table.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
            if state == LISTEN { parse_address(local) } else { None }
        });
        self.0.extend(listening);
    }
}

/// Parses `0100007F:1538`: each 32-bit word of the address in host byte order, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   104        0 21 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 23 1 0 20 4 30 10 -1
   3: cut
";
    #[cfg(target_endian = "little")]
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000100007F:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
";

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_table_tells_wildcard_from_specific_listeners() {
        let mut listeners = Listeners::default();
        listeners.add(TCP);
        listeners.add(TCP6);
        for (target, wildcard) in [
            ("127.0.0.1:5432", Some(false)),
            ("127.0.0.2:5432", None),
            ("127.0.0.1:80", Some(true)),
            ("[::1]:80", None),
            ("127.0.0.1:8080", None),
            ("127.0.0.1:22", Some(true)),
            ("[::1]:22", Some(true)),
            ("[::1]:631", Some(false)),
            ("127.0.0.1:3000", Some(false)),
            ("[::ffff:127.0.0.1]:80", Some(true)),
        ] {
            assert_eq!(listeners.is_wildcard(target.parse().expect(target)), wildcard, "{target}");
        }
    }

    #[test]
    fn lines_of_another_format_are_left_out() {
        let mut listeners = Listeners::default();
        listeners.add("0: zz:zz 0 0A\n1: 01:0050 0 0A\n2: 0100007F 0 0A\n\n3: 0100007F:99999 0 0A\n");
        assert_eq!(listeners, Listeners::default());
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let bind = |addr: &str| std::net::TcpListener::bind(addr).expect("binds");
        let (specific, wildcard) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
        let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
        let at = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let listeners = Listeners::read_blocking();
        assert_eq!(listeners.is_wildcard(at(port(&specific))), Some(false));
        assert_eq!(listeners.is_wildcard(at(port(&wildcard))), Some(true));
    }
}
