//! Renewal: a member asks an issuer for a new certificate with its present one, which may have ended.
//!
//! Owns: the member's side of the exchange. Must not know: when to renew, which issuers there are.
//! Driven by: the authority task.
//!
//! It takes the way of joiners, not a member's connection: with a certificate that has ended there is none (ADR 13).

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
use tokio::time::timeout;

use gossamer_core::dial::UDP_ALONE;
use gossamer_core::renewal::Asked;
use gossamer_core::trust::{Sign as _, TrustBundle, not_after, read_issuer, spki_hash};
use gossamer_wire::join::{Admitted, Ask, JoinReply, RENEW_LABEL, Refusal, RenewRequest};
use gossamer_wire::{MeshId, NodeId};

use super::certificate::LeafSubject;
use super::join::{reach, refusal_text};
use super::{Credentials, Lifetimes, NodeKey};
use crate::clock::Clock;
use crate::transport::{Outcome, Way};

/// Between two issuers that are asked.
const STAGGER: Duration = Duration::from_millis(250);
/// Longest exchange with one address.
const ADDRESS_WITHIN: Duration = Duration::from_secs(5);

/// One exchange that may be tried.
struct Target {
    id: Option<NodeId>,
    way: Way,
    pin: [u8; 32],
}

/// Why there is no new certificate; the present one stays. May be tried again.
#[derive(Debug, Error)]
pub(crate) enum RenewError {
    /// No issuer is known with an address.
    #[error("no issuer with an address is known")]
    Nobody,
    /// The last one asked said no.
    #[error("{}", refusal_text(*.0))]
    Refused(Refusal),
    /// The last one asked could not be reached, or sent what does not hold.
    #[error("{0}")]
    Failed(String),
}

/// Asks the issuers, each a little after the one before, and takes the first new certificate that holds: one that is
/// gone delays nobody.
///
/// # Errors
/// What the last one said; see [`RenewError`].
pub(crate) async fn renew(
    mesh: MeshId,
    trust: &TrustBundle,
    credentials: &Credentials,
    key: &NodeKey,
    issuers: &[Asked],
    clock: &Clock,
) -> Result<Admitted, RenewError> {
    let pins: Vec<_> = trust.roots().iter().filter_map(|root| spki_hash(root).ok()).collect();
    let (mut targets, mut lanes) = (Vec::new(), Vec::new());
    for issuer in issuers {
        for pin in &pins {
            let target = |way| Target { id: issuer.id, way, pin: *pin };
            targets.extend(issuer.addresses.iter().copied().map(Way::Udp).map(target));
            lanes.extend(issuer.addresses.iter().copied().map(Way::Tcp).map(target));
            lanes.extend(issuer.lanes.iter().cloned().map(Way::Tls).map(target));
        }
    }
    let asking = |(pause, Target { id, way, pin }): (Duration, Target)| async move {
        tokio::time::sleep(pause).await;
        match timeout(ADDRESS_WITHIN, ask(mesh, pin, id, &way, credentials, key)).await {
            Ok(Ok(JoinReply::Admitted(admitted))) => {
                check(trust, credentials, &admitted, clock.wall()).map(|()| *admitted)
            }
            Ok(Ok(JoinReply::Refused(refusal))) => Err(RenewError::Refused(refusal)),
            Ok(Err(error)) => Err(RenewError::Failed(format!("{way}: {error}"))),
            Err(_) => Err(RenewError::Failed(format!("{way}: no answer"))),
        }
    };
    let targets = (0..).map(|position| STAGGER * position).zip(targets);
    let lanes = (0..).map(|position| UDP_ALONE + STAGGER * position).zip(lanes);
    let mut answers: FuturesUnordered<_> = targets.chain(lanes).map(asking).collect();
    let mut last = RenewError::Nobody;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(admitted) => return Ok(admitted),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(
    mesh: MeshId,
    pin: [u8; 32],
    issuer: Option<NodeId>,
    way: &Way,
    credentials: &Credentials,
    key: &NodeKey,
) -> Result<JoinReply, Outcome> {
    let leaf = credentials.leaf_der.to_vec();
    let signer = credentials.issued_by.as_ref().map(|der| der.to_vec()).unwrap_or_default();
    reach(mesh, pin, issuer, way)
        .await?
        .say(|binding| {
            let proof = key.sign(&[RENEW_LABEL, &binding[..]].concat()).to_vec();
            Ask::Renew(RenewRequest { leaf, issuer: signer, proof })
        })
        .await
}

/// Believes a new certificate only if it says of this node what the old one says.
fn check(
    trust: &TrustBundle,
    credentials: &Credentials,
    admitted: &Admitted,
    wall: u64,
) -> Result<(), RenewError> {
    let shown: Vec<_> = admitted.issuers.iter().map(|der| der.as_slice().into()).collect();
    let new = trust.verify(&admitted.leaf, &shown, wall).map_err(|error| {
        RenewError::Failed(format!("the issuer sent a certificate that does not hold: {error}"))
    })?;
    let old = &credentials.leaf;
    let same = new.public_key == old.public_key && new.group == old.group && new.name == old.name;
    if same && new.claims == old.claims {
        Ok(())
    } else {
        Err(RenewError::Failed("the issuer sent a certificate of another node".to_owned()))
    }
}

/// Makes a new certificate for this node with its own issuer's key, and returns the issuer's certificate with it;
/// `None` where there is no such key, or its certificate has ended, or the present one is of it and lasts as long.
pub(crate) fn renew_here(
    mesh: MeshId,
    credentials: &Credentials,
    lifetimes: &Lifetimes,
    wall: u64,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let Credentials { leaf, issuer, issued_by, issuers, .. } = credentials;
    let issuer = issuer.as_ref().filter(|issuer| issuer.may_admit_to(&leaf.group))?;
    let subject = LeafSubject { mesh, group: &leaf.group, name: &leaf.name, claims: &leaf.claims };
    let lifetime = lifetimes.leaf_for(issuers.len());
    let made = issuer.issue(leaf.public_key, subject, lifetime).ok()?;
    let end = not_after(&made)?;
    let lasts_longer = end > leaf.not_after;
    // Joiners believe an issuer by a certificate it made itself.
    let signer = issued_by.as_ref().and_then(|der| read_issuer(der).ok());
    let is_own = signer.is_some_and(|signer| signer.id == issuer.id());
    let is_good = end > wall && (lasts_longer || !is_own);
    is_good.then(|| (made, issuer.certificate().to_vec()))
}
