//! dnat mode: one listener for each family, which learns from the socket which VIP was meant, and the look at whether
//! the kernel still sends connections there.
//!
//! Owns: these listeners, what is known of the redirection. Must not know: nft, routes of others, how flows are carried.
//! Driven by: `Vips`, clients, a timer (ADR 26).
//!
//! The look needs no privilege: the daemon connects to an address of the pool that is no VIP and must hear a word that
//! only its own listener knows.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use gossamer_core::vip::{Family, Look, Redirect, Standing};
use gossamer_dns::Subject;

use super::owner::Take;
use crate::clients::{Clients, has_ipv6, is_out_of_files, try_this_host};
use crate::events::{Event, EventLog};
use crate::index::{AddressReader, IndexReader};
use crate::relay::listener::{Accepting, Listening, bind_early};
use crate::relay::spare::Spare;
use crate::relay::{RelayCounters, count};
use crate::supervise::Stage;

/// The listeners of dnat mode, bound.
#[derive(Debug)]
pub struct RedirectSockets {
    redirect: Redirect,
    v4: TcpListener,
    /// `None` where the machine has no IPv6.
    v6: Option<TcpListener>,
}

/// Why dnat mode cannot be had. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
#[error("vip.mode = \"dnat\" needs TCP {address}: {error}; free the port, or take another --slot")]
pub struct RedirectError {
    address: SocketAddr,
    error: io::Error,
}

/// What is known of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standings {
    /// IPv4.
    pub v4: Standing,
    /// IPv6.
    pub v6: Standing,
}

/// What the listeners need.
pub(super) struct Parts {
    pub(super) stage: Stage,
    pub(super) sockets: RedirectSockets,
    pub(super) clients: Clients,
    pub(super) names: AddressReader,
    pub(super) index: IndexReader,
    pub(super) counters: Arc<RelayCounters>,
    pub(super) take: Take,
    pub(super) spare: Spare,
    pub(super) events: EventLog,
}

/// The redirection as readers see it.
#[derive(Clone, Debug)]
pub(super) struct Redirected {
    redirect: Redirect,
    /// `None` until the first look is over.
    standings: watch::Receiver<Option<Standings>>,
}

/// A word that only this daemon's listeners say.
type Word = [u8; 16];

impl RedirectSockets {
    /// Listens. The addresses need not be there yet: the privileged step may come later.
    ///
    /// # Errors
    /// Another program has the port of the IPv4 address.
    pub fn bind(redirect: Redirect) -> Result<Self, RedirectError> {
        let [at, over_v6] = [Family::V4, Family::V6].map(|family| redirect.target(family));
        let v4 = bind_early(at).map_err(|error| RedirectError { address: at, error })?;
        let v6 = has_ipv6().then(|| bind_early(over_v6)).and_then(|listening| {
            let refused = |error: &io::Error| {
                tracing::warn!(address = %over_v6, err = %error, "no virtual addresses over IPv6");
            };
            listening.inspect_err(refused).ok()
        });
        Ok(Self { redirect, v4, v6 })
    }
}

impl Redirected {
    /// Returns what is known; `None` until the first look is over.
    pub(super) fn standings(&self) -> Option<Standings> {
        *self.standings.borrow()
    }

    /// Returns the addresses of this mode.
    pub(super) const fn redirect(&self) -> &Redirect {
        &self.redirect
    }

    /// Waits for the first look.
    pub(super) async fn looked(&self) {
        // An error: the daemon stops.
        let _ = self.standings.clone().wait_for(Option::is_some).await;
    }
}

impl Standings {
    /// Returns each family with what is known of it.
    pub const fn each(&self) -> [(Family, Standing); 2] {
        [(Family::V4, self.v4), (Family::V6, self.v6)]
    }
}

/// Starts the listeners and the look.
pub(super) fn start(parts: Parts) -> Redirected {
    let word: Word = rand::random();
    let Parts { stage, sockets, clients, names, index, counters, take, spare, events } = parts;
    let RedirectSockets { redirect, v4, v6 } = sockets;
    let has_v6 = v6.is_some();
    let listeners: Vec<_> = [(Family::V4, Some(v4)), (Family::V6, v6)]
        .into_iter()
        .filter_map(|(family, listener)| Some((family, listener?)))
        .map(|(family, listener)| {
            let (names, take, counted) = (names.clone(), Arc::clone(&take), Arc::clone(&counters));
            let take = move |client: TcpStream| {
                handle_client(client, family, &redirect, &word, &names, &counted, &take);
            };
            let (counters, spare) = (Arc::clone(&counters), spare.clone());
            let accepting = Accepting { clients: clients.clone(), take, counters, spare };
            Listening::start(&stage, listener, accepting)
        })
        .collect();
    let (tell, standings) = watch::channel(None);
    let stop = stage.stopping().clone();
    stage.spawn("vip-redirect", async move {
        let watching = watch_kernel(redirect, word, has_v6, tell, &index, &events);
        let _ = stop.run_until_cancelled(watching).await;
        for listening in listeners {
            listening.close().await;
        }
        stop.cancelled().await;
    });
    Redirected { redirect, standings }
}

/// Hands a client on to the name whose VIP it meant; resets who meant none.
fn handle_client(
    client: TcpStream,
    family: Family,
    redirect: &Redirect,
    word: &Word,
    names: &AddressReader,
    counters: &RelayCounters,
    take: &Take,
) {
    let meant = destination(&client, family);
    if meant == Some(redirect.probe(family)) {
        // The buffer of a new connection has room for it.
        let _ = client.try_write(word);
        return;
    }
    let vip = meant.and_then(|at| Some((redirect.vip_of(at.ip())?, at.port())));
    match vip.and_then(|(vip, port)| Some((names.name(vip)?, port))) {
        Some((name, port)) => take(client, name, port),
        None => {
            count(&counters.nameless);
            tracing::debug!(destination = ?meant, "a connection to no name's address is closed");
            let _ = client.set_zero_linger();
        }
    }
}

/// Returns where a client connected to before the kernel redirected it.
fn destination(client: &TcpStream, family: Family) -> Option<SocketAddr> {
    let socket = SockRef::from(client);
    let original = match family {
        Family::V4 => socket.original_dst_v4(),
        Family::V6 => socket.original_dst_v6(),
    };
    original.ok()?.as_socket()
}

/// Looks again and again, and tells of changes.
async fn watch_kernel(
    redirect: Redirect,
    word: Word,
    has_v6: bool,
    tell: watch::Sender<Option<Standings>>,
    index: &IndexReader,
    events: &EventLog,
) {
    let mut was_late = [false; 2];
    loop {
        let before = *tell.borrow();
        let v6 =
            async { if has_v6 { look(redirect, Family::V6, word).await } else { Look::Seen(Standing::Off) } };
        let (v4, v6) = tokio::join!(look(redirect, Family::V4, word), v6);
        let now = Standings {
            v4: Standing::after(before.map(|before| before.v4), was_late[0], v4),
            v6: Standing::after(before.map(|before| before.v6), was_late[1], v6),
        };
        was_late = [v4, v6].map(|look| look == Look::Late);
        tell.send_replace(Some(now));
        if before != Some(now) {
            for service in index.services() {
                index.revisions().bump(Subject::Service(&service));
            }
            for (family, standing) in now.each() {
                let was = before.map(|before| if family == Family::V4 { before.v4 } else { before.v6 });
                if was != Some(standing) {
                    report(family, was, standing, events);
                }
            }
        }
        let is_missing = now.each().iter().any(|(_, standing)| standing.missing().is_some());
        let is_sure = [v4, v6].iter().all(|look| matches!(look, Look::Seen(_)));
        sleep(if is_missing || !is_sure { SOON } else { EVERY }).await;
    }
}

fn report(family: Family, was: Option<Standing>, now: Standing, events: &EventLog) {
    match now.missing() {
        Some(why) => {
            tracing::warn!(%family, state = %now, reason = why, "virtual addresses are not redirected here; run sudo gossamer host setup");
        }
        None => tracing::info!(%family, state = %now, "redirection of virtual addresses"),
    }
    // What is as it should be from the start is no news.
    if was.is_some() || now.missing().is_some() {
        events.push(&Event {
            who: format!("redirect {family}"),
            was: was.map_or("unknown", Standing::word),
            now: now.word(),
            cause: now.missing().unwrap_or("connections to the pool arrive here").to_owned(),
            by: "self".to_owned(),
        });
    }
}

async fn look(redirect: Redirect, family: Family, word: Word) -> Look {
    match try_look(redirect, family, word).await {
        Ok(look) => look,
        Err(error) if is_out_of_files(&error) => {
            tracing::debug!(%family, err = %error, "whether virtual addresses are redirected cannot be looked at");
            Look::NoFiles
        }
        Err(_) => Look::Seen(Standing::NoTable),
    }
}

async fn try_look(redirect: Redirect, family: Family, word: Word) -> io::Result<Look> {
    let at = redirect.probe(family);
    // Without the route a connection would leave the machine.
    let is_local = match family {
        Family::V4 => try_this_host(at.ip())?,
        Family::V6 => Stage::blocking(move || has_local_route_blocking(redirect.network6().0)).await?,
    };
    if !is_local {
        return Ok(Look::Seen(Standing::judge(false, false)));
    }
    let hear = async {
        let mut said = Word::default();
        TcpStream::connect(at).await?.read_exact(&mut said).await?;
        io::Result::Ok(said)
    };
    match timeout(LOOK_WITHIN, hear).await {
        Ok(said) => Ok(Look::Seen(Standing::judge(true, said? == word))),
        Err(_) => Ok(Look::Late),
    }
}

/// Returns whether the whole of a /64 is local here: a local address of IPv6 cannot be told by binding it.
fn has_local_route_blocking(network: Ipv6Addr) -> io::Result<bool> {
    let wanted: String = network.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    let routes = match std::fs::read_to_string("/proc/self/net/ipv6_route") {
        Err(error) if is_out_of_files(&error) => return Err(error),
        routes => routes.unwrap_or_default(),
    };
    Ok(routes.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some(wanted.as_str()) && words.next() == Some("40") && words.next_back() == Some("lo")
    }))
}

/// Between two looks (design section 8).
const EVERY: Duration = Duration::from_secs(30);

/// The same while something is missing: a setup is seen as soon as a port that has become free.
const SOON: Duration = Duration::from_secs(5);

/// How long a connection to oneself may take.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use gossamer_core::vip::Pool;

    /// This test must not change the machine, so nothing redirects here: what it would be like is shown by row 6.1.
    #[tokio::test]
    async fn without_the_table_the_look_says_so_and_a_direct_client_is_reset() {
        let pool = Pool::new(Ipv4Addr::new(127, 249, 0, 0), 16).expect("aligned");
        let redirect = Redirect::new(pool, 7);
        let stage = Stage::default();
        let counters = Arc::new(RelayCounters::default());
        let names = crate::index::AddressWriter::default();
        let index = crate::index::IndexWriter::default();
        let events = EventLog::default();
        let redirected = start(Parts {
            stage: stage.clone(),
            sockets: RedirectSockets::bind(redirect).expect("free"),
            clients: Clients::default(),
            names: names.reader(),
            index: index.reader(),
            counters: Arc::clone(&counters),
            take: Arc::new(|_, name, _| panic!("{name}")),
            spare: Spare::default(),
            events: events.clone(),
        });
        redirected.looked().await;
        assert_eq!(redirected.standings().map(|standings| standings.v4), Some(Standing::NoTable));
        let line = events.follow(0).0.first().map(|line| line.line.clone()).expect("an event");
        assert!(line.contains("redirect IPv4") && line.contains("no-table"), "{line}");

        let mut client = TcpStream::connect(redirect.target(Family::V4)).await.expect("listens");
        assert!(client.read_u8().await.is_err());
        assert_eq!(counters.nameless.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(
            RedirectSockets::bind(redirect).expect_err("in use").to_string().contains("127.249.0.1:4749")
        );
        stage.stop(Duration::from_secs(5)).await;
    }

    #[test]
    fn a_route_that_is_not_there_is_not_seen() {
        assert!(!has_local_route_blocking("2001:db8::".parse().expect("ip")).expect("readable"));
    }
}
