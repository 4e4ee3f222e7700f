//! Lane addresses: the way to an ingress, whose name the system resolves when it is dialled.
//!
//! Owns: how names are resolved and what they may not lead to. Must not know: whom to dial. Driven by: `dial`, and
//! `identity::join` for joiners.
//!
//! The name comes from somebody else's card. So few are resolved at once, in the time a handshake has, and never a name of
//! the mesh itself: who answers it may be the very node that is looked for.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use gossamer_core::reach::{Deny, in_turns};
use gossamer_wire::LaneAddress;

use super::dial::{Place, connect};
use super::{Driver, Lane, Opener};
use crate::supervise::Stage;
use crate::transport::race::Race;
use crate::transport::tried::Outcome;

/// Names resolved at once; the system's resolver may hold a thread for half a minute for each.
static LOOKUPS: Semaphore = Semaphore::const_new(8);

/// Most addresses of one name that are tried.
const MAX_FOUND: usize = 4;

/// What names of lane addresses may not be, and may not lead to.
#[derive(Clone, Debug, Default)]
pub struct NameRules {
    /// Addresses that are never dialled.
    pub deny: Deny,
    /// Zones that the mesh answers, lower case.
    pub zones: Arc<[String]>,
}

impl NameRules {
    /// Returns the rules of a machine that is in no mesh yet.
    pub fn of_joiner() -> Self {
        Self {
            deny: Deny::default(),
            zones: Arc::new(["mesh.internal".to_owned(), "clusterset.local".to_owned()]),
        }
    }

    /// Returns where the address leads to now, as far as that may be dialled.
    async fn resolve(&self, at: &LaneAddress) -> Result<Vec<SocketAddr>, Outcome> {
        let found = match at.literal() {
            Some(address) => vec![address],
            None if self.is_of_mesh(at.host()) => {
                return Err(Outcome::NoName("it is a name of the mesh itself".to_owned()));
            }
            None => look_up(at).await.map_err(|error| Outcome::NoName(error.to_string()))?,
        };
        let (mut good, denied) = self.deny.part(found);
        if good.is_empty() {
            let none = || Outcome::NoName("it has no address".to_owned());
            return Err(denied.first().map_or_else(none, |(_, why)| Outcome::Denied(*why)));
        }
        good.dedup();
        good.truncate(MAX_FOUND);
        Ok(in_turns(good))
    }

    fn is_of_mesh(&self, host: &str) -> bool {
        let is_in = |zone: &String| {
            host.strip_suffix(zone.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.zones.iter().any(is_in)
    }
}

/// Asks the system. The thread goes on when nobody waits any more, and keeps its place until it has ended.
async fn look_up(at: &LaneAddress) -> io::Result<Vec<SocketAddr>> {
    let place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let (host, port) = (at.host().to_owned(), at.port());
    Stage::blocking(move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        drop(place);
        found
    })
    .await
}

/// Dials a lane by its address. Nothing moves on it before its driver runs.
pub(crate) async fn dial_by_name(
    at: &LaneAddress,
    rules: &NameRules,
    name: &str,
    config: Arc<ClientConfig>,
    opener: Opener,
    within: Duration,
) -> Result<(Lane, Driver), Outcome> {
    let dialled = async {
        let attempt = |remote: SocketAddr| {
            let (place, config) = (Place::of_ingress(remote), Arc::clone(&config));
            async move { connect(place, name, config, opener).await }
        };
        let mut race = Race::new(rules.resolve(at).await?, attempt);
        let mut last = Outcome::NoName("it has no address".to_owned());
        while let Some(ended) = race.next().await {
            match ended {
                Ok(dialled) => return Ok(dialled),
                Err(outcome) => last = outcome,
            }
        }
        Err(last)
    };
    timeout(within, dialled).await.map_err(|_| Outcome::NoAnswer(within))?
}

#[cfg(test)]
mod tests {
    use gossamer_core::reach::Denied;

    use super::*;

    fn rules() -> NameRules {
        NameRules { deny: Deny::default().with_loopback(), zones: Arc::new(["mesh.internal".to_owned()]) }
    }

    async fn resolve(text: &str) -> Result<Vec<SocketAddr>, Outcome> {
        rules().resolve(&text.parse().expect("address")).await
    }

    #[tokio::test]
    async fn what_a_name_leads_to_is_judged_like_an_address() {
        assert_eq!(resolve("tls://192.0.2.7").await, Ok(vec!["192.0.2.7:443".parse().expect("address")]));
        for (text, why) in [
            ("tls://localhost:443", Denied::Loopback),
            ("tls://[::1]:443", Denied::Loopback),
            ("tls://169.254.169.254:80", Denied::Metadata),
            ("tls://127.240.0.9:443", Denied::Pool),
        ] {
            assert_eq!(resolve(text).await, Err(Outcome::Denied(why)), "{text}");
        }
        for text in ["tls://gate.mesh.internal:443", "tls://MESH.internal:443"] {
            assert!(
                matches!(resolve(text).await, Err(Outcome::NoName(why)) if why.contains("of the mesh")),
                "{text}"
            );
        }
        assert!(!rules().is_of_mesh("notmesh.internal"));
    }
}
