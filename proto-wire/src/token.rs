//! Join tokens: the text that admits a node.
//!
//! Owns: the text form `gsm1_` + base32(payload, signature, checksum) and its parts.
//! Must not know: whether a token is valid now, or used. Driven by: `token create`, `join`, the issuer.
//!
//! A token is a secret. It has no `Display`; `Debug` shows its id only.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::codec::{self, at_most};
use crate::limits::{MAX_CLAIMS_ENTRIES, MAX_LANE_ADDRESSES, MAX_TOKEN_ADDRESSES, MAX_TOKEN_BYTES};
use crate::{
    DecodeError, EncodeError, Fqdn, FqdnSuffix, GroupName, Label, LaneAddress, MeshId, NodeId, TokenId,
};

/// What every token begins with; the digit is the version of the format.
pub const PREFIX: &str = "gsm1_";

const SIGN_DOMAIN: &[u8] = b"gossamer-token-v1\0";
const SIGNATURE_BYTES: usize = 64;
const CHECKSUM_BYTES: usize = 4;

/// What a token grants.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The mesh to join.
    pub mesh: MeshId,
    /// SHA-256 of the SPKI of the root the joiner must find at the other end.
    pub root_pin: [u8; 32],
    /// The token's id.
    pub id: TokenId,
    /// The issuer that minted it: the hash of its key. A token of one use is in its ledger; others are good at every issuer,
    /// each of which counts for itself.
    pub issuer: NodeId,
    /// Seconds since the Unix epoch after which it is refused.
    pub not_after: u64,
    /// How many nodes may join with it; 0 is no limit.
    pub uses: u32,
    /// The group the node will belong to.
    pub group: GroupName,
    /// Pattern of allowed node names, `*` matches any run; `None` allows every name.
    pub node_pattern: Option<String>,
    /// Claims copied into the certificate.
    pub claims: Claims,
    /// Where the issuer can be dialled, at most 4; with the lane addresses at least one.
    pub addresses: Vec<SocketAddr>,
    /// Where only lanes reach it, at most [`MAX_LANE_ADDRESSES`].
    pub lanes: Vec<LaneAddress>,
}

/// What a certificate allows beyond membership; copied from the token, and from one certificate to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Claims {
    /// Patterns of service names the node may export; empty allows every name.
    pub services: Vec<String>,
    /// Suffixes below which it may export names of its own; empty allows none outside of the mesh's zone.
    pub fqdn_suffixes: Vec<FqdnSuffix>,
    /// Labels that the issuer vouches for, unlike those a node gives to itself in its card.
    pub labels: BTreeMap<Label, Label>,
    /// May relay for others.
    pub relay: bool,
    /// Seconds after which the silent node is forgotten; 0 is never.
    pub ephemeral_seconds: u32,
}

/// Longest encoded [`Claims`], bytes (design section 4).
pub const MAX_CLAIMS_BYTES: usize = 256;

impl Claims {
    /// Encodes the claims as they stand in the certificate extension.
    ///
    /// # Errors
    /// They are too many, or longer than 256 bytes; name fewer.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let refused = |error: DecodeError| EncodeError::Refused { what: "claims", why: error.to_string() };
        self.check().map_err(refused)?;
        codec::encode("claims", self, MAX_CLAIMS_BYTES)
    }

    /// Decodes claims.
    ///
    /// # Errors
    /// The issuer's fault; the certificate is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let claims: Self = codec::decode("claims", bytes, MAX_CLAIMS_BYTES)?;
        claims.check()?;
        Ok(claims)
    }

    /// Checks the limits that the types cannot hold.
    fn check(&self) -> Result<(), DecodeError> {
        at_most("services of claims", &self.services, MAX_CLAIMS_ENTRIES)?;
        at_most("FQDN suffixes of claims", &self.fqdn_suffixes, MAX_CLAIMS_ENTRIES)?;
        let (what, len, limit) = ("labels of claims", self.labels.len(), MAX_CLAIMS_ENTRIES);
        if len > limit { Err(DecodeError::TooMany { what, len, limit }) } else { Ok(()) }
    }

    /// Returns whether a node with these claims may export a service of this name.
    pub fn allow_service(&self, name: &str) -> bool {
        self.services.is_empty() || self.services.iter().any(|pattern| pattern_matches(pattern, name))
    }

    /// Returns whether a node may publish a name of its own: below one of the suffixes.
    pub fn allow_fqdn(&self, name: &Fqdn) -> bool {
        self.fqdn_suffixes.iter().any(|suffix| suffix.holds(name.as_str()))
    }
}

/// Matches `*` (any run, also empty) against names; every other character stands for itself. Takes at most the product
/// of both lengths, whatever a peer wrote: only the last `*` is ever tried again.
pub fn pattern_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Behind the last `*`, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, seen));
            }
            (Some(byte), _) if text.get(seen) == Some(byte) => {
                at += 1;
                seen += 1;
            }
            (_, Some((behind, taken))) => {
                at = behind;
                seen = taken + 1;
                star = Some((behind, seen));
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

/// Why a text is not a token. The writer's fault; nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Another text, or a token of a newer format.
    #[error("this is not a join token: it must begin with `{PREFIX}`")]
    Prefix,
    /// Characters are missing, added or changed.
    #[error("the token is mistyped or cut: its checksum does not match; copy the whole line again")]
    Checksum,
    /// The checksum is right and the content is not.
    #[error("the token was made by another version of gossamer: {0}")]
    Content(DecodeError),
}

/// A join token: grant, signature and text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    grant: Grant,
    text: Zeroizing<String>,
}

impl Grant {
    /// Returns the only issuer that may redeem it; `None` when any may.
    pub fn bound_to(&self) -> Option<NodeId> {
        (self.uses == 1).then_some(self.issuer)
    }
}

impl Token {
    /// Makes and signs a token.
    ///
    /// # Errors
    /// The grant is too long: fewer addresses or patterns.
    pub fn build(
        grant: Grant,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<Self, EncodeError> {
        let mut bytes = codec::encode("token", &grant, MAX_TOKEN_BYTES)?;
        let signature = sign(&[SIGN_DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        Ok(Self { grant, text: Zeroizing::new(armour(bytes)) })
    }

    /// Returns what the token grants.
    pub const fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Returns the secret text. Print it only where the user asked for it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Returns the bytes that were signed and the signature over them.
    pub fn signed(&self) -> (Vec<u8>, [u8; SIGNATURE_BYTES]) {
        let bytes = unarmour(&self.text).unwrap_or_default();
        match bytes.split_last_chunk::<SIGNATURE_BYTES>() {
            Some((payload, signature)) => ([SIGN_DOMAIN, payload].concat(), *signature),
            None => (Vec::new(), [0; SIGNATURE_BYTES]),
        }
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let bytes = Zeroizing::new(unarmour(text)?);
        let content = TokenError::Content;
        let payload = bytes
            .split_last_chunk::<SIGNATURE_BYTES>()
            .ok_or_else(|| content(DecodeError::Short("token")))?
            .0;
        let grant: Grant = codec::decode("token", payload, MAX_TOKEN_BYTES).map_err(content)?;
        at_most("token addresses", &grant.addresses, MAX_TOKEN_ADDRESSES).map_err(content)?;
        at_most("lane addresses of a token", &grant.lanes, MAX_LANE_ADDRESSES).map_err(content)?;
        grant.claims.check().map_err(content)?;
        Ok(Self { grant, text: Zeroizing::new(text.to_owned()) })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.grant.id)
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({})", self.id)
    }
}

/// Adds checksum, base32 and prefix to payload and signature.
pub(crate) fn armour(mut bytes: Vec<u8>) -> String {
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum);
    format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

/// Removes prefix, base32 and checksum; leaves payload and signature.
fn unarmour(text: &str) -> Result<Vec<u8>, TokenError> {
    let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
    if body.len() > (MAX_TOKEN_BYTES + SIGNATURE_BYTES + CHECKSUM_BYTES) * 8 / 5 + 1
        || body.bytes().any(|byte| byte.is_ascii_uppercase())
    {
        return Err(TokenError::Checksum);
    }
    let mut bytes =
        BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| TokenError::Checksum)?;
    let (signed, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Checksum)?;
    if checksum(signed) != *sum {
        return Err(TokenError::Checksum);
    }
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    Ok(bytes)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::digest(bytes);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            mesh: MeshId::from_bytes([1; 16]),
            root_pin: [2; 32],
            id: TokenId::from_bytes([3; 16]),
            issuer: NodeId::from_bytes([4; 16]),
            not_after: 1_800_000_000,
            uses: 1,
            group: "west".parse().expect("name"),
            node_pattern: None,
            claims: Claims::default(),
            addresses: vec!["192.0.2.1:4677".parse().expect("address")],
            lanes: vec!["tls://ingress.example:443".parse().expect("address")],
        }
    }

    fn token() -> Token {
        Token::build(grant(), |bytes| [bytes.len() as u8; 64]).expect("fits")
    }

    #[test]
    fn a_token_survives_a_round_trip() {
        let read: Token = token().reveal().parse().expect("parses");
        assert_eq!(read, token());
        let (signed, signature) = read.signed();
        assert!(signed.starts_with(SIGN_DOMAIN));
        assert_eq!(signature, [signed.len() as u8; 64]);
        assert_eq!(format!("  {}\n", read.reveal()).parse(), Ok(read));
    }

    #[test]
    fn the_shortest_token_has_fewer_than_350_characters() {
        assert!(token().reveal().len() < 350, "{}", token().reveal().len());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = token().reveal().to_owned();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(bytes).expect("ascii");
            assert!(changed.parse::<Token>().is_err(), "character {at}");
        }
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(TokenError::Checksum));
        assert_eq!("hunter2".parse::<Token>(), Err(TokenError::Prefix));
    }

    #[test]
    fn debug_shows_the_id_and_nothing_else() {
        let shown = format!("{:?} {:?}", token(), token().grant());
        assert!(shown.contains(&grant().id.to_string()));
        assert!(!shown.contains("gsm1_") && !shown.contains("192.0.2.1"));
    }

    #[test]
    fn patterns_match_runs() {
        for (pattern, text, matches) in [
            ("web-*", "web-1", true),
            ("web-*", "db-1", false),
            ("*", "", true),
            ("*-db", "orders-db", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "", true),
            ("", "a", false),
            ("**", "", true),
            ("*a*", "bab", true),
            ("*ab", "aab", true),
            ("a*ba", "aba", true),
            ("a*ba", "abab", false),
            ("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", &"a".repeat(63), false),
        ] {
            assert_eq!(pattern_matches(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn claims_have_a_few_entries_of_each_kind() {
        let label = |number: usize| format!("l{number}").parse::<Label>().expect("a label");
        let labels = |count| (0..count).map(|number| (label(number), label(0))).collect::<BTreeMap<_, _>>();
        let full = Claims {
            services: vec!["a".to_owned(); MAX_CLAIMS_ENTRIES],
            fqdn_suffixes: vec!["b".parse().expect("a suffix"); MAX_CLAIMS_ENTRIES],
            labels: labels(MAX_CLAIMS_ENTRIES),
            ..Claims::default()
        };
        assert_eq!(Claims::decode(&full.encode().expect("fits")), Ok(full.clone()));
        for over in [
            Claims { services: [full.services.clone(), vec!["a".to_owned()]].concat(), ..full.clone() },
            Claims {
                fqdn_suffixes: [&full.fqdn_suffixes[..], &full.fqdn_suffixes[..1]].concat(),
                ..full.clone()
            },
            Claims { labels: labels(MAX_CLAIMS_ENTRIES + 1), ..full.clone() },
        ] {
            let error = over.encode().expect_err("too many").to_string();
            assert!(error.contains("17 entries, the limit is 16"), "{error}");
            let bytes = codec::encode("claims", &over, MAX_CLAIMS_BYTES).expect("fits");
            assert!(matches!(Claims::decode(&bytes), Err(DecodeError::TooMany { .. })));
            let token = Token::build(Grant { claims: over, ..grant() }, |_| [0; 64]).expect("fits");
            assert!(matches!(token.reveal().parse::<Token>(), Err(TokenError::Content(_))));
        }
    }

    #[test]
    fn claims_limit_what_may_be_exported() {
        assert!(Claims::default().allow_service("anything"));
        let claims = Claims { services: vec!["web-*".to_owned()], ..Claims::default() };
        assert!(claims.allow_service("web-1") && !claims.allow_service("db"));
        let fqdn = |text: &str| text.parse().expect("an FQDN");
        assert!(!claims.allow_fqdn(&fqdn("a.corp.example")), "no suffix allows none");
        let claims = Claims { fqdn_suffixes: vec!["corp.example".parse().expect("a suffix")], ..claims };
        for (name, is_allowed) in [
            ("a.corp.example", true),
            ("*.corp.example", true),
            ("corp.example", false),
            ("*.example", false),
        ] {
            assert_eq!(claims.allow_fqdn(&fqdn(name)), is_allowed, "{name}");
        }
        assert_eq!(Claims::decode(&claims.encode().expect("fits")), Ok(claims));
    }
}
