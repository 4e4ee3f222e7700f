//! Sizes of packets: paths that take only small ones, with and without a word, and both families of addresses.
//!
//! Owns: a router between two machines and what it lets pass. Must not know: how daemons find sizes out. Driven by:
//! `evidence`. Needs root: each machine is a network namespace.

use anyhow::Result;

use super::carried::{Pair, both_ways, listen};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::promise;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.6-small-path",
        promise: "Over a path of 1,280 bytes the mesh forms and 100 MiB pass each way with the same SHA-256, in packets of more than 1,200 bytes",
        sabotage: "the path takes 1,200 bytes",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: small_path,
    },
    Row {
        name: "7.6-hole",
        promise: "Over a path that swallows UDP of more than 1,228 bytes without a word the mesh forms and 100 MiB pass each way with the same SHA-256",
        sabotage: "it swallows what is longer than 1,200 bytes",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: hole,
    },
    Row {
        name: "7.6-hole-later",
        promise: "A path that begins to swallow UDP of more than 1,228 bytes half way through 100 MiB: they pass each way all the same with the same SHA-256, and no node is taken for dead",
        sabotage: "it swallows what is longer than 600 bytes",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: hole_later,
    },
    Row {
        name: "7.6-families",
        promise: "A mesh of IPv6 alone and one of both families form, and 100 MiB pass each way with the same SHA-256",
        sabotage: "IPv6 packets are dropped",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: families,
    },
];

const MIB: u64 = 100;
const MIB_IN_CI: u64 = 16;

/// Two machines with a router between them.
pub(super) struct Routed {
    segment: Segment,
    pub(super) inner: Namespace,
}

impl Routed {
    pub(super) fn new() -> Result<Self> {
        let segment = Segment::new(2)?;
        let inner = Namespace::new("inner")?;
        let routed = Self { segment, inner };
        routed.inner.behind(routed.router())?;
        let via = Segment::address(1).to_string();
        routed.outer().ip(&["route", "add", "192.168.9.0/24", "via", &via])?;
        // Else the router would see several packets as one: they are parted where they leave the last device.
        for machine in [routed.outer(), &routed.inner] {
            machine.ip(&["link", "set", "eth0", "gso_max_segs", "1"])?;
        }
        Ok(routed)
    }

    pub(super) fn outer(&self) -> &Namespace {
        &self.segment.machines()[0]
    }

    fn router(&self) -> &Namespace {
        &self.segment.machines()[1]
    }

    /// Lets the router swallow UDP packets that are longer, headers included.
    pub(super) fn swallow(&self, longer: u16) -> Result<()> {
        self.router().nft(&format!(
            "table ip hole {{ chain through {{ type filter hook forward priority 0; \
             meta l4proto udp ip length > {longer} drop; }}; }}"
        ))
    }

    /// Forms a mesh over the router and moves bytes; returns words on that and the size that is proven at last.
    fn move_bytes(&self, run: &Run, half_way: impl FnOnce() -> Result<()> + Send) -> Result<(String, u64)> {
        run.scenario(|lab| {
            let pair = Pair::on(lab, &self.inner, self.outer())?;
            let (listener, target) = self.outer().enter(listen)??;
            let vip = pair.offer_orders(target)?;
            let words =
                self.inner.enter(|| both_ways(&listener, vip, run.times(MIB, MIB_IN_CI), half_way))??;
            for (node, other) in [(&pair.server, "caller"), (&pair.caller, "server")] {
                let state = node.state_of(other)?;
                promise!(state.as_deref() == Some("alive"), "{} sees {other} {state:?}", node.name);
                let events = node.ok(&["events"])?;
                promise!(!events.contains("-> down"), "{} saw {events}", node.name);
            }
            let sizes = pair.server.status()?["peers"][0]["path"]["size"].as_u64().unwrap_or_default();
            Ok((words, sizes))
        })
    }
}

fn small_path(run: &Run) -> Result<String> {
    let routed = Routed::new()?;
    let mtu = if run.sabotaged { "1200" } else { "1280" };
    routed.router().ip(&["link", "set", "inside", "mtu", mtu])?;
    routed.inner.ip(&["link", "set", "eth0", "mtu", mtu])?;
    let (words, size) = routed.move_bytes(run, || Ok(()))?;
    promise!((1_201..=1_252).contains(&size), "{size} bytes are held for proven");
    Ok(format!("{words}; {size} bytes proven"))
}

fn hole(run: &Run) -> Result<String> {
    let routed = Routed::new()?;
    routed.swallow(if run.sabotaged { 1_200 } else { 1_228 })?;
    let (words, size) = routed.move_bytes(run, || Ok(()))?;
    promise!(size == 1_200, "{size} bytes are held for proven");
    Ok(format!("{words}; {size} bytes proven"))
}

fn hole_later(run: &Run) -> Result<String> {
    let routed = Routed::new()?;
    let longer = if run.sabotaged { 600 } else { 1_228 };
    let (words, size) = routed.move_bytes(run, || routed.swallow(longer))?;
    promise!(size == 1_200, "{size} bytes are held for proven");
    Ok(format!("{words}; {size} bytes proven at last"))
}

fn families(run: &Run) -> Result<String> {
    let mut rows = Vec::new();
    for both in [false, true] {
        let segment = Segment::new(2)?;
        let [here, there] = segment.machines() else { unreachable!("two machines were made") };
        for (index, machine) in [here, there].into_iter().enumerate() {
            let _ = machine.parameter("ipv6/conf/all/disable_ipv6", "0");
            machine.ip(&[
                "addr",
                "add",
                &format!("2001:db8:7::{}/64", 10 + index),
                "dev",
                "eth0",
                "nodad",
            ])?;
            if !both {
                machine.ip(&["addr", "del", &format!("10.77.0.{}/24", 10 + index), "dev", "eth0"])?;
            }
        }
        if run.sabotaged {
            there
                .nft("table ip6 dead { chain in { type filter hook input priority 0; iif != lo drop; }; }")?;
        }
        let words = run.scenario(|lab| {
            let pair = Pair::on(lab, here, there)?;
            let (listener, target) = there.enter(listen)??;
            let vip = pair.offer_orders(target)?;
            let words = here.enter(|| both_ways(&listener, vip, run.times(MIB, MIB_IN_CI), || Ok(())))??;
            let at = pair.caller.status()?["peers"][0]["path"]["at"].to_string();
            promise!(both || at.contains("2001:db8:7::"), "the path leads to {at}");
            Ok(words)
        })?;
        rows.push(format!("{}: {words}", if both { "both" } else { "IPv6 alone" }));
    }
    Ok(rows.join("; "))
}
